"""Pre-training and fine-tuning: one loop, two losses.

Both write a run's folder (see results.py) and take up an interrupted run where its last checkpoint left it.

Shapes: B batch, C = 3 colours, H = W pixels, n images of a split.
"""

import atexit
import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mae_core import devices, evaluation, flops, probes, provenance, results
from mae_core.checkpoint import Checkpoint, Position, discard
from mae_core.data import Split, augment, load, to_unit
from mae_core.errors import Explained, MissingDataError, NotFiniteError, OutputError, ParameterError
from mae_core.mae import Classifier, Encoder, MaskedAutoencoder, masked_error
from mae_core.masking import Mask, sample_mask
from mae_core.parameters import FinetuneParameters, PretrainParameters, check_data_dir
from mae_core.replicas import Replicas
from mae_core.tensors import load_tensors, save_tensors

N_NEIGHBOURS = 5  # in the picture of nearest neighbours
SHOWN = ("train_loss", "test_accuracy")  # beside the progress bar


def pretrain(run: PretrainParameters) -> MaskedAutoencoder:
    """Pre-train a masked autoencoder and write its results to ``run.folder / "pretrain"``.

    Raises:
        ParameterError: if the device is missing, or a checkpoint of other parameters lies in the folder.
        NotFiniteError: if training diverges.
    """
    with recorded(run, "pretrain") as record:
        device = record.device
        train, test = load_both(run, device)
        model = new_model(MaskedAutoencoder, run, device)
        record.history, record.metrics = fit(model, reconstruction(run), train, run, record.folder, device)
        record.metrics |= evaluation.reconstruction_metrics(model, test, run, device)
        record.metrics["flops_per_image"] = flops.of_pretraining(run)
        record.metrics["n_parameters"] = flops.count_parameters(run.model)
        record.sheets["pictures"] = evaluation.pictures(model, test, run, device)
        record.weights = model.state_dict()
    return model


def finetune(run: FinetuneParameters) -> Classifier:
    """Fine-tune the encoder with a linear head, and write the results to ``run.folder / "finetune"``.

    Raises:
        ParameterError: as :func:`pretrain`, or if the weights belong to a model of another shape.
        NotFiniteError: if training diverges.
    """
    with recorded(run, "finetune") as record:
        device = record.device
        train, test = load_both(run, device)
        model = new_model(Classifier, run, device, n_classes=len(train.classes))
        if run.weights:
            load_encoder(model, run)
        if run.probes:
            probe(model.encoder, train, test, run, record)

        def test_epoch() -> dict[str, float]:
            scores_nC = evaluation.class_scores(model, test, run, device)
            return {
                "test_loss": F.cross_entropy(scores_nC, test.labels_n).item(),
                "test_accuracy": evaluation.accuracy(scores_nC, test.labels_n),
            }

        record.history, trained = fit(model, CLASSIFICATION, train, run, record.folder, device, test_epoch)
        record.metrics |= trained
        record.metrics["last_epoch_accuracy"] = record.history["test_accuracy"][-1]
        record.metrics["best_epoch_accuracy"] = max(record.history["test_accuracy"])
        record.metrics["flops_per_image"] = flops.of_classifier(run)
        scores_nC = evaluation.class_scores(model, test, run, device)
        record.metrics["predictions"] = evaluation.predictions(scores_nC, test)
        record.metrics["mistakes"] = evaluation.confident_mistakes(scores_nC, test)
        pictured = to_unit(test.images_nCHW[: evaluation.N_PICTURES])
        record.sheets["pictures"] = [pictured]
        record.sheets["attention"] = [pictured, evaluation.class_attention(model.encoder, pictured)]
        if record.metrics["mistakes"]["images"]:
            record.sheets["mistakes"] = [to_unit(test.images_nCHW[record.metrics["mistakes"]["images"]])]
        record.weights = model.state_dict()
    return model


