"""A study survives kills and hostile files: tests of whole studies, beside test_workflow.py."""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
from checkout import STUDY, Checkout

from mae_core.results import load_tensors

LONG = {
    **STUDY,
    "pretrain": {"epochs": 400, "checkpoint_seconds": 0.0},
    "cases": {"random-75": {}, "scratch": None},
}


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def kernels(folder):
    """The processes of papermill and of kernels that work in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            known = "ipykernel_launcher" in words or any(Path(word).name == "papermill" for word in words[:3])
            if known and Path(process.cwd()) == folder:
                found.append(process)
    return found


def recover(checkout):
    words = [sys.executable, "-m", "mae_core.recover", "params/tiny.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.folder)}
    return subprocess.run(words, cwd=checkout.folder, env=environment, capture_output=True, text=True)


def test_after_any_kill_the_study_goes_on_and_repeats_nothing(tmp_path, shapes_dir):
    """kill -9 of a kernel, of papermill, of Snakemake: the same command goes on, after the last one with ``recover``."""
    checkout, target = Checkout(tmp_path, shapes_dir, LONG), "outputs/tiny/random-75/seed0/pretrain/metrics.json"
    checkout.snakemake("outputs/tiny/scratch/seed0/finetune/metrics.json")
    complete = tmp_path / "outputs/tiny/scratch/seed0/finetune/metrics.json"
    finished = complete.stat().st_mtime_ns
    newest = tmp_path / "outputs/tiny/random-75/seed0/pretrain/checkpoint.safetensors"

    def start_and_wait():
        """A Snakemake that has come further than the last one."""
        before = load_tensors(newest)[1]["epoch"] if newest.exists() else -1
        process = checkout.start(target, str(complete.relative_to(tmp_path)))
        wait_for(lambda: newest.exists() and load_tensors(newest)[1]["epoch"] > before)
        return process

    try:
        for victim in ("ipykernel_launcher", "papermill"):
            process = start_and_wait()
            for other in kernels(tmp_path):
                if any(victim in word for word in other.cmdline()):
                    other.kill()
            assert process.wait(60) != 0
            wait_for(lambda: not kernels(tmp_path))  # no orphan is left to write

        process = start_and_wait()
        running = recover(checkout)
        assert running.returncode != 0
        assert f"BusyError: Snakemake is running here, as process {process.pid}" in running.stderr
        assert "cannot be locked" in checkout.snakemake(target, check=False)  # a second one is told
        process.kill()
        process.wait()
        assert kernels(tmp_path)
        done = recover(checkout)
        assert done.returncode == 0, done.stderr
        assert not kernels(tmp_path)
        process = start_and_wait()
        process.kill()
        process.wait()
        assert complete.stat().st_mtime_ns == finished
    finally:
        for other in kernels(tmp_path):
            other.kill()


PAYLOAD = 'it\'s "<script>alert(1)</script>" $(touch pwned) `touch pwned`; touch pwned & <img src=x onerror=alert(1)>'


def test_a_hostile_study_runs_nothing_and_writes_nothing_elsewhere(tmp_path, shapes_dir):
    """Every string of a study that is not a name or a choice: it goes through YAML, the shell, papermill and the pages."""
    checkout = Checkout(tmp_path / "project", shapes_dir, STUDY)
    (checkout.folder / "own").mkdir()
    hostile = {"dataset": "shapes", "data_dir": f"own/{PAYLOAD.replace('/', ' ')}"}
    (checkout.folder / hostile["data_dir"]).symlink_to(shapes_dir)
    checkout.write(STUDY | {"cases": {"scratch": None}, "shared": STUDY["shared"] | hostile})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    checkout.snakemake()
    written = {path.relative_to(checkout.folder) for path in tmp_path.rglob("*") if path.is_file()} - {
        path.relative_to(checkout.folder) for path in before
    }
    assert not list(tmp_path.rglob("pwned"))
    own = {path for path in written if path.suffix != ".pyc" and path.parts[0] != ".snakemake"}
    assert {path.parts[:2] for path in own} == {("outputs", "tiny"), ("report", "tiny")}
    for page in (checkout.folder / "report" / "tiny").rglob("*.html"):
        assert "<script" not in page.read_text()
        assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", page.read_text())
