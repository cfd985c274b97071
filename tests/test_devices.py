import contextlib

import pytest
import torch

from mae_core import devices


def test_auto_takes_what_is_there():
    device = devices.choose_device("auto")
    if torch.cuda.is_available():
        assert device.type == "cuda"
    elif torch.backends.mps.is_available():
        assert device.type == "mps"
    else:
        assert device.type == "cpu"
    assert devices.choose_device("cpu").type == "cpu"


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert devices.choose_precision("float32", cpu) == torch.float32
    assert devices.choose_precision("bfloat16", cpu) == torch.bfloat16
    assert devices.choose_precision("auto", torch.device("mps")) == torch.float32
    expected = torch.bfloat16 if devices.cpu_has_bfloat16() else torch.float32
    assert devices.choose_precision("auto", cpu) == expected


def test_autocast_is_for_less_than_float32():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    assert isinstance(devices.autocast(torch.device("cpu"), torch.float32), contextlib.nullcontext)
    with devices.autocast(torch.device("cpu"), torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_threads_are_set():
    before = torch.get_num_threads()
    devices.set_up(threads=1)
    assert torch.get_num_threads() == 1
    devices.set_up(threads=0)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_memory_and_name_are_told():
    cpu = torch.device("cpu")
    devices.reset_peak_memory(cpu)
    before = devices.peak_memory(cpu)
    assert before > 2**20
    block = torch.ones(2**26)
    assert devices.peak_memory(cpu) >= before + block.nbytes // 2
    assert "thread" in devices.describe(cpu)
    with pytest.raises(ValueError, match=r"device is 'mps'|device is 'cuda'"):
        devices.choose_device("cuda" if not torch.cuda.is_available() else "mps")
