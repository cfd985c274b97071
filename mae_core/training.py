"""Pre-training and fine-tuning: one loop, two losses.

Both write a run's folder (see results.py) and take up an interrupted run where its last checkpoint left it.

Shapes: B batch, C = 3 colours, H = W pixels, n images of a split.
"""

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
from mae_core.data import MissingDataError, Split, augment, load, to_unit
from mae_core.mae import Classifier, MaskedAutoencoder, masked_error
from mae_core.masking import sample_mask
from mae_core.parameters import FinetuneParameters, ParameterError, PretrainParameters

SHOWN = ("train_loss", "test_accuracy")  # beside the progress bar

BatchLoss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class NotFiniteError(ArithmeticError):
    """The loss became infinite or not a number."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints in place of a traceback: the sentence alone."""
        return [f"NotFiniteError: {self}"]


def pretrain(run: PretrainParameters) -> MaskedAutoencoder:
    """Pre-train a masked autoencoder and write its results to ``run.folder / "pretrain"``.

    Raises:
        ParameterError: if the device is missing, or a checkpoint of other parameters lies in the folder.
        NotFiniteError: if training diverges.
    """
    with recorded(run, run.folder / "pretrain") as (folder, device, metrics):
        train, test = load_both(run, device)
        model = new_model(MaskedAutoencoder, run, device)
        grid_size = run.model.grid_size

        def batch_loss(images_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator) -> Tensor:
            mask = sample_mask(run.mask_strategy, run.mask_ratio, len(labels_B), grid_size, generator, device)
            pred_BNP = model(images_BCHW, mask, run.mask_tokens_in_encoder)
            return masked_error(pred_BNP, images_BCHW, mask, run.patch_size, run.norm_pix)

        metrics |= fit(model, batch_loss, train, run, folder, device)
        metrics |= evaluation.reconstruction_metrics(model, test, run, device)
        metrics["flops_per_image"] = flops.of_pretraining(run)
        results.save_sheet(folder / "pictures.png", evaluation.pictures(model, test, run, device))
        results.save_tensors(folder / "weights.safetensors", model.state_dict(), run.flat())
    return model


def finetune(run: FinetuneParameters) -> Classifier:
    """Fine-tune the encoder with a linear head, and write the results to ``run.folder / "finetune"``.

    Raises:
        ParameterError: as :func:`pretrain`, or if the weights belong to a model of another shape.
        NotFiniteError: if training diverges.
    """
    with recorded(run, run.folder / "finetune") as (folder, device, metrics):
        train, test = load_both(run, device)
        model = new_model(Classifier, run, device, n_classes=len(train.classes))
        if run.weights:
            load_encoder(model, run)
        if run.probes:
            metrics["probes"] = probes.evaluate(model.encoder, train, test, run, device)

        def batch_loss(images_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator) -> Tensor:
            return F.cross_entropy(model(images_BCHW).float(), labels_B)

        def test_epoch() -> dict[str, float]:
            scores_nC = evaluation.class_scores(model, test, run, device)
            return {
                "test_loss": F.cross_entropy(scores_nC, test.labels_n).item(),
                "test_accuracy": evaluation.accuracy(scores_nC, test.labels_n),
            }

        metrics |= fit(model, batch_loss, train, run, folder, device, test_epoch)
        history = results.read_json(folder / "history.json")
        metrics["last_epoch_accuracy"] = history["test_accuracy"][-1]
        metrics["best_epoch_accuracy"] = max(history["test_accuracy"])
        metrics["flops_per_image"] = flops.of_classifier(run)
        metrics["predictions"] = evaluation.predictions(model, test, run, device)
        results.save_sheet(folder / "pictures.png", [to_unit(test.images_nCHW[: evaluation.N_PICTURES])])
        results.save_tensors(folder / "weights.safetensors", model.state_dict(), run.flat())
    return model


