"""A run that is complete is not trained again, unless it is asked for; Snakemake's part is tested in test_workflow.py."""

import os
import signal
import types
from pathlib import Path

import pytest
import torch
import yaml

from mae_core import cli
from mae_core.errors import StoppedError
from mae_core.study import hub
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import read_json, write_json
from mae_core.study.study import Study
from mae_core.study.tensors import save_tensors, tensors_sha256
from mae_core.training import runs
from mae_core.training.checkpoint import Checkpoint


@pytest.fixture
def train(tiny, capsys):
    """A function that trains a stage of a study in this folder, and returns what it prints."""
    shared = {name: value for name, value in tiny.items() if name not in ("study", "case", "seed")}
    study = {"study": "mine", "seeds": [0], "shared": shared, "cases": {"a": {}, "from-scratch": None}}

    def run(stage, *more, case="a", **changed):
        content = study | {"shared": shared | changed}
        Path("mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", "mine.yaml", case, "0", stage, *more])
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def dated(stage, case="a"):
    return Path(f"outputs/mine/{case}/seed0/{stage}/metrics.json").stat().st_mtime_ns


def test_a_complete_run_is_not_trained_again_but_on_request(train):
    assert "nothing to train" not in train("pretrain")
    first = dated("pretrain")
    assert train("pretrain") == "outputs/mine/a/seed0/pretrain is complete: nothing to train; --again trains it anew\n"
    assert dated("pretrain") == first
    assert "nothing to train" not in train("pretrain", "--again")
    assert dated("pretrain") > first


def test_a_notebook_of_an_earlier_training_does_not_stay_beside_the_results_of_another(train):
    train("pretrain")
    notebook, log = (Path("outputs/mine/a/seed0/pretrain", name) for name in ("pretrain.ipynb", "log.txt"))
    page = Path("report/mine/notebooks/a-seed0-pretrain.html")
    page.parent.mkdir(parents=True)
    for path in (notebook, log, page):
        path.touch()
    train("pretrain")  # nothing to train
    assert notebook.exists()
    train("pretrain", "--again")
    assert not any(path.exists() for path in (notebook, log, page))


def test_what_would_give_other_results_is_trained(train):
    train("pretrain")
    train("finetune")
    assert "nothing to train" in train("finetune")
    assert "nothing to train" in train("finetune", threads=1)  # which changes no result
    assert "nothing to train" not in train("finetune", weight_decay=0.1)
    train("pretrain", "--again", weight_decay=0.1)
    assert "nothing to train" not in train("finetune", weight_decay=0.1)  # from these weights
    assert "nothing to train" in train("finetune", weight_decay=0.1)


def test_published_results_without_weights_and_a_run_begun_anew_are_not_complete(train, monkeypatch):
    train("finetune", case="from-scratch")
    assert "nothing to train" in train("finetune", case="from-scratch")
    folder = Path("outputs/mine/from-scratch/seed0/finetune")
    run, save = Study.read("mine.yaml").run("from-scratch", 0, "finetune"), Checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "due", lambda self: True)
        patch.setattr(Checkpoint, "save", lambda self, at: save(self, at) or os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError):
            runs.finetune(run)
    assert "resumed at step " in train("finetune", case="from-scratch")
    (folder / "weights.safetensors").unlink()
    assert "nothing to train" not in train("finetune", case="from-scratch")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_damaged_weights_and_those_of_another_run_are_not_complete(train, stage):
    train("pretrain")
    before = Path("outputs/mine/a/seed0/pretrain/weights.safetensors").read_bytes()
    train("finetune")
    path = Path(f"outputs/mine/a/seed0/{stage}/weights.safetensors")
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", before if stage == "finetune" else whole[:-4] + b"1234"):
        path.write_bytes(damaged)
        assert "nothing to train" not in train(stage)
        assert "nothing to train" in train(stage)


@pytest.mark.parametrize("images", ["as they were", "others"])
def test_other_images_of_ones_own_are_other_results(images, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "fingerprint", lambda folder: images)
    run = types.SimpleNamespace(folder=tmp_path, dataset="folder", data_dir="mine", change=lambda path: "")
    folder = tmp_path / "pretrain"
    save_tensors(folder / "weights.safetensors", {"a": torch.zeros(1)}, {})
    source = {"images": "as they were", "weights_sha256": tensors_sha256(folder / "weights.safetensors")}
    write_json(folder / "provenance.json", source)
    (folder / "metrics.json").touch()
    assert runs.is_complete(run, "pretrain") == (images == "as they were")


def test_other_settings_beside_the_weights_of_others_give_other_results(tiny):
    pretraining = PretrainParameters.check(tiny)
    runs.pretrain(pretraining)
    hub.export(pretraining.folder / "pretrain", Path("theirs"))
    run, settings = FinetuneParameters.check({**tiny, "weights": "theirs"}), Path("theirs/preprocessor_config.json")
    runs.finetune(run)
    assert runs.is_complete(run, "finetune")
    told = read_json(settings)
    for change in (lambda: write_json(settings, told | {"image_mean": [0.4, 0.5, 0.5]}), settings.unlink):
        change()
        assert not runs.is_complete(run, "finetune")
    write_json(settings, told)
    assert runs.is_complete(run, "finetune")
    alone = Path("alone.safetensors")  # settings that come later count, too
    alone.write_bytes(Path("theirs/model.safetensors").read_bytes())
    lonely = run.model_copy(update={"weights": str(alone), "case": "alone"})
    runs.finetune(lonely)
    assert runs.is_complete(lonely, "finetune")
    write_json(Path("preprocessor_config.json"), told | {"image_mean": [0.4, 0.5, 0.5]})
    assert not runs.is_complete(lonely, "finetune")
    source = run.folder / "finetune" / "provenance.json"  # of a run from before these settings were recorded
    write_json(source, {k: v for k, v in read_json(source).items() if k != "initial_settings_sha256"})
    assert runs.is_complete(run, "finetune")