def probe(encoder: Encoder, train: Split, test: Split, run: FinetuneParameters, record: "Record") -> None:
    """Record what the frozen encoder knows: a linear probe, k-NN, and the pictured test images' nearest neighbours."""
    train_nD, test_nD = probes.features(encoder, train, test, run, record.device)
    record.metrics["probes"] = {
        "linear": probes.linear_probe(train_nD, train.labels_n, test_nD, test.labels_n),
        "knn": probes.knn(train_nD, train.labels_n, test_nD, test.labels_n),
    }
    pictured = slice(evaluation.N_PICTURES)
    _, ids_mk = probes.nearest(train_nD, test_nD[pictured], N_NEIGHBOURS)
    record.metrics["neighbours"] = {
        "classes": list(test.classes),
        "true": test.labels_n[pictured].tolist(),
        "labels": train.labels_n[ids_mk].tolist(),
    }
    rows = [test.images_nCHW[pictured], *(train.images_nCHW[ids_m] for ids_m in ids_mk.T)]
    record.sheets["neighbours"] = [to_unit(row) for row in rows]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a model is trained for.

    Attributes:
        draw: what a batch is to predict, given its labels_B and the run's generator: its masks, or the labels. It can
            be sliced along the batch.
        loss_of: of a model, images_BCHW in [-1, 1] and what was drawn for them: a mean over the images, in float32.
    """

    draw: Callable[[Tensor, torch.Generator], Any]
    loss_of: Callable[[nn.Module, Tensor, Any], Tensor]


def reconstruction(run: PretrainParameters) -> Objective:
    """Predict the pixels of masked patches."""

    def draw(labels_B: Tensor, generator: torch.Generator) -> Mask:
        grid_size = run.model.grid_size
        return sample_mask(run.mask_strategy, run.mask_ratio, len(labels_B), grid_size, generator, labels_B.device)

    def loss_of(model: nn.Module, images_BCHW: Tensor, mask: Mask) -> Tensor:
        pred_BMP = model(images_BCHW, mask, run.mask_tokens_in_encoder, masked_only=True)
        return masked_error(pred_BMP, images_BCHW, mask, run.patch_size, run.norm_pix)

    return Objective(draw, loss_of)


CLASSIFICATION = Objective(
    draw=lambda labels_B, generator: labels_B,
    loss_of=lambda model, images_BCHW, labels_B: F.cross_entropy(model(images_BCHW).float(), labels_B),
)


def fit(
    model: nn.Module,
    objective: Objective,
    train: Split,
    run: PretrainParameters | FinetuneParameters,
    folder: Path,
    device: torch.device,
    test_epoch: Callable[[], dict[str, float]] = dict,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Train with AdamW, linear warm-up and cosine decay; resumable at every checkpoint.

    Each epoch takes the images in a fresh random order and leaves out what does not fill a batch.

    Args:
        model: its float32 weights are trained in place; copies of it compute (see replicas.py).
        objective: what it is trained for.
        train: uint8 images on the device.
        run: epochs, rates and the like.
        folder: where checkpoints go.
        device: where the model and the data are.
        test_epoch: measured after each epoch and added to the history.

    Returns:
        The history, a list per curve with an entry per epoch; and metrics: last training loss, seconds of training (in
        all and by epoch), images a second, peak memory in bytes, data included (of the process; on CUDA of the device),
        and the seconds that processes before this one took for the run.

    Raises:
        NotFiniteError: naming the step, the rate and the checkpoint to go back to.
        DeviceMemoryError: with a smaller number of images to try.
    """
    steps = len(train) // run.batch_size
    if not steps:
        raise ParameterError(f"batch_size is {run.batch_size}: there are only {len(train)} training images")
    plan = devices.choose_plan(run, device)
    print(plan)
    optimizer = new_optimizer(model, run)
    generator = torch.Generator(device).manual_seed(run.seed)
    take_step = new_step(model, objective, train, run, plan, optimizer, generator)
    checkpoint = Checkpoint(folder, model, optimizer, generator, run, provenance.ingredients(run, device))
    at = checkpoint.restore(Position(losses_S=torch.zeros(steps, device=device)))

    devices.reset_peak_memory(device)
    bar = progress(total=run.epochs * steps, initial=at.epoch * steps + at.step, desc=folder.name)
    while at.epoch < run.epochs:
        if at.step == 0:
            at.order_n = torch.randperm(len(train), generator=generator, device=device)
        began = time.perf_counter() - at.spent
        while at.step < steps:
            batch_B = at.order_n[at.step * run.batch_size : (at.step + 1) * run.batch_size]
            at.losses_S[at.step] = take_step(batch_B, learning_rate(at.epoch + at.step / steps, run))
            at.step += 1
            bar.update()
            if checkpoint.due() and at.step < steps:
                at.spent = time.perf_counter() - began
                check_finite("training loss", at.losses_S[: at.step], at, run, checkpoint)
                check_finite("sum of weights", sum_of_weights(model), at, run, checkpoint)
                checkpoint.save(at)
                began = time.perf_counter() - at.spent
        mean_loss = at.losses_S.mean().item()  # the one wait for the device in an epoch
        at.spent = time.perf_counter() - began
        check_finite("training loss", at.losses_S, at, run, checkpoint)
        check_finite("sum of weights", sum_of_weights(model), at, run, checkpoint)
        rate = learning_rate(at.epoch + (steps - 1) / steps, run)
        entry = {"epoch": at.epoch + 1, "train_loss": mean_loss, "learning_rate": rate}
        entry |= test_epoch()
        for name, value in entry.items():
            check_finite(name, torch.tensor([value]), at, run, checkpoint)
            at.history.setdefault(name, []).append(value)
        bar.set_postfix_str(", ".join(f"{name.replace('_', ' ')} {entry[name]:.4g}" for name in SHOWN if name in entry))
        at.seconds.append(at.spent)
        at.epoch, at.step, at.spent = at.epoch + 1, 0, 0.0
        if checkpoint.due() or at.epoch == run.epochs:
            checkpoint.save(at)
    bar.close()
    seconds = sum(at.seconds)
    return at.history, {
        "train_loss": at.history["train_loss"][-1],
        "train_seconds": seconds,
        "epoch_seconds": at.seconds,
        "images_per_second": run.epochs * steps * run.batch_size / seconds,
        "peak_memory_bytes": devices.peak_memory(device),
        "elapsed_before": checkpoint.elapsed_before,
    }


