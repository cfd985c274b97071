"""A borrowed GPU's command, rehearsed on the CPU."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from benchmarks import gpu
from mae_core.study.results import FULL, read_json, write_json
from mae_core.study.study import Study
from mae_core.study.tensors import load_tensors, save_tensors, tensors_sha256
from mae_core.training import runs

ROOT = Path(__file__).parents[1]
TINY = {"dataset": "shapes", "train_images": 64, "width": 24, "depth": 1, "decoder_width": 24}
MISSING = (
    "papermill", "nbconvert", "nbformat", "snakemake", "IPython", "ipykernel", "jupyter_core", "mistune", "typst",
    "lightly", "hypothesis", "jsonschema", "sklearn", "xdist",
)  # fmt: skip
WITHOUT = f"""
from functools import partial
from importlib.machinery import PathFinder

def find(found, name, *more):
    return None if name.partition(".")[0] in {MISSING} else found(name, *more)

PathFinder.find_spec = partial(find, PathFinder.find_spec)
"""


@pytest.fixture
def project(tmp_path, monkeypatch, few_shapes_dir):
    """A folder with data, no environment, and a Python that misses what a borrowed machine misses."""
    (tmp_path / "data").symlink_to(few_shapes_dir)
    (tmp_path / "params").mkdir()
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def study(name, cases, **more):
    content = {"study": name, "seeds": [0], "shared": TINY, "cases": cases, **more}
    Path("params", f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def main(*words):
    with pytest.raises(SystemExit) as ended:
        gpu.main([*words, "--out", "results"])
    return ended.value.code


def states(title):
    """The states of all parts, from the table's file."""
    (path,) = Path("results").glob(f"*-rehearsal/{title}.md")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in path.read_text("utf-8").splitlines()]
    assert rows[0] == ["part", "state", "result", "seconds"]
    return {row[0]: row[1] for row in rows[2:]}


def part(name, code, limit=20.0):
    return gpu.Part(name, ["-c", code], limit, Path())


def parts_json():
    return read_json(Path("parts.json"))