def fit(
    model: nn.Module,
    batch_loss: BatchLoss,
    train: Split,
    run: PretrainParameters | FinetuneParameters,
    folder: Path,
    device: torch.device,
    test_epoch: Callable[[], dict[str, float]] = dict,
) -> dict[str, Any]:
    """Train with AdamW, linear warm-up and cosine decay; resumable at every checkpoint.

    Each epoch takes the images in a fresh random order and leaves out what does not fill a batch.

    Args:
        model: trained in place.
        batch_loss: of images_BCHW in [-1, 1] and labels_B, with the run's generator for its random choices.
        train: uint8 images on the device.
        run: epochs, rates and the like.
        folder: where checkpoints and ``history.json`` go.
        device: where the model and the data are.
        test_epoch: measured after each epoch and added to the history.

    Returns:
        Last training loss, seconds of training, images a second, peak memory of the process (on CUDA: of the device)
        in bytes, data included.

    Raises:
        NotFiniteError: naming the step, the rate and the checkpoint to go back to.
    """
    precision = devices.choose_precision(run.precision, device)
    steps = len(train) // run.batch_size
    if not steps:
        raise ParameterError(f"batch_size is {run.batch_size}: there are only {len(train)} training images")
    optimizer = new_optimizer(model, run)
    generator = torch.Generator(device).manual_seed(run.seed)
    history: dict[str, list[float]] = {}
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", model, optimizer, generator, run)
    first_epoch = checkpoint.restore(history)

    devices.reset_peak_memory(device)
    bar = progress(total=run.epochs * steps, initial=first_epoch * steps, desc=folder.name)
    for epoch in range(first_epoch, run.epochs):
        model.train()
        began = time.perf_counter()
        losses_S = torch.zeros(steps, device=device)
        order_n = torch.randperm(len(train), generator=generator, device=device)
        for step in range(steps):
            rate = learning_rate(epoch + step / steps, run)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch_B = order_n[step * run.batch_size : (step + 1) * run.batch_size]
            for part_B in batch_B.split(run.micro_batch or run.batch_size):
                images_BCHW = to_unit(augment(train.images_nCHW[part_B], run.augment, generator))
                with devices.autocast(device, precision):
                    loss = batch_loss(images_BCHW, train.labels_n[part_B], generator) * (len(part_B) / run.batch_size)
                loss.backward()
                losses_S[step] += loss.detach()
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
        mean_loss = losses_S.mean().item()  # the one wait for the device in an epoch
        seconds = time.perf_counter() - began
        if not math.isfinite(mean_loss):
            step = int(losses_S.isfinite().logical_not().nonzero()[0])
            rate = learning_rate(epoch + step / steps, run)
            raise NotFiniteError(
                f"the training loss of step {step + 1} of epoch {epoch + 1} is {losses_S[step]} at a learning rate of "
                f"{rate:.2g}: lower base_lr; {checkpoint.describe()}"
            )
        entry = {"epoch": epoch + 1, "train_loss": mean_loss, "learning_rate": rate, "seconds": seconds}
        entry |= test_epoch()
        for name, value in entry.items():
            if not math.isfinite(value):
                raise NotFiniteError(
                    f"{name} is {value} after epoch {epoch + 1}: lower base_lr; {checkpoint.describe()}"
                )
        for name, value in entry.items():
            history.setdefault(name, []).append(value)
        bar.set_postfix_str(", ".join(f"{name.replace('_', ' ')} {entry[name]:.4g}" for name in SHOWN if name in entry))
        if epoch + 1 < run.epochs:
            checkpoint.save_if_due(epoch + 1, history)
    bar.close()
    results.write_json(folder / "history.json", history)
    seconds = sum(history["seconds"])
    return {
        "train_loss": history["train_loss"][-1],
        "train_seconds": seconds,
        "images_per_second": run.epochs * steps * run.batch_size / seconds,
        "peak_memory_bytes": devices.peak_memory(device),
    }


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
        tensors, trained = results.load_tensors(Path(run.weights))
    except ValueError as error:
        raise ParameterError(f"weights: {error}") from error
    for name in dataclasses.asdict(run.model):
        if name in trained and name != "image_size" and not name.startswith("decoder_"):
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


@contextlib.contextmanager
def recorded(
    run: PretrainParameters | FinetuneParameters, folder: Path
) -> Iterator[tuple[Path, torch.device, dict[str, Any]]]:
    """Set up the device, and write parameters, provenance and, when all is done, metrics.

    ``metrics.json`` is written last: where it stands, the run is complete.

    Raises:
        ParameterError: if the device is missing.
        BusyError: if another process trains into the folder.
    """
    try:
        device = devices.choose_device(run.device)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    devices.set_up(run.threads)
    with results.claimed(folder):
        (folder / "metrics.json").unlink(missing_ok=True)
        began, commit = time.perf_counter(), provenance.commit()
        metrics: dict[str, Any] = {}
        yield folder, device, metrics
        metrics["wall_seconds"] = time.perf_counter() - began
        results.write_json(folder / "parameters.json", run.flat())
        results.write_json(folder / "provenance.json", commit | provenance.collect(run, device))
        results.write_json(folder / "metrics.json", metrics)
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def progress(total: int, initial: int, desc: str) -> tqdm:
    """A one-line bar of plain text: the same in a terminal, in JupyterLab and in an executed notebook.

    It is redrawn once a second; the environment variable TQDM_MININTERVAL sets another pace for batch runs.
    """
    pace = float(os.environ.get("TQDM_MININTERVAL", 1))
    return tqdm(total=total, initial=initial, desc=desc, unit="step", mininterval=pace, ncols=100, file=sys.stdout)


class Checkpoint:
    """Model, optimizer and generator at the end of an epoch, in one safetensors file."""

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, run):
        self.path, self.model, self.optimizer, self.generator, self.run = path, model, optimizer, generator, run
        self.saved_at = time.monotonic()

    def save_if_due(self, epoch: int, history: dict[str, list[float]]) -> None:
        """Save if the last checkpoint is ``checkpoint_seconds`` old."""
        if time.monotonic() - self.saved_at < self.run.checkpoint_seconds:
            return
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors["generator"] = self.generator.get_state()
        about = {"epoch": epoch, "history": history, "parameters": self.run.flat()}
        results.save_tensors(self.path, tensors, about)
        self.saved_at = time.monotonic()

    def restore(self, history: dict[str, list[float]]) -> int:
        """Go back to the checkpoint, if there is one; returns the number of epochs it had finished.

        Raises:
            ParameterError: naming the parameter in which the checkpoint's run differs from this one.
        """
        if not self.path.exists():
            return 0
        tensors, about = results.load_tensors(self.path)
        for name, value in self.run.flat().items():
            if about["parameters"].get(name) != value and name != "checkpoint_seconds":
                raise ParameterError(
                    f"{name} is {value!r}, but the unfinished run in {self.path.parent} has "
                    f"{about['parameters'].get(name)!r}: delete {self.path} to start anew"
                )
        self.model.load_state_dict(under(tensors, "model/"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under(tensors, "optimizer/").items():
            index, entry = name.split("/")
            state.setdefault(int(index), {})[entry] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.generator.set_state(tensors["generator"])
        history |= about["history"]
        return about["epoch"]

    def describe(self) -> str:
        """The way back, for an error message."""
        return f"the last good checkpoint is {self.path}" if self.path.exists() else "no checkpoint was saved yet"


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
