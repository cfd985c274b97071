"""A study survives a kill of a kernel, of papermill and of Snakemake."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from checkout import STUDY, Checkout

from mae_core.study.tensors import load_tensors

ON_CPU = STUDY["shared"] | {"device": "cpu"}  # runs on a GPU would wait for each other
LONG = {
    **STUDY,
    "shared": ON_CPU,
    "pretrain": {"epochs": 400, "checkpoint_seconds": 0.0},
    "cases": {"random-75": {}, "scratch": None},
}


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def kernels(folder):
    """The papermill and kernel processes that run in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            known = "ipykernel_launcher" in words or any(Path(word).name == "papermill" for word in words[:3])
            if known and Path(process.cwd()) == folder:
                found.append(process)
    return found


def recover(checkout):
    words = [sys.executable, "-m", "mae_core", "recover", "params/tiny.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.folder)}
    return subprocess.run(words, cwd=checkout.folder, env=environment, capture_output=True, encoding="utf-8")


def test_after_any_kill_the_study_goes_on_and_repeats_nothing(tmp_path, few_shapes_dir):
    """After kill -9 of a kernel, papermill or Snakemake, the same command resumes (Snakemake's needs ``recover``)."""
    checkout, target = Checkout(tmp_path, few_shapes_dir, LONG), "outputs/tiny/random-75/seed0/pretrain/metrics.json"
    complete = tmp_path / "outputs/tiny/scratch/seed0/finetune/metrics.json"
    trained = complete.with_name("history.json")  # not an output: Snakemake touches those when their job ends
    newest = tmp_path / "outputs/tiny/random-75/seed0/pretrain/checkpoint.safetensors"

    def epochs_done():
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # missing, or renamed while being read
            return load_tensors(newest)[1]["epoch"]
        return -1

    def start_and_wait():
        """Start Snakemake, and wait until it got further than the last one and its other run is complete."""
        before = epochs_done()
        process = checkout.start(target, str(complete.relative_to(tmp_path)))
        wait_for(lambda: epochs_done() > before and complete.exists() and len(kernels(tmp_path)) == 2)
        return process

    try:
        finished = None
        for victim in ("ipykernel_launcher", "papermill"):
            process = start_and_wait()
            finished = finished or trained.stat().st_mtime_ns
            for other in kernels(tmp_path):
                if any(victim in word for word in other.cmdline()):
                    other.kill()
            assert process.wait(60) != 0
            wait_for(lambda: not kernels(tmp_path))  # no orphan is left that could write

        process = start_and_wait()
        running = recover(checkout)
        assert running.returncode != 0
        assert f"BusyError: Snakemake is running here, as process {process.pid}" in running.stderr
        assert "cannot be locked" in checkout.snakemake(target, check=False)  # a second one is refused
        process.kill()
        process.wait()
        assert kernels(tmp_path)
        done = recover(checkout)
        assert done.returncode == 0, done.stderr
        assert not kernels(tmp_path)
        process = start_and_wait()
        process.kill()
        process.wait()
        assert trained.stat().st_mtime_ns == finished
    finally:
        for other in kernels(tmp_path):
            other.kill()