def test_without_a_gpu_it_says_what_to_do(project, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU here: use a machine that has one, or rehearse" in main()
    assert not Path("results").exists()


def test_a_study_that_is_not_there_is_told(project):
    assert "ParameterError: the study file params/mine.yaml cannot be read" in main("--rehearse", "--study", "mine")


def test_missing_images_are_told_before_anything_runs(project, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine_name", lambda: "a-gpu")
    monkeypatch.setattr(gpu, "work", lambda *parts: 0)
    study("speedrun", {"scratch": None}, shared={**TINY, "dataset": "cifar10"})
    told = "data/cifar-10-batches-py/ is missing, and make gpu downloads nothing: put the folder"
    assert main("--study", "speedrun").startswith(f"MissingDataError: {told}")
    assert main() == 0  # the tests and the races need no images
    (run,) = gpu.runs("speedrun", project, 1.0, False)
    assert run.obstacle(1e6).startswith(f"not started: {told}")
    study("mine", {"scratch": None})
    assert main("--study", "mine") == 0


def test_a_package_that_is_missing_is_named(project):
    (project / "without" / "sitecustomize.py").write_text(WITHOUT.replace("'papermill'", "'pydantic'"), encoding="utf-8")
    path = f"{project / 'without'}{os.pathsep}{ROOT}"
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "pydantic is missing here: install it, or name a folder that holds it in PYTHONPATH\n"


def test_tests_that_are_cut_short_have_named_their_failures(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("tests").mkdir()
    Path("tests", "test_some.py").write_text(
        "import os, pytest, signal\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_wrong(): assert 1 == 2\n"
        "def test_right(): pass\n"
        "def test_ended(): os.kill(os.getpid(), signal.SIGTERM)\n",
        encoding="utf-8",
    )
    tests, *_ = gpu.checks(tmp_path, 550, False)
    state, result = gpu.attempt(tests, 30.0, Path("log.txt"))
    assert state == "failed"
    assert re.fullmatch(r"tests/test_some.py::test_wrong FAILED +\[ 33%\]; tests/test_some.py::test_ended", result)


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("a.py::b PASSED  [ 33%]\na.py::c[1-2] SKIPPED [ 60%]\na.py::d PASSED [ 66%]\na.py::e ", "tests passed: 2"),
        ("a.py::b PASSED  [ 33%]\na.py::d FAILED [ 66%]\n", None),
        ("a.py::b PASSED  [ 33%]\na.py::d ERROR [ 66%]\n", None),
        ("epoch 1\n", None),
    ],
)
def test_tests_whose_time_ran_out_have_failed_only_if_one_had(printed, told):
    found = gpu.passed(printed)
    assert found is None if told is None else found.startswith(told)


@pytest.mark.parametrize(("seconds", "limit"), [(550, 107), (3000, 695), (100, 19)])
def test_a_race_has_its_share_but_for_a_margin(tmp_path, seconds, limit):
    _, *races = gpu.checks(tmp_path, seconds, False)
    assert [race.words[race.words.index("--limit") + 1] for race in races] == [str(limit)] * 2


TRAINS = """
import pathlib, signal, sys

def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(1)

signal.signal(signal.SIGTERM, save)
pathlib.Path("started").touch()
signal.pause()
"""
COMMAND = f"""
from benchmarks import gpu
gpu.checks = lambda folder, *_: [gpu.Part("trains", ["-c", {TRAINS!r}], 100, folder)]
gpu.runs = lambda *_: []
gpu.main(["--rehearse", "--out", "results"])
"""


def test_when_it_is_ended_what_it_trains_can_save_a_checkpoint(project, monkeypatch):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", COMMAND], env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not Path("started").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.terminate()
    told = process.communicate(timeout=30)[1]
    assert Path("saved").exists()
    assert told == "interrupted: give the same command again to continue\n"


def test_a_part_that_fails_or_hangs_is_told_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sleep = "import time; time.sleep(60)"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {sleep!r}]); print(p.pid, flush=True); "
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('waiting', flush=True); "
    parts = [
        part("fails", "print('FAILED tests/a.py::b'); raise SystemExit('2 | 3 tests failed')"),
        part("hangs", child + "p.wait()", limit=1.0),
        part("ignores SIGTERM", stubborn + sleep, limit=2.0),
        part("works", "import json; print(sorted(json.load(open('parts.json')))); print('4 passed')"),
        part("too long", "print('never')", limit=1e6),
    ]
    began = time.monotonic()
    assert gpu.work(parts, tmp_path, "all", 30) == 1
    assert time.monotonic() - began < 10
    found = {name: (entry["state"], entry["result"]) for name, entry in parts_json().items()}
    assert found["fails"] == ("failed", "FAILED tests/a.py::b; 2 | 3 tests failed")
    assert found["hangs"][0] == "failed"
    told, pid = found["hangs"][1].rsplit(": ", 1)
    assert told == "its 1 s ran out"
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    assert found["ignores SIGTERM"] == ("failed", "its 2 s ran out: waiting")
    assert found["works"] == ("done", "4 passed")
    assert "too long" not in found
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "['fails', 'hangs', 'ignores SIGTERM']" in log  # results are there before the next part starts
    assert "never" not in log
    told = capsys.readouterr().out
    assert "| too long        | waits  | not started: it needs 500000 s" in told
    assert (tmp_path / "all.md").read_text(encoding="utf-8") in told


