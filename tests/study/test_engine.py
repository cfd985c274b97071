"""How papermill starts notebooks: kernels without ports, and signals that reach them."""

import os
import signal
import subprocess
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path

import nbformat
import papermill.engines  # noqa: F401 (first, because it imports the engine)
import pytest
from starts import command, failed_starts, write_notebook

from mae_core.study import engine

WHAT_THE_KERNEL_SEES = """
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
print(app.transport, app.ip)
"""
WAIT_FOR_SIGTERM = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("saved").touch())
pathlib.Path("ready").touch()
while not pathlib.Path("saved").exists():
    time.sleep(0.01)
raise RuntimeError("stopped at a checkpoint")
"""


@pytest.fixture(autouse=True, scope="module")
def _installed():
    if "mae-core" not in {found.name for found in entry_points(group="papermill.engine")}:
        pytest.skip("papermill does not know the engine of this package yet: pip install -e .")


def execute(folder, source, **more):
    """Start papermill on a notebook of one cell; its output is read when it ends."""
    write_notebook(folder / "in.ipynb", source)
    return subprocess.Popen(
        [*command(), "in.ipynb", "out.ipynb", "--log-output"], cwd=folder, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **more},
    )  # fmt: skip


def test_a_kernel_talks_by_sockets_in_a_folder_of_its_own_which_is_gone_afterwards(tmp_path):
    """And ipykernel's warning about TCP without encryption is gone from the log."""
    process = execute(tmp_path, WHAT_THE_KERNEL_SEES, XDG_RUNTIME_DIR=str(tmp_path))
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 0, told
    assert f"ipc {tmp_path}/mae-" in told
    assert "encryption" not in told
    assert not list(tmp_path.glob("mae-*"))


def test_no_start_fails_if_many_start_at_once(tmp_path):
    assert failed_starts(tmp_path, total=8, at_once=8) == []


def test_a_temporary_folder_with_a_long_path_is_passed_over(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with engine.sockets() as channel:
        assert channel["transport"] == "ipc"
        assert not channel["ip"].startswith(str(long))
        assert len(f"{channel['ip']}-5") < 104  # bytes, on macOS; 108 on Linux
        assert Path(channel["ip"]).parent.stat().st_mode & 0o077 == 0
    assert not Path(channel["ip"]).parent.exists()


def test_without_sockets_the_kernel_uses_ports_and_papermill_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*args, **more):
        raise OSError("no sockets here")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with engine.sockets() as channel:
        assert channel == {}
    assert capsys.readouterr().err == "no temporary folder holds Unix sockets, so the kernel uses TCP ports: set TMPDIR\n"


def test_sigterm_reaches_the_kernel_and_papermill_saves_the_notebook(tmp_path):
    process = execute(tmp_path, WAIT_FOR_SIGTERM)
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode > 0  # an exit code of papermill's own, not a death by the signal
    assert "stopped at a checkpoint" in nbformat.reads((tmp_path / "out.ipynb").read_text(), 4).cells[-1].outputs[-1].evalue


def test_the_handler_of_sigterm_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with engine.signals_passed_on():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
