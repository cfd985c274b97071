"""The contestants: one training step of each model, as its users would write it.

All contestants use uint8 images in memory, random batch indices, and the same width, depth, patch size and batch size.
Ours runs the training steps of the notebooks. A peer runs a minimal loop around its own model and loss, with a fused
optimizer step and otherwise default settings; it has no data loader and no augmentation, whereas ours crops and flips.
A tuned peer also uses those of our settings that take a line or two: see :func:`tune`. lightly has no classifier of its
own; it fine-tunes timm's, which also takes part under its own name where lightly is not installed.

Shapes: B batch, C = 3 colours, H = W pixels.
"""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core import devices
from mae_core.data.images import Split, load, scale_pixels
from mae_core.evaluation.classification import class_scores
from mae_core.model.mae import Classifier, MaskedAutoencoder
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.training import loop, runs
from mae_core.training.objective import classification, reconstruction
from mae_core.training.optimizer import new_optimizer
from mae_core.training.plan import choose_plan
from mae_core.training.processes import Team, team
from mae_core.training.replicas import Replicas

N_IMAGES = 4096  # in memory; steps draw their batches from these
EPOCH_STEPS = 16  # of the task "epoch": with 4, starting and ending an epoch takes a tenth of it; CIFAR-10 has 390
MLP_RATIO = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, its images (pixels) and a batch; the defaults are the student's ViT-T/2."""

    image_size: int = 32
    patch_size: int = 2
    width: int = 192
    depth: int = 12
    heads: int = 3
    decoder_depth: int = 4
    batch_size: int = 128


@dataclass(frozen=True)
class Contestant:
    """An implementation, its task and its settings."""

    name: str  # ours, transformers, lightly, timm
    task: str  # pretrain, mask tokens, finetune, evaluate, epoch, steps alone
    precision: str  # float32, bfloat16
    compiled: bool
    shape: Shape = Shape()
    threads: int = 0
    device: str = "auto"
    tuned: bool = False  # a peer, after :func:`tune`
    graphs: bool = False  # compiled, and recorded as CUDA graphs
    deterministic: bool = False  # ours, with the same bits every time
    processes: int = 1  # ours, each on its part of the batch; on the CPU

    @property
    def label(self) -> str:
        compiled = ", compiled" * self.compiled + " with graphs" * self.graphs
        more = ", tuned" * self.tuned + ", deterministic" * self.deterministic
        more += f", {self.processes} processes" * (self.processes > 1)
        return f"{self.name}, {self.precision}{compiled}{more}"


def build(contestant: Contestant) -> Callable[[], object]:
    """Return a function that runs one step of ``contestant`` (or evaluates one batch, or trains for one epoch)."""
    torch.manual_seed(0)
    device = devices.choose_device(contestant.device)
    data = Split(
        torch.randint(0, 256, (N_IMAGES, 3, *[contestant.shape.image_size] * 2), dtype=torch.uint8, device=device),
        torch.randint(0, 10, (N_IMAGES,), device=device),
        tuple("0123456789"),
    )
    if contestant.name == "ours":
        return ours(contestant, data, device)
    if contestant.threads:
        torch.set_num_threads(contestant.threads)
    return peer(contestant, data, device)


def parameters(contestant: Contestant) -> Any:
    """Parameters of ours, as the notebooks would set them."""
    kind: Any = FinetuneParameters if contestant.task in ("finetune", "evaluate") else PretrainParameters

    shape = dataclasses.asdict(contestant.shape)
    more = {"decoder_width": shape["width"], "decoder_heads": shape["heads"], "augment": "crop-flip"}
    if contestant.task == "mask tokens":
        more["mask_tokens_in_encoder"] = True
    compile = "graphs" if contestant.graphs else "on" if contestant.compiled else "off"
    return kind(
        **shape, **more, precision=contestant.precision, compile=compile,
        threads=contestant.threads, device=contestant.device, deterministic=contestant.deterministic,
    )  # fmt: skip