def sum_of_weights(model: nn.Module) -> Tensor:
    """The sum of all weights' absolute values, as a vector of one: not finite if one of them is not."""
    return torch.stack(torch._foreach_norm(list(model.parameters()), 1)).sum()[None].detach()


def new_step(
    model: nn.Module,
    objective: Objective,
    train: Split,
    run: PretrainParameters | FinetuneParameters,
    plan: devices.Plan,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Callable[[Tensor, float], Tensor]:
    """A function of the images' indices and the learning rate that takes one step, and returns the loss before it."""
    loss_of = compile_loss(objective.loss_of, plan.graphs) if plan.compiled else objective.loss_of
    replicas = Replicas(model, plan.precision, plan.workers, loss_of)

    def take_step(batch_B: Tensor, rate: float) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate
        images_BCHW = to_unit(augment(train.images_nCHW[batch_B], run.augment, generator))
        drawn = objective.draw(train.labels_n[batch_B], generator)
        with devices.explained_shortage(plan.images_at_once):
            loss = replicas.compute_gradients(images_BCHW, drawn, plan.images_at_once)
            optimizer.step()
        return loss

    return take_step


def compile_loss(loss_of: Callable[..., Tensor], graphs: bool) -> Callable[..., Tensor]:
    """``loss_of`` by torch.compile; where CUDA ``graphs`` record it, the next call overwrites its loss and gradients."""
    if not graphs:
        return torch.compile(loss_of)
    recorded_loss = torch.compile(loss_of, mode="reduce-overhead")

    def replay(*inputs) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return recorded_loss(*inputs)

    return replay


def check_finite(
    name: str, values_s: Tensor, at: Position, run: PretrainParameters | FinetuneParameters, checkpoint: Checkpoint
) -> None:
    """Raise NotFiniteError if one of the values is not finite: those of this epoch's first steps, or of all after it."""
    wrong = values_s.isfinite().logical_not().nonzero()
    if len(wrong):
        step = int(wrong[0]) if len(values_s) == at.step else at.step - 1
        rate = learning_rate(at.epoch + step / len(at.losses_S), run)
        raise NotFiniteError(
            f"the {name} of step {step + 1} of epoch {at.epoch + 1} is {values_s[wrong[0]].item()} at a learning rate of "
            f"{rate:.2g}: lower base_lr; {checkpoint.describe()}"
        )


def learning_rate(epoch: float, run: PretrainParameters | FinetuneParameters) -> float:
    """Linear warm-up to ``base_lr * batch_size / 256``, then half a cosine to zero (He et al. 2021, appendix A.1)."""
    peak = run.base_lr * run.batch_size / 256
    if epoch < run.warmup_epochs:
        return peak * epoch / run.warmup_epochs
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - run.warmup_epochs) / (run.epochs - run.warmup_epochs)))


def new_model(kind: type[nn.Module], run: PretrainParameters | FinetuneParameters, device: torch.device, **more):
    """A model whose initial weights depend on the seed alone, not on the device."""
    torch.manual_seed(run.seed)
    return kind(run.model, **more).to(device)


def new_optimizer(model: nn.Module, run: PretrainParameters | FinetuneParameters) -> torch.optim.AdamW:
    """AdamW; weight decay on the matrices, not on biases, norms, tokens and positions."""
    decayed = {id(p) for m in model.modules() if isinstance(m, nn.Linear) for p in [m.weight]}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in decayed], "weight_decay": run.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, run.beta2), fused=True)


