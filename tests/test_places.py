"""Other people's machines: a user without a home, a full quota, results elsewhere, a clock that is set back, two GPUs.

Most of these need root, to become another user or to mount a file system; the tests skip with a reason without it.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import STUDY, Checkout

from mae_core.errors import OutputError
from mae_core.study import results
from mae_core.study.parameters import PretrainParameters
from mae_core.training.runs import pretrain

ROOT = Path(__file__).parents[1]
USER = 12345  # without a name, a group or a home
LESS = STUDY | {"cases": {"random-75": {}}}
TWO_GPUS = "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-aaaa-11)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-bbbb-22)'\n"
SPY = """
import atexit, os, sys, time

def note():
    if "mae_core.training.runs" in sys.modules:
        with open(os.environ["SPY"], "a", encoding="utf-8") as file:
            print(began, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)

began = time.time()
atexit.register(note)
"""


@pytest.fixture
def root():
    if os.getuid():
        pytest.skip("needs root")


@pytest.fixture
def small_disk(root, tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this machine does not allow to mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_user_without_a_name_and_a_home_trains_in_a_notebook(root, tmp_path, few_shapes_dir):
    """As in many containers. The user may read everything here, and write into the project's folder only."""
    capability = "+dac_read_search"
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps", capability]
    become += ["--ambient-caps", capability]
    if shutil.which("setpriv") is None or subprocess.run([*become, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow to become another user")
    checkout = Checkout(tmp_path / "project", few_shapes_dir, LESS)
    for path in (checkout.folder, *checkout.folder.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    command, where = checkout.command("outputs/tiny/random-75/seed0/pretrain/metrics.json")
    where["env"] |= {"HOME": "/nonexistent"}
    for variable in ("USER", "LOGNAME", "USERNAME", "LNAME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        where["env"].pop(variable, None)
    shown = subprocess.run(
        [*become, "make", "--file", ROOT / "Makefile", "--eval", "show:; @env", "show"], **where, capture_output=True,
        encoding="utf-8", check=True,
    ).stdout.splitlines()  # fmt: skip
    where["env"] |= dict(line.split("=", 1) for line in shown if line.startswith(("LOGNAME=", "XDG_CACHE_HOME=")))
    done = subprocess.run([*become, *command], **where, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (checkout.folder / "outputs/tiny/random-75/seed0/pretrain/metrics.json").stat().st_uid == USER


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_quota_is_told_and_the_results_before_stay(tiny, monkeypatch, number):
    run = PretrainParameters.check(tiny)
    pretrain(run)
    folder = run.folder / "pretrain"
    before = {path: path.read_bytes() for path in folder.glob("*.json")}

    def full(descriptor):  # network file systems tell a full quota only here
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(OutputError, match=rf"\({os.strerror(number)}\): free some space"):
        pretrain(run)
    assert {path: path.read_bytes() for path in folder.glob("*.json")} == before


def test_a_run_on_a_full_disk_ends_with_one_sentence(small_disk, few_shapes_dir):
    (small_disk / "data").symlink_to(few_shapes_dir)
    (small_disk / "params").mkdir()
    shared = {"dataset": "shapes", "train_images": 256, "threads": 1, "width": 192, "decoder_width": 192}
    study = {"study": "tiny", "seeds": [0], "shared": shared, "pretrain": {"epochs": 1}, "finetune": {}, "cases": {"a": {}}}
    (small_disk / "params" / "tiny.yaml").write_text(str(study), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mae_core", "train", "params/tiny.yaml", "a", "0", "pretrain"], cwd=small_disk,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(
        r"OutputError: results cannot be written to .*No space left.*: free some space.*\n", done.stderr[-400:]
    )
    assert not list(small_disk.glob("outputs/**/*.json"))


@pytest.mark.slow
def test_outputs_may_be_a_link_to_another_file_system_and_a_clock_may_be_set_back(tmp_path, few_shapes_dir):
    """Weights that seem to come from the future repeat no run, for their date is corrected before they are used."""
    checkout = Checkout(tmp_path / "project", few_shapes_dir, LESS)
    scratch = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    scratch /= f"mae-test-{os.getpid()}"
    scratch.mkdir()
    try:
        (checkout.folder / "outputs").symlink_to(scratch)
        folder = scratch / "tiny" / "random-75" / "seed0"
        checkout.snakemake("outputs/tiny/random-75/seed0/pretrain/metrics.json")
        for name in ("metrics.json", "weights.safetensors"):
            os.utime(folder / "pretrain" / name, (time.time() + 3600,) * 2)
        target = "outputs/tiny/random-75/seed0/finetune/metrics.json"
        checkout.snakemake(target)
        assert (folder / "finetune" / "metrics.json").exists()
        assert "Nothing to be done" in checkout.snakemake("-n", target)
    finally:
        shutil.rmtree(scratch)


@pytest.mark.slow
def test_two_gpus_are_shared_by_the_runs_of_a_study(tmp_path, few_shapes_dir, monkeypatch):
    """A stand-in tells of two GPUs; each of three runs notes which one it saw, and when. They compute on the CPU."""
    for name, text in (("bin/nvidia-smi", TWO_GPUS), ("spy/sitecustomize.py", SPY)):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    cases = {"a": {"mask_ratio": 0.7}, "b": {"mask_ratio": 0.8}, "c": {"mask_ratio": 0.9}}
    checkout = Checkout(tmp_path / "project", few_shapes_dir, STUDY | {"cases": cases})
    command, where = checkout.command(
        *(f"outputs/tiny/{case}/seed0/pretrain/metrics.json" for case in cases), "--cores", "4"
    )
    environment = where["env"]
    environment |= {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}", "SPY": str(tmp_path / "seen")}
    environment |= {"PYTHONPATH": f"{checkout.folder}{os.pathsep}{tmp_path / 'spy'}", "TMPDIR": str(tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(command, **where, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [line.split() for line in (tmp_path / "seen").read_text(encoding="utf-8").splitlines()]
    assert {gpu for *_, gpu in seen} == {"GPU-aaaa-11", "GPU-bbbb-22"}
    moments = [float(moment) for began, ended, _ in seen for moment in (began, ended)]
    at_once = [[gpu for began, ended, gpu in seen if float(began) <= moment <= float(ended)] for moment in moments]
    assert max(len(gpus) for gpus in at_once) == 2  # of three runs one waits
    told = [(checkout.folder / f"outputs/tiny/{case}/seed0/pretrain/log.txt").read_text(encoding="utf-8") for case in cases]
    assert all("takes GPU" in text and "of 2" in text for text in told)
