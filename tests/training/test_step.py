"""A training step is one graph for torch's compiler, waits for nothing, and stays on its device."""

import dataclasses
import functools

import pytest
import torch
import torch._dynamo.testing
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mae_core import devices
from mae_core.data.images import Split
from mae_core.model import mae, vit
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.training import objective
from mae_core.training.loop import new_step
from mae_core.training.optimizer import new_optimizer
from mae_core.training.plan import choose_plan

SMALL = {"width": 24, "depth": 2, "decoder_width": 24, "decoder_depth": 2, "batch_size": 32, "augment": "crop-flip"}
PARTS = {"layer_decay": 0.75, "drop_path": 0.2, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "pooling": "mean"}
CASES = {
    "finetune": {},
    "all parts": PARTS,
    "mask-tokens": {"mask_tokens_in_encoder": True},
    **{strategy: {"mask_strategy": strategy, "norm_pix": True} for strategy in ("random", "block", "grid")},
}
EVERYWHERE = pytest.mark.parametrize("case", CASES)
VARIANTS = pytest.mark.parametrize("variant", ["report", "paper"])


def start(case, device="cpu", optimizer=new_optimizer, compiled=False, **more):
    """A model, and a function that takes the step of a number."""
    finetunes = case in ("finetune", "all parts")
    run = (FinetuneParameters if finetunes else PretrainParameters).check({**SMALL, **CASES[case], **more})
    device = torch.device(device)
    torch.manual_seed(0)
    images_nCHW = torch.randint(256, (96, 3, 32, 32), dtype=torch.uint8)
    train = Split(images_nCHW.to(device), torch.randint(10, (96,)).to(device), ())
    order_n = torch.randperm(96).to(device)
    model = (mae.Classifier if finetunes else mae.MaskedAutoencoder)(run.model).to(device)
    purpose = objective.classification(run, 10) if finetunes else objective.reconstruction(run)
    plan = dataclasses.replace(choose_plan(run, device), compiled=compiled)
    fake = isinstance(order_n, torch._subclasses.FakeTensor)  # no generator lives on a device that is not there
    generator = None if fake else torch.Generator(device).manual_seed(0)
    step = new_step(model, purpose, train, run, plan, optimizer(model, run), generator)
    losses_S = torch.zeros(3, device=device)

    def take_step(number):
        losses_S[number] = step(order_n[number * run.batch_size :][: run.batch_size], 1e-3)
        return losses_S

    return model, take_step


aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_consecutive}
# What torch's use_deterministic_algorithms lists as without an order of additions on CUDA, and a training step could use.
UNORDERED = {
    aten.reflection_pad1d_backward, aten.reflection_pad2d_backward, aten.upsample_bicubic2d_backward,
    aten.nll_loss2d_forward, aten.nll_loss2d_backward, aten.histc, aten.median, aten.put, aten.put_,
    aten.grid_sampler_2d_backward, aten._adaptive_avg_pool2d_backward, aten.avg_pool3d_backward,
}  # fmt: skip
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Watch(TorchDispatchMode):
    """Fails at what makes the host wait for a device, and at tensors on another one; counts operations and bytes."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.device, self.operations, self.bytes = device, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = func.overloadpacket
        assert kind not in WAITS, f"{func} waits for the device"
        assert kind not in UNORDERED, f"{func} gives other bits every time on CUDA"
        if kind in INDEXED:
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), f"{func} by a mask waits for the device"
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        assert all(t.device.type == self.device for t in tensors), f"{func} on {[str(t.device) for t in tensors]}"
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if func.namespace == "aten" and not view and "empty" not in func.name() and kind is not aten._unsafe_view:
            self.operations += 1
            self.bytes += sum(occupied(t) for t in tensors)
        return result


def occupied(tensor):
    """Bytes of a tensor, each place of an expanded one once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return functools.reduce(int.__mul__, sizes, tensor.element_size())


def take_as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(mae.F, "embedding", lambda ids_BK, rows_ND: mae.SharedRows.apply(rows_ND, ids_BK))


@EVERYWHERE
@VARIANTS
def test_a_step_waits_for_nothing(case, variant):
    _, take_step = start(case, variant=variant)
    with Watch():
        for number in range(2):
            take_step(number)


