import shutil
import threading

import pytest
import torch

from mae_core.evaluation import reconstruction
from mae_core.model.config import ModelConfig
from mae_core.model.mae import Classifier, MaskedAutoencoder, masked_error
from mae_core.model.masking import sample_mask
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import read_json
from mae_core.training import objective
from mae_core.training.loop import compile_loss
from mae_core.training.replicas import Replicas
from mae_core.training.runs import pretrain

CONFIG = ModelConfig(patch_size=4, width=32, depth=2, heads=2, decoder_width=32, decoder_depth=2, decoder_heads=2)


def loss_of(model, images_BCHW, mask):
    return masked_error(model(images_BCHW, mask, masked_only=True), images_BCHW, mask, 4)


def batch(n=24):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 32, 32, generator=generator) * 2 - 1, sample_mask("random", 0.75, n, 8, generator)


def model():
    torch.manual_seed(0)
    return MaskedAutoencoder(CONFIG)


def gradients(workers, precision=torch.float32, images_at_once=5):
    trained = model()
    loss = Replicas(trained, precision, workers, loss_of).compute_gradients(*batch(), images_at_once)
    return loss, torch.cat([p.grad.flatten() for p in trained.parameters()])


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("images_at_once", [5, 24, 100])
def test_gradients_are_those_of_the_whole_batch(workers, images_at_once):
    plain = model()
    images_BCHW, mask = batch()
    expected = masked_error(plain(images_BCHW, mask), images_BCHW, mask, 4)  # of all patches: the last block as well
    expected.backward()
    loss, found = gradients(workers, images_at_once=images_at_once)
    wanted = torch.cat([p.grad.flatten() for p in plain.parameters()])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (found - wanted).norm() / wanted.norm() < 1e-5


def test_bfloat16_copies_give_float32_gradients_near_those_of_float32():
    (exact_loss, exact), (loss, found) = gradients(2), gradients(2, torch.bfloat16)
    assert found.dtype == torch.float32
    assert loss.item() == pytest.approx(exact_loss.item(), rel=5e-3)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.999


def test_workers_give_the_same_bits_every_time():
    first, again = gradients(3, torch.bfloat16), gradients(3, torch.bfloat16)
    assert first[0].equal(again[0])
    assert first[1].equal(again[1])


def test_copies_follow_the_weights():
    trained = model()
    replicas = Replicas(trained, torch.bfloat16, 2, loss_of)
    before = replicas.compute_gradients(*batch(), 5)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    after = replicas.compute_gradients(*batch(), 5)
    images_BCHW, mask = batch()
    assert after.item() == pytest.approx(masked_error(torch.zeros(24, 64, 48), images_BCHW, mask, 4).item(), rel=1e-5)
    assert before != after
    assert all(p.dtype == torch.float32 for p in trained.parameters())


def test_one_thread_a_worker_leaves_the_caller_its_threads():
    torch.set_num_threads(2)
    gradients(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_worker_is_the_caller_and_several_have_one_thread_each(workers):
    seen = []

    def watched(copy, x, drawn):
        seen.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return copy(x).mean()

    torch.set_num_threads(2)
    images = torch.rand(24, 3)
    Replicas(torch.nn.Linear(3, 2), torch.float32, workers, watched).compute_gradients(images, images, 5)
    torch.set_num_threads(1)
    assert set(seen) == {(True, 2) if workers == 1 else (False, 1)}


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("images_at_once", [5, 100])
def test_dropped_paths_and_mixed_images_do_not_depend_on_the_workers(workers, images_at_once):
    run = FinetuneParameters(depth=2, width=32, decoder_width=32, drop_path=0.5, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    purpose = objective.classification(run, 10)
    torch.manual_seed(0)
    model = Classifier(run.model)
    images_BCHW, _ = batch()
    images_BCHW, targets = purpose.draw(images_BCHW, torch.arange(24) % 10, torch.Generator().manual_seed(0))
    logits_BK = model(images_BCHW, targets.paths_BL2)
    losses_B = -(0.9 * targets.classes + 0.01) * logits_BK.log_softmax(1)  # label smoothing of 0.1 over ten classes
    expected = losses_B.sum(1).mean()
    wanted = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(expected, list(model.parameters()))])
    replicas = Replicas(model, torch.float32, workers, purpose.loss_of)
    loss = replicas.compute_gradients(images_BCHW, targets, images_at_once)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (found - wanted).norm() / wanted.norm() < 1e-5


class Sum(torch.nn.Module):
    """Two weights that enter as their sum: autograd gives one tensor as the gradient of both."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("workers", [1, 2])
def test_weights_that_share_a_gradient_get_it_once_each(workers):
    summed, images = Sum(), torch.arange(12.0).reshape(4, 3)
    replicas = Replicas(
        summed, torch.float32, workers, lambda copy, x, drawn: (x * (copy.first + copy.second)).sum() / len(x)
    )
    loss = replicas.compute_gradients(images, images, 1)
    assert loss.item() == pytest.approx(2 * images.mean(0).sum().item())
    assert summed.first.grad.tolist() == summed.second.grad.tolist() == pytest.approx(images.mean(0).tolist())


@pytest.mark.slow
def test_fast_and_plain_training_have_the_same_curve_on_cifar10(tiny, cifar10_dir, monkeypatch):
    """Same seed, bfloat16 copies against float32: every epoch's loss within 1 %."""
    monkeypatch.setattr(reconstruction, "reconstruction_metrics", lambda *words: {})  # of all test images: not needed here
    values = {
        **tiny, "dataset": "cifar10", "data_dir": str(cifar10_dir), "train_images": 2048, "epochs": 4,
        "width": 48, "depth": 2, "decoder_width": 48,
    }  # fmt: skip
    curves = []
    for precision in ("bfloat16", "float32"):
        run = PretrainParameters.check({**values, "case": precision, "precision": precision})
        pretrain(run)
        curves.append(read_json(run.folder / "pretrain" / "history.json")["train_loss"])
    assert curves[0] == pytest.approx(curves[1], rel=0.01)
    assert curves[0][-1] < 0.7 * curves[0][0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_has_the_same_curve(tiny):
    curves = []
    for compile in ("off", "on"):
        run = PretrainParameters.check({**tiny, "case": compile, "compile": compile, "precision": "float32"})
        pretrain(run)
        curves.append(read_json(run.folder / "pretrain" / "history.json")["train_loss"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_gradients_are_the_same_with_cuda_graphs(device):
    layer = torch.nn.Linear(3 * 32 * 32, 5).to(device)
    images_BCHW, numbers_B5 = batch()[0].to(device), torch.arange(24 * 5.0, device=device).view(24, 5)
    found = []

    def error(copy, images_BCHW, numbers_B5):
        return (copy(images_BCHW.flatten(1)) - numbers_B5).square().mean()

    for loss in (error, *[compile_loss(error, graphs=True)] * 3):  # a graph is warmed up, recorded, replayed
        value = Replicas(layer, torch.float32, 1, loss).compute_gradients(images_BCHW, numbers_B5, 12)
        found.append((value, torch.cat([p.grad.flatten() for p in layer.parameters()])))
    for value, gradient in found[1:]:
        assert value.item() == pytest.approx(found[0][0].item(), rel=1e-4)
        assert (gradient - found[0][1]).norm() < 1e-3 * gradient.norm()