def join_others(contestant: Contestant) -> Team:
    """Start the contestant's other processes, each of which takes its part of every step with this one, and join them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "GLOO_SOCKET_IFNAME": "lo"}
    place["WORLD_SIZE"] = str(contestant.processes)
    who = json.dumps(dataclasses.asdict(contestant))
    for rank in range(1, contestant.processes):
        others = os.environ | place | {"RANK": str(rank)}
        subprocess.Popen([sys.executable, "-m", "benchmarks.contestants", who], env=others, stderr=subprocess.DEVNULL)
    os.environ |= place | {"RANK": "0"}
    dist.init_process_group("gloo")
    return team()


def help_out(who: str) -> None:
    """Take the steps of a contestant with its first process, until that one ends."""
    values = json.loads(who)
    contestant = Contestant(**values | {"shape": Shape(**values["shape"])})
    dist.init_process_group("gloo")
    step = build(contestant)
    with contextlib.suppress(RuntimeError):
        while True:
            step()


def ours(contestant: Contestant, data: Split, device: torch.device) -> Callable[[], object]:
    run = parameters(contestant)
    together = join_others(contestant) if contestant.processes > 1 and not dist.is_initialized() else team()
    devices.set_up(run.threads, deterministic=run.deterministic and device.type == "cuda")
    batch = contestant.shape.batch_size
    if contestant.task == "evaluate":
        classifier = runs.new_model(Classifier, run, device)
        one_batch = Split(data.images_nCHW[:batch], data.labels_n[:batch], data.classes)
        return lambda: class_scores(classifier, one_batch, run, device)
    kind = Classifier if contestant.task == "finetune" else MaskedAutoencoder
    model = runs.new_model(kind, run, device)
    objective = classification(run, len(data.classes)) if kind is Classifier else reconstruction(run)
    if contestant.task == "epoch":
        size, once = batch * EPOCH_STEPS, run.model_copy(update={"epochs": 1, "checkpoint_seconds": 1e9})
        some = Split(data.images_nCHW[:size], data.labels_n[:size], data.classes)
        load(run.dataset, run.data_dir)  # for the checkpoint's checksum of the data

        def epoch() -> None:
            with tempfile.TemporaryDirectory() as folder:  # a new one has no checkpoint of a finished run
                loop.fit(model, objective, some, once, Path(folder), device)

        return epoch
    generator = torch.Generator(device).manual_seed(0)
    optimizer, plan = new_optimizer(model, run), choose_plan(run, device, together.size)
    if contestant.task == "steps alone":
        replicas = Replicas(model, plan.precision, plan.workers, objective.loss_of)
        images_BCHW, mask = objective.draw(scale_pixels(data.images_nCHW[:batch]), data.labels_n[:batch], generator)
        return lambda: (replicas.compute_gradients(images_BCHW, mask, plan.images_at_once), optimizer.step())
    take_step = loop.new_step(model, objective, data, run, plan, optimizer, generator, together)
    return lambda: take_step(torch.randperm(N_IMAGES, generator=generator, device=device)[:batch], 1e-4)


def peer(contestant: Contestant, data: Split, device: torch.device) -> Callable[[], object]:
    shape, task = contestant.shape, contestant.task
    model = MODELS[contestant.name, "pretrain" if task == "pretrain" else "classify"](shape).to(device)
    if contestant.tuned:
        tune(model, contestant)
    forward: Callable = model
    if contestant.compiled:
        forward = torch.compile(model, mode="reduce-overhead" if contestant.graphs else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if contestant.precision == "float32":
        autocast: Callable = contextlib.nullcontext
    else:
        autocast = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731

    def step() -> Tensor:
        batch = torch.randint(0, N_IMAGES, (shape.batch_size,), device=device)
        images_BCHW, labels_B = scale_pixels(data.images_nCHW[batch]), data.labels_n[batch]
        with autocast():
            output = forward(images_BCHW)
            loss = output if task == "pretrain" else F.cross_entropy(output.float(), labels_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def evaluate() -> Tensor:
        model.eval()
        with autocast():
            return forward(scale_pixels(data.images_nCHW[: shape.batch_size]))

    return evaluate if task == "evaluate" else step


def tune(model: nn.Module, peer: Contestant) -> None:
    """Give a peer those of our settings that its users can enable.

    The allocator keeps freed memory (glibc only). Training on a CPU uses explicit attention (transformers computes its
    softmax in float32). Evaluation casts the whole model to the precision of the matrix products.
    """
    devices.set_up(peer.threads)
    if peer.task == "evaluate":
        model.to(getattr(torch, peer.precision))
    elif devices.choose_device(peer.device).type == "cpu":
        module: Any
        for module in model.modules():
            if hasattr(module, "config"):  # transformers; its decoder has a separate config
                module.config._attn_implementation = "eager"
            if hasattr(module, "fused_attn"):  # timm
                module.fused_attn = False


class TransformersMAE(nn.Module):
    """The loss of ``transformers.ViTMAEForPreTraining``."""

    def __init__(self, shape: Shape):
        super().__init__()
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        self.model = ViTMAEForPreTraining(
            ViTMAEConfig(
                image_size=shape.image_size, patch_size=shape.patch_size, mask_ratio=0.75,
                hidden_size=shape.width, intermediate_size=MLP_RATIO * shape.width,
                num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
                decoder_hidden_size=shape.width, decoder_intermediate_size=MLP_RATIO * shape.width,
                decoder_num_hidden_layers=shape.decoder_depth, decoder_num_attention_heads=shape.heads,
            )
        )  # fmt: skip

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.model(images_BCHW).loss


class TransformersClassifier(nn.Module):
    """The class scores of ``transformers.ViTForImageClassification``."""

    def __init__(self, shape: Shape):
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        self.model = ViTForImageClassification(
            ViTConfig(  # type: ignore[call-arg]
                image_size=shape.image_size, patch_size=shape.patch_size, num_labels=10,
                hidden_size=shape.width, intermediate_size=MLP_RATIO * shape.width,
                num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
            )
        )  # fmt: skip

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.model(images_BCHW).logits


def timm_vit(shape: Shape, n_classes: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=shape.image_size, patch_size=shape.patch_size, embed_dim=shape.width, depth=shape.depth,
        num_heads=shape.heads, mlp_ratio=MLP_RATIO, num_classes=n_classes,
    )  # fmt: skip


class LightlyMAE(nn.Module):
    """The loss of an MAE built from lightly's modules, as its documentation shows."""

    def __init__(self, shape: Shape):
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        self.patch_size = shape.patch_size
        self.encoder = MaskedVisionTransformerTIMM(vit=timm_vit(shape, 0))
        self.decoder = MAEDecoderTIMM(
            num_patches=(shape.image_size // shape.patch_size) ** 2, patch_size=shape.patch_size,
            embed_dim=shape.width, decoder_embed_dim=shape.width, decoder_depth=shape.decoder_depth,
            decoder_num_heads=shape.heads, mlp_ratio=MLP_RATIO, proj_drop_rate=0.0, attn_drop_rate=0.0,
        )  # fmt: skip

    def forward(self, images_BCHW: Tensor) -> Tensor:
        from lightly.models import utils

        size = (len(images_BCHW), self.encoder.sequence_length)
        ids_keep, ids_masked = utils.random_token_mask(size=size, mask_ratio=0.75, device=images_BCHW.device)
        visible = self.decoder.embed(self.encoder.encode(images=images_BCHW, idx_keep=ids_keep))
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = self.decoder.decode(utils.set_at_index(tokens, ids_keep, visible.type_as(tokens)))
        pred = self.decoder.predict(utils.get_at_index(tokens, ids_masked))
        target = utils.get_at_index(utils.patchify(images_BCHW, self.patch_size), ids_masked - 1)
        return F.mse_loss(pred.float(), target)


MODELS: dict[tuple[str, str], Callable[[Shape], nn.Module]] = {
    ("transformers", "pretrain"): TransformersMAE,
    ("transformers", "classify"): TransformersClassifier,
    ("lightly", "pretrain"): LightlyMAE,
    ("lightly", "classify"): lambda shape: timm_vit(shape, 10),  # lightly fine-tunes timm's transformer
    ("timm", "classify"): lambda shape: timm_vit(shape, 10),
}

if __name__ == "__main__":
    help_out(sys.argv[1])
