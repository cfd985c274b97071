"""Which GPU a run takes, with a stand-in for nvidia-smi: no GPU is needed."""

import contextlib
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

from mae_core import gpus, locks
from mae_core.errors import ParameterError

TWO = "GPU 0: NVIDIA H200 (UUID: GPU-aaaa-11)\nGPU 1: NVIDIA H200 (UUID: GPU-bbbb-22)\n"
PARTED = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa-11)
  MIG 3g.71gb     Device  0: (UUID: MIG-cccc-33)
  MIG 3g.71gb     Device  1: (UUID: MIG-dddd-44)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb-22)
"""
CLAIM = """
import os, sys
from mae_core import gpus
with gpus.claimed("cuda"):
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that gives this machine what ``nvidia-smi -L`` tells; locks lie in a folder of the test."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(gpus, "TAKEN", {})
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)

    def tell(text):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\ncat <<'end'\n{text}end\n", encoding="utf-8")
        path.chmod(0o755)

    return tell


def another_run():
    """A process that claims a GPU, says which, and keeps it until its input is closed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    environment = {**os.environ, "PYTHONPATH": str(Path(gpus.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", CLAIM], **pipes, env=environment)
    return process, process.stdout.readline().strip(), process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("listed", "given", "expected"),
    [
        (TWO, None, {"GPU-aaaa-11": "GPU-aaaa-11", "GPU-bbbb-22": "GPU-bbbb-22"}),
        (TWO, "1", {"1": "GPU-bbbb-22"}),
        (TWO, "1, 0", {"1": "GPU-bbbb-22", "0": "GPU-aaaa-11"}),
        (TWO, "GPU-bbbb", {"GPU-bbbb": "GPU-bbbb-22"}),
        (TWO, "0,7,1", {"0": "GPU-aaaa-11"}),
        (TWO, "GPU-", {}),  # not one GPU's name
        (TWO, "-1", {}),
        (TWO, "", {}),
        (PARTED, None, {name: name for name in ("MIG-cccc-33", "MIG-dddd-44", "GPU-bbbb-22")}),
        (PARTED, "MIG-dddd-44", {"MIG-dddd-44": "MIG-dddd-44"}),
        (PARTED, "0,1", {"0": "MIG-cccc-33", "1": "GPU-bbbb-22"}),
        ("No devices were found\n", None, {}),
        ("", "0", {}),
    ],
)
def test_what_a_scheduler_gave_is_respected(machine, monkeypatch, listed, given, expected):
    machine(listed)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible() == expected
    assert list(gpus.visible()) == list(expected)


def test_without_nvidia_smi_there_are_no_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.visible() == {}


def test_each_run_takes_a_gpu_of_its_own_and_a_killed_one_frees_its_gpu(machine, monkeypatch, capsys):
    machine(TWO)
    first, told, seen = another_run()
    assert (told, seen) == ("takes GPU 1 of 2 (GPU-aaaa-11)", "GPU-aaaa-11")
    second, told, seen = another_run()
    assert (told, seen) == ("takes GPU 2 of 2 (GPU-bbbb-22)", "GPU-bbbb-22")

    def end_first(seconds):
        first.kill()
        first.wait()

    monkeypatch.setattr(gpus, "time", types.SimpleNamespace(sleep=end_first))  # called while no GPU is free
    with gpus.claimed("auto"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-11"
    assert capsys.readouterr().out.splitlines() == [
        "other runs have the GPUs (GPU-aaaa-11, GPU-bbbb-22): waiting for one",
        "takes GPU 1 of 2 (GPU-aaaa-11)",
    ]
    second.communicate("")


def test_a_gpu_is_free_again_after_the_run_and_after_an_error(machine, monkeypatch):
    machine(TWO)
    for _ in range(3):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with contextlib.suppress(OSError), gpus.claimed("cuda"):
            raise OSError("a fault")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-11"


def test_a_run_of_two_processes_waits_for_two_gpus_and_holds_none_meanwhile(machine, monkeypatch, capsys):
    machine(TWO)
    first, *_ = another_run()
    second = []

    def end_first(seconds):
        second.append(another_run())  # finds the GPU that the waiting run has given back
        assert second[0][2] == "GPU-bbbb-22"
        for process in (first, second[0][0]):
            process.kill()
            process.wait()

    monkeypatch.setattr(gpus, "time", types.SimpleNamespace(sleep=end_first))
    with gpus.claimed("cuda", 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-11,GPU-bbbb-22"
    assert len(second) == 1
    assert "waiting for 2" in capsys.readouterr().out
    with pytest.raises(ParameterError, match="processes is 3: each needs a GPU of its own, and there are 2 here"):
        gpus.claimed("cuda", 3).__enter__()


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_run_on_another_device_takes_none(machine, device):
    machine(TWO)
    with gpus.claimed(device):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_where_locks_are_not_possible_it_is_the_first_gpu_and_a_sentence(machine, monkeypatch, capsys, tmp_path):
    machine(TWO)
    monkeypatch.setattr(locks, "acquire", lambda file, wait: False)
    with gpus.claimed("cuda"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-11"
    assert "cannot be locked (its file system has no locks)" in capsys.readouterr().out
    monkeypatch.undo()
    victim = tmp_path / "victim"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for uuid in ("one", "two"):  # a link that somebody laid there is not followed
        (tmp_path / f"mae-core-{os.getuid()}-{uuid}.lock").symlink_to(victim)
    with contextlib.ExitStack() as locked:
        assert gpus.free({"1": "one", "2": "two"}, 1, locked) == ["1"]
    assert not victim.exists()


def test_several_processes_have_all_gpus_though_a_run_before_took_one(machine, monkeypatch):
    machine(TWO)
    with gpus.claimed("auto"):
        pass
    with gpus.claimed("auto", 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-11,GPU-bbbb-22"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-11"  # CUDA in this process may have started with it
    with gpus.claimed("auto"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-11"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # by hand, between two runs
    with pytest.raises(ParameterError, match="there are 1 here"):
        gpus.claimed("auto", 2).__enter__()


def test_after_a_run_of_several_processes_the_model_opens_on_one_of_their_gpus(machine):
    machine(TWO)
    with gpus.claimed("cuda", 2):
        pass
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-11,GPU-bbbb-22"


def test_what_a_scheduler_gave_holds_for_several_processes_after_a_run_of_one(machine, monkeypatch):
    machine(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with gpus.claimed("auto"):
        pass
    with pytest.raises(ParameterError, match="there are 1 here"):
        gpus.claimed("auto", 2).__enter__()


def test_a_torch_without_cuda_takes_no_gpu(machine, monkeypatch):
    machine(TWO)
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    with gpus.claimed("auto", 3):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
