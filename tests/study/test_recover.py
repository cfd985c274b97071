"""Which kernels have lost the process that started them, and whose Snakemake is running here."""

import contextlib
import os
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest

from mae_core.errors import BusyError
from mae_core.study import recover
from mae_core.study.recover import is_lost

ROOT = Path(__file__).parents[2]
WAIT = "import sys; print(flush=True); sys.stdin.read()"


@pytest.fixture
def kernel():
    """A function that starts a stand-in for a kernel with this process as its starter."""
    started = []

    def start(starter):
        environment = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
        environment |= {} if starter is None else {"JPY_PARENT_PID": str(starter)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", WAIT], env=environment, **pipes))
        started[-1].stdout.readline()
        return psutil.Process(started[-1].pid)

    yield start
    for process in started:
        process.communicate()


def test_a_kernel_is_lost_once_its_starter_has_ended(kernel):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_lost(kernel(ended.pid))  # whoever has adopted it: process 1 or another
    assert not is_lost(kernel(os.getpid()))


def test_a_worker_of_a_living_kernel_is_not_lost(kernel):
    starter = os.getppid()  # alive, and not the parent of the worker, which inherits its kernel's environment
    assert not is_lost(kernel(starter))


def test_what_does_not_name_its_starter_is_not_lost(kernel):
    assert not is_lost(kernel(None))
    assert not is_lost(kernel("none"))


def test_a_lock_that_stays_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(recover, "check_nobody_runs", lambda folder: None)
    failed = types.SimpleNamespace(returncode=1, stderr="Unlocking\nPermission denied\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    told = r"could not be removed \(Permission denied\): remove the folder .snakemake/locks yourself$"
    with pytest.raises(BusyError, match=told):
        recover.recover(ROOT / "params" / "smoke.yaml", tmp_path)


@pytest.mark.parametrize("locked", [False, True])
def test_another_users_snakemake_counts_only_with_a_lock_here(tmp_path, monkeypatch, locked):
    """Its working folder cannot be read."""
    ours = psutil.Process()
    monkeypatch.setattr(recover, "processes", lambda: [(ours, ["python", "/usr/bin/snakemake"], None)])
    recover.check_nobody_runs(tmp_path)
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.touch()
    if not locked:
        monkeypatch.setattr(psutil.Process, "uids", lambda self: types.SimpleNamespace(real=lock.stat().st_uid + 1))
    with pytest.raises(BusyError, match=f"process {ours.pid}") if locked else contextlib.nullcontext():
        recover.check_nobody_runs(tmp_path)