def load_encoder(model: Classifier, run: FinetuneParameters) -> None:
    """Put pre-trained weights into the classifier's encoder.

    Raises:
        ParameterError: if there is no such file, or naming the parameter in which the two models differ.
    """
    if not Path(run.weights).is_file():
        raise ParameterError(f"weights is {run.weights!r}: there is no such file; pre-train first, or leave it empty")
    try:
        tensors, trained = load_tensors(Path(run.weights))
    except ValueError as error:
        raise ParameterError(f"weights: {error}") from error
    for name in dataclasses.asdict(run.model):
        if name in trained and name not in ("image_size", "attention") and not name.startswith("decoder_"):
            mine = getattr(run, name, trained[name])
            if trained[name] != mine:
                raise ParameterError(f"{name} is {mine!r}, but {run.weights} was trained with {trained[name]!r}")
    encoder = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    try:
        model.encoder.load_state_dict(encoder)
    except RuntimeError as error:
        raise ParameterError(
            f"weights is {run.weights!r}: it does not hold an encoder of this shape ({error})"
        ) from error


def load_both(run: PretrainParameters | FinetuneParameters, device: torch.device) -> tuple[Split, Split]:
    """The training and the test split.

    Raises:
        ParameterError: if the data set is not there.
    """
    try:
        train = load(run.dataset, run.data_dir, train=True, limit=run.train_images, device=device)
        return train, load(run.dataset, run.data_dir, train=False, device=device)
    except MissingDataError as error:
        raise ParameterError(f"dataset is {run.dataset!r}: {error}") from error


@dataclasses.dataclass
class Record:
    """What a run leaves behind: gathered while it computes, written when all is done.

    Attributes:
        folder: the run's.
        device: where it computes.
        history: a list per curve.
        metrics: final numbers.
        sheets: name to rows of images, see :func:`results.save_sheet`.
        weights: the model's.
    """

    folder: Path
    device: torch.device
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    sheets: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def recorded(run: PretrainParameters | FinetuneParameters, stage: str) -> Iterator[Record]:
    """Set up the device, and write what the run leaves behind: all of it, or nothing.

    Until then the results of an earlier run stay as they are.

    Raises:
        ParameterError: if the device is missing, or data would be written outside the project.
        BusyError: if another process trains into the folder.
        DeviceMemoryError: if the memory does not suffice.
        OutputError: if the folder cannot be written.
    """
    check_data_dir(run.dataset, run.data_dir)
    try:
        record = Record(run.folder / stage, devices.choose_device(run.device))
    except ValueError as error:
        raise ParameterError(str(error)) from error
    devices.set_up(run.threads)
    folder = record.folder
    try:
        with results.claimed(folder):
            discard(folder)  # of an earlier run, where it is complete
            began, commit = time.perf_counter(), provenance.commit()
            with devices.explained_shortage():
                yield record
            wall = {"wall_seconds": time.perf_counter() - began + record.metrics.pop("elapsed_before")}
            with results.replaced(folder, last="metrics.json") as unfinished:
                results.write_json(unfinished / "parameters.json", run.flat())
                results.write_json(unfinished / "history.json", record.history)
                for name, rows in record.sheets.items():
                    results.save_sheet(unfinished / f"{name}.png", rows)
                save_tensors(unfinished / "weights.safetensors", record.weights, run.flat())
                source = provenance.collect(run, record.device, unfinished / "weights.safetensors")
                results.write_json(unfinished / "provenance.json", commit | source | wall)
                results.write_json(unfinished / "metrics.json", record.metrics | wall)
    except OSError as error:
        if isinstance(error, Explained):
            raise
        raise OutputError(
            f"results cannot be written to {folder} ({error.strerror or error}): free some space, or see to its "
            f"permissions; what was there before is untouched"
        ) from error
    # Until this process ends in order: who is killed while a notebook draws its last figures need not train again.
    atexit.register(discard, folder.absolute())


def progress(total: int, initial: int, desc: str) -> tqdm:
    """A one-line bar of plain text: the same in a terminal, in JupyterLab and in an executed notebook.

    It is redrawn once a second; the environment variable TQDM_MININTERVAL sets another pace for batch runs.
    """
    pace = float(os.environ.get("TQDM_MININTERVAL", 1))
    return tqdm(total=total, initial=initial, desc=desc, unit="step", mininterval=pace, ncols=100, file=sys.stdout)
