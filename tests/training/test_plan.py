import pytest
import torch

from mae_core.study.parameters import PretrainParameters
from mae_core.training.plan import choose_plan

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
    monkeypatch.setattr("mae_core.training.plan.cpu_has_tiles", lambda: more.get("tiles", False))
    torch.set_num_threads(workers)
    values = {name: value for name, value in more.items() if name != "tiles"}
    plan = choose_plan(PretrainParameters(**values), torch.device("cpu"))
    torch.set_num_threads(1)
    assert (plan.workers, plan.images_at_once) == (workers, images)
    assert not plan.compiled
    assert ("large parts feed the tiles" in str(plan)) == (images == 64 and "tiles" in more)


def test_a_gpu_takes_the_whole_batch_and_compiles():
    plan = choose_plan(PretrainParameters(batch_size=4096), torch.device("cuda"))
    assert (plan.workers, plan.images_at_once, plan.compiled) == (1, 4096, True)
    assert not choose_plan(PretrainParameters(compile="off"), torch.device("cuda")).compiled
    assert not plan.graphs


def test_cuda_graphs_are_recorded_on_request():
    plan = choose_plan(PretrainParameters(compile="graphs"), torch.device("cuda"))
    assert plan.compiled
    assert plan.graphs
    assert str(plan).endswith("; compiled, CUDA graphs (as asked)")
    assert not choose_plan(PretrainParameters(compile="graphs"), torch.device("cpu")).graphs


def test_without_a_c_compiler_a_gpu_runs_uncompiled_and_the_plan_says_so(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    plan = choose_plan(PretrainParameters(), torch.device("cuda"))
    assert not plan.compiled
    assert "not compiled (no C compiler here)" in str(plan)
    assert choose_plan(PretrainParameters(compile="on"), torch.device("cuda")).compiled
    monkeypatch.setenv("CC", "cc")
    assert choose_plan(PretrainParameters(), torch.device("cuda")).compiled


def test_a_plan_says_what_it_picked_and_why():
    plan = choose_plan(PretrainParameters(precision="float32", compile="on"), torch.device("cpu"))
    assert str(plan).startswith("cpu in float32 (as asked); 1 worker, 64 images at once (")
    assert str(plan).endswith("; compiled (as asked)")