@pytest.mark.gpu
@EVERYWHERE
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_itself_sees_no_wait(case, compiled):
    _, take_step = start(case, "cuda", compiled=compiled)
    take_step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@EVERYWHERE
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_gives_the_same_bits_again_on_request(case, compiled):
    devices.set_up(deterministic=True)
    try:
        found = []
        for _ in range(2):
            # so many patches that fused attention adds up several blocks of them
            shape = {"patch_size": 2, "width": 128, "heads": 2, "decoder_width": 128, "decoder_heads": 2}
            model, take_step = start(case, "cuda", compiled=compiled, batch_size=16, **shape)
            losses_S = [take_step(number).clone() for number in range(3)][-1]
            found.append([losses_S, *(weight.detach().clone() for weight in model.parameters())])
    finally:
        devices.set_up()
    assert all(first.equal(second) for first, second in zip(*found, strict=True))


@pytest.fixture
def fake(monkeypatch):
    """Tensors with a shape and a device, but no values; modules of them can be copied and converted."""

    def to(module, target):
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                part._parameters[name] = torch.nn.Parameter(parameter.detach().to(target))
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = buffer.to(target)
        return module

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    monkeypatch.setattr(torch, "_sample_dirichlet", lambda alphas, generator: alphas / alphas.sum())  # not made for these
    with FakeTensorMode() as mode:
        yield mode


@EVERYWHERE
@VARIANTS
def test_every_tensor_of_a_step_is_on_its_device(fake, monkeypatch, case, variant):
    """On CUDA without its backward pass, which needs a driver; that one on the device that is only a name."""
    on_meta = start(case, "meta", lambda model, run: torch.optim.SGD(model.parameters()), variant=variant)[1]
    with Watch("meta"):
        on_meta(0)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, weights: [torch.zeros_like(w) for w in weights])
    on_cuda = start(case, "cuda", precision="bfloat16", variant=variant)[1]
    with Watch("cuda"):
        on_cuda(0)


@pytest.mark.parametrize(("case", "most"), [("random", 550), ("finetune", 450)])
def test_a_step_starts_at_most_so_many_operations(fake, monkeypatch, case, most):
    """Those that a GPU's step starts when not compiled, counted on a CPU that goes the GPU's ways; -s prints them."""
    monkeypatch.setattr(vit, "ONEDNN_LINEAR", None)
    take_as_on_a_gpu(monkeypatch)
    vit_t2 = {"patch_size": 2, "width": 192, "depth": 12, "heads": 3, "decoder_width": 192, "decoder_heads": 3}
    _, take_step = start(case, attention="fused", precision="bfloat16", micro_batch=32, **vit_t2)
    take_step(0)
    with Watch() as watch:
        take_step(1)
    print(f"\n{case}: {watch.operations} operations a step, {watch.bytes / 32 / 1e6:.2f} MB an image")
    assert watch.operations <= most


@pytest.mark.parametrize("attention", ["explicit", "fused"])
@pytest.mark.parametrize("case", ["finetune", "all parts", "random", "random as on a GPU"])
def test_a_compiled_step_is_one_graph_compiled_once(monkeypatch, case, attention):
    case, _, on_gpu = case.partition(" as ")
    if on_gpu:
        take_as_on_a_gpu(monkeypatch)
    torch._dynamo.reset()
    torch.set_num_threads(2)  # two workers: one compiles for both
    compiler = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler, fullgraph=True))
    how = {"attention": attention, "precision": "float32", "micro_batch": 12}
    (plain, plain_step), (model, take_step) = (start(case, compiled=compiled, **how) for compiled in (False, True))
    for number in range(3):
        expected, found = plain_step(number), take_step(number)
    assert compiler.frame_count == 2  # for parts of 12 images, and for the last 8 of a batch
    torch.testing.assert_close(found, expected)
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), weight, rtol=0, atol=1e-4)


def test_many_runs_of_a_process_are_compiled(monkeypatch):
    """They share the code of their loss, of which torch compiles eight kinds unless told otherwise."""
    torch._dynamo.reset()
    compiler = torch._dynamo.testing.CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    for n in range(10):
        _, take_step = start(
            "random", compiled=True, precision="float32", threads=1, width=8 + 8 * n, decoder_width=8 + 8 * n
        )
        take_step(0)
    assert compiler.frame_count >= 10