def test_tests_that_hang_after_others_have_passed_are_cut_short(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hangs = "import time; print('a.py::b PASSED  [ 50%]', flush=True); time.sleep(60)"
    assert gpu.work([part("tests", hangs, limit=2.0)], tmp_path, "all", 30) == 1
    told = "tests passed: 1; none failed, and the time ran out"
    assert parts_json()["tests"] | {"seconds": 0, "code": ""} == {
        "state": "cut short", "result": told, "seconds": 0, "code": "",
    }  # fmt: skip
    assert "continue" not in capsys.readouterr().out


def test_only_what_has_no_result_of_this_code_is_done_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    once = "import pathlib, sys; p = pathlib.Path('{}'); sys.exit(p.exists() and 'again' or p.touch())"
    parts = [part("a", once.format("a")), part("b", "raise SystemExit('broken')")]
    assert gpu.work(parts, tmp_path, "all", 30) == 1
    parts[1] = part("b", "print('mended')")
    assert gpu.work(parts, tmp_path, "all", 30) == 0
    assert [entry["result"] for entry in parts_json().values()] == ["", "mended"]
    monkeypatch.setattr(gpu, "code_sha256", lambda: "other code")
    assert gpu.work(parts, tmp_path, "all", 30) == 1
    assert parts_json()["a"]["result"] == "again"


def test_the_runs_of_the_paper_go_seed_by_seed(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    names = [run.name for run in gpu.runs("paper", tmp_path, 1.0, False)]
    cases = ["random-75", "scratch", "mask-tokens", "block-50", "block-75", "grid-75"]
    assert names == [
        f"paper {case} seed {seed} {stage}"
        for seed in (0, 1, 2)
        for case in cases
        for stage in (["finetune"] if case == "scratch" else ["pretrain", "finetune"])
    ]


def finish(run, weights=True, **more):
    """Write the results of a run without training it; without weights, those of a checkout."""
    folder = run.run.folder / run.stage
    folder.mkdir(parents=True, exist_ok=True)
    if weights:
        save_tensors(folder / FULL, {"a": torch.ones(1)}, {})
        write_json(folder / "provenance.json", {"weights_sha256": tensors_sha256(folder / FULL)})
    write_json(folder / "parameters.json", run.run.flat())
    metrics = {"test_psnr": 20.0, "last_epoch_accuracy": 80.0, "images_per_second": 1e4}
    write_json(folder / "metrics.json", metrics | {"wall_seconds": 120.0, "train_seconds": 100.0} | more)


def test_a_run_is_finished_with_its_parameters_and_its_weights(project):
    study("mine", {"a": {}, "b": {}})
    pretrained, tuned, other, _ = gpu.runs("mine", project, 1.0, False)
    folder = pretrained.run.folder
    assert [run.done() for run in (pretrained, tuned)] == [None, None]
    finish(pretrained, weights=False)
    finish(tuned, weights=False)
    assert [run.done() for run in (pretrained, tuned)] == [None, None]  # published results: nothing was trained here
    assert pretrained.notice() == f"; its results will replace those in {folder}/pretrain (git diff shows the change)"
    assert other.notice() == ""
    assert "its pre-training is not finished" in tuned.obstacle(1e6)
    finish(pretrained)
    assert tuned.obstacle(1e6) is None
    finish(tuned)
    assert pretrained.done() == "20.00 dB, 10,000 images/s, 120 s"
    assert tuned.done() == "80.00 %, 10,000 images/s, 120 s"
    os.utime(folder / "pretrain" / FULL, ns=(0, time.time_ns() + 10**12))
    assert tuned.done() is None  # of older weights
    (folder / "pretrain" / "checkpoint.safetensors").touch()
    os.utime(folder / "pretrain" / "checkpoint.safetensors", ns=(0, time.time_ns() + 10**12))
    assert pretrained.done() is None  # is being trained again
    finish(other)
    assert other.done()
    write_json(other.run.folder / "pretrain" / "provenance.json", {"weights_sha256": "of published weights"})
    assert other.done() is None  # its results were checked out again
    finish(other)
    write_json(other.run.folder / "pretrain" / "parameters.json", other.run.flat() | {"threads": 7})
    assert other.done()  # the same run, computed in another way
    write_json(other.run.folder / "pretrain" / "parameters.json", other.run.flat() | {"epochs": 7})
    assert other.done() is None
    assert other.words[-1] == "--again"  # what is not done here may be complete for `mae-core train`


def test_a_run_whose_first_checkpoint_does_not_fit_is_not_started(project):
    study("mine", {"a": {}, "b": {}, "c": {}})
    first, _, second, _, third, _ = gpu.runs("mine", project, 1.0, False)
    assert first.obstacle(59) == "not started: it needs 60 s, 59 s are left"  # of checkpoint_seconds, no pace is known
    assert first.obstacle(61) is None
    finish(first)  # 20 s beside its training
    assert second.obstacle(79)
    assert second.obstacle(81) is None
    finish(second, wall_seconds=15.0, train_seconds=5.0)
    assert third.obstacle(66)  # the middle of both: 15 + 52.5 s
    assert third.obstacle(68) is None


def test_a_rehearsal_does_all_parts_and_repeats_none(project, monkeypatch):
    """Tests, a race and a run, each in a process; one of the two races is enough here."""
    monkeypatch.delitem(gpu.SHARES, "pretrain")
    study("speedrun", {"scratch": None})
    assert main("--rehearse") == 0
    run = "speedrun-rehearsal scratch seed 0 finetune"
    assert states("all") == {"tests": "done", "finetune": "done", run: "done"}
    (folder,) = Path("results").iterdir()
    assert {p.name for p in folder.glob("race.*")} == {"race.json", "race.md", "race.svg"}
    part = read_json(folder / "race.json")["parts"]["finetune"]
    raced = {timing["name"]: timing for timing in part["timings"] if "name" in timing}
    assert set(raced) == {"ours", "timm"}
    assert all(timing["bytes_per_image"] > 1e4 and timing["peak_bytes"] > 2**20 for timing in raced.values())
    assert part["left_out"] == {}
    assert "lightly" not in part["about"]["versions"]
    results = {name: entry["result"] for name, entry in read_json(folder / "parts.json").items()}
    assert "skipped" in results["tests"] or "passed" in results["tests"]
    assert all(word in results["finetune"] for word in ("images/s", "of the matrix limit", "of copying", "GiB", "times"))
    assert main("--rehearse") == 0
    assert set(states("all").values()) == {"done before"}


def test_a_study_that_was_killed_goes_on_to_the_same_weights(project, monkeypatch):
    study("paper", {"random-75": {}})
    folder = Path("outputs/paper-rehearsal/random-75/seed0")
    words = ["-m", "benchmarks.gpu", "--rehearse", "--study", "paper", "--out", "results"]
    environment = {**os.environ, "PYTHONPATH": f"{project / 'without'}{os.pathsep}{ROOT}"}
    process = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (folder / "pretrain" / "checkpoint.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    child.wait(10)  # it does not train on alone
    assert not (folder / "pretrain" / "metrics.json").exists()

    assert main("--rehearse", "--study", "paper") == 0
    assert set(states("paper").values()) == {"done"}
    (log,) = Path("results").glob("*/log.txt")
    steps = log.read_text(encoding="utf-8").split("\n== ")[2]
    assert "train" in steps.splitlines()[0]
    assert " 0/12" not in steps
    resumed = [load_tensors(folder / stage / "weights.safetensors")[0] for stage in ("pretrain", "finetune")]

    (file,) = Path("results").glob("*/paper-rehearsal.yaml")
    read = Study.read(file.absolute())
    (project / "alone").mkdir()
    monkeypatch.chdir(project / "alone")
    Path("data").symlink_to(project / "data")
    for stage, weights in zip(("pretrain", "finetune"), resumed, strict=True):
        getattr(runs, stage)(read.run("random-75", 0, stage))
        straight = load_tensors(folder / stage / "weights.safetensors")[0]
        assert all(straight[name].equal(weights[name]) for name in straight | weights)
