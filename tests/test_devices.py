import gc
import mmap

import pytest
import torch

from mae_core import devices
from mae_core.parameters import PretrainParameters


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


def test_a_cast_leaves_the_model_as_it_is():
    model = torch.nn.Linear(4, 4)
    assert devices.cast(model, torch.float32) is model
    assert devices.cast(model, torch.bfloat16)(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32


VIT_T2 = {"patch_size": 2, "width": 192, "heads": 3, "decoder_width": 192, "precision": "bfloat16"}


@pytest.mark.parametrize(
    ("more", "workers", "images"),
    [
        ({**VIT_T2, "batch_size": 128}, 2, 16),  # 8 MiB hold 21 times 257 tokens of 768 values
        ({**VIT_T2, "batch_size": 256, "tiles": True}, 2, 64),  # 32 MiB hold 85 times
        ({**VIT_T2, "batch_size": 128, "precision": "float32", "tiles": True}, 1, 8),
        ({**VIT_T2, "batch_size": 16}, 2, 8),  # a share for each worker
        ({**VIT_T2, "batch_size": 128, "micro_batch": 50}, 1, 50),
        ({**VIT_T2, "batch_size": 128, "precision": "float32"}, 1, 8),
        ({"batch_size": 64}, 1, 64),
    ],
)
def test_a_cpu_computes_as_many_images_at_once_as_its_caches_like(more, workers, images, monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_tiles", lambda: more.get("tiles", False))
    torch.set_num_threads(workers)
    values = {name: value for name, value in more.items() if name != "tiles"}
    plan = devices.choose_plan(PretrainParameters(**values), torch.device("cpu"))
    torch.set_num_threads(1)
    assert (plan.workers, plan.images_at_once) == (workers, images)
    assert not plan.compiled
    assert ("large parts feed the tiles" in str(plan)) == (images == 64 and "tiles" in more)


def test_a_gpu_takes_the_whole_batch_and_compiles():
    plan = devices.choose_plan(PretrainParameters(batch_size=4096), torch.device("cuda"))
    assert (plan.workers, plan.images_at_once, plan.compiled) == (1, 4096, True)
    assert not devices.choose_plan(PretrainParameters(compile="off"), torch.device("cuda")).compiled
    assert not plan.graphs


def test_cuda_graphs_are_recorded_on_request():
    plan = devices.choose_plan(PretrainParameters(compile="graphs"), torch.device("cuda"))
    assert plan.compiled
    assert plan.graphs
    assert str(plan).endswith("; compiled, CUDA graphs (as asked)")
    assert not devices.choose_plan(PretrainParameters(compile="graphs"), torch.device("cpu")).graphs


def test_a_plan_says_what_it_picked_and_why():
    plan = devices.choose_plan(PretrainParameters(precision="float32", compile="on"), torch.device("cpu"))
    assert str(plan).startswith("cpu in float32 (as asked); 1 worker, 64 images at once (")
    assert str(plan).endswith("; compiled (as asked)")


def test_what_is_loaded_by_the_first_call_stays():
    gc.unfreeze()
    devices.set_up()
    frozen = gc.get_freeze_count()
    assert frozen > 10_000
    devices.set_up()  # in a notebook's second run: what the first left is still looked through
    assert gc.get_freeze_count() == frozen


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
    with mmap.mmap(-1, 2**28) as block:  # fresh pages, which torch's own freed memory cannot serve
        for start in range(0, 2**28, mmap.PAGESIZE):
            block[start] = 1
        assert devices.peak_memory(cpu) >= before + 2**27
    assert "thread" in devices.describe(cpu)
    with pytest.raises(ValueError, match=r"device is 'mps'|device is 'cuda'"):
        devices.choose_device("cuda" if not torch.cuda.is_available() else "mps")
