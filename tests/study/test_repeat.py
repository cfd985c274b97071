"""Which finished runs Snakemake repeats: the dates of results."""

import os
from pathlib import Path

import pytest
import yaml

from mae_core.study.repeat import date_results
from mae_core.study.results import write_json
from mae_core.study.study import Study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of one case that has run, whose files were copied: what was trained first is newest."""
    monkeypatch.chdir(tmp_path)
    content = {"study": "mine", "seeds": [0], "shared": {"dataset": "shapes"}, "cases": {"a": {}}}
    Path("mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    study = Study.read("mine.yaml")
    for stage, told in (("pretrain", {"weights_sha256": "5"}), ("finetune", {"initial_weights_sha256": "5"})):
        folder = Path("outputs/mine/a/seed0") / stage
        write_json(folder / "parameters.json", study.run("a", 0, stage).flat())
        write_json(folder / "provenance.json", told)
        write_json(folder / "metrics.json", {})
        (folder / "weights.safetensors").touch()
    for path in Path("outputs/mine/a/seed0/pretrain").iterdir():
        os.utime(path, ns=(9 * 10**18, 9 * 10**18))
    return study


def test_a_copied_fine_tuning_becomes_as_new_as_its_weights(study):
    results = Path("outputs/mine/a/seed0/finetune/metrics.json")
    assert date_results(study, [], {}) == []
    assert results.stat().st_mtime_ns == 9 * 10**18


def test_a_copied_fine_tuning_that_is_older_than_its_sources_stays_so(study):
    results, source = Path("outputs/mine/a/seed0/finetune/metrics.json"), Path("source.py")
    source.touch()
    os.utime(source, ns=(8 * 10**18, 8 * 10**18))
    date_results(study, ["source.py"], {})
    assert results.stat().st_mtime_ns < 8 * 10**18


@pytest.mark.parametrize(
    ("papermill", "ended"),
    [
        ({"end_time": None, "exception": None}, False),
        ({"end_time": "2026-11-30", "exception": True}, False),
        ({"end_time": "2026-11-30", "exception": None}, True),
        (None, True),  # of mae-core train
    ],
)
def test_a_run_whose_notebook_stopped_after_the_training_is_out_of_date_until_it_runs(study, papermill, ended):
    folder = Path("outputs/mine/a/seed0/finetune")
    if papermill:
        write_json(folder / "finetune.ipynb", {"metadata": {"papermill": papermill}})
    assert date_results(study, [], {}) == []  # without a checkpoint, all is well
    (folder / "checkpoint.safetensors").touch()
    for _ in range(2):  # a dry run changes nothing
        told = [] if ended else [f"{folder} is out of date: its notebook did not end"]
        assert date_results(study, [], {}) == told
        assert ((folder / "metrics.json").stat().st_mtime_ns > 10**15) == ended


def test_a_pre_training_is_not_repeated_where_its_fine_tuning_has_finished(study):
    folder = Path("outputs/mine/a/seed0/pretrain")
    write_json(folder / "pretrain.ipynb", {"metadata": {"papermill": {"end_time": None}}})
    (folder / "checkpoint.safetensors").touch()
    assert date_results(study, [], {}) == []
    Path("outputs/mine/a/seed0/finetune/metrics.json").unlink()
    assert date_results(study, [], {}) == [f"{folder} is out of date: its notebook did not end"]


@pytest.mark.parametrize("told", [{}, {"initial_weights_sha256": "6"}])
def test_a_fine_tuning_from_other_weights_keeps_its_time(study, told):
    results = Path("outputs/mine/a/seed0/finetune/metrics.json")
    write_json(results.with_name("provenance.json"), told)
    before = results.stat().st_mtime_ns
    assert date_results(study, [], {}) == []
    assert results.stat().st_mtime_ns == before
