"""The training loop of both stages; it resumes an interrupted run from its last checkpoint.

Shapes: B batch, C = 3 colours, H = W pixels, S steps of an epoch.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mae_core import devices
from mae_core.data.images import Split, augment, scale_pixels
from mae_core.errors import NotFiniteError, ParameterError, StoppedError
from mae_core.study import provenance
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.training.checkpoint import Checkpoint, Position
from mae_core.training.objective import Objective
from mae_core.training.optimizer import Average, new_optimizer
from mae_core.training.plan import Plan, choose_plan
from mae_core.training.processes import ALONE, Team, team
from mae_core.training.replicas import Replicas

SHOWN = ("train_loss", "test_accuracy")  # next to the progress bar


def fit(
    model: nn.Module,
    objective: Objective,
    train: Split,
    run: PretrainParameters | FinetuneParameters,
    folder: Path,
    device: torch.device,
    test_epoch: Callable[[], dict[str, float]] = dict,
    watch: Callable[[Position], None] = lambda at: None,
    began: float | None = None,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Train with AdamW, linear warm-up and cosine decay; an interrupted run continues from its last checkpoint.

    With ``ema_decay``, the moving average of the weights is what is evaluated, and what the model has in the end.

    Each epoch uses a new random order of the images and drops the last incomplete batch.

    Args:
        model: its float32 weights are trained in place; copies of it compute the gradients (see replicas.py).
        objective: targets and loss.
        train: uint8 images, on the device or on the host, and their labels on the device.
        folder: where checkpoints are saved.
        test_epoch: returns test metrics, which are added to the history after each epoch.
        watch: called after every step and every epoch, for a live picture.
        began: ``time.monotonic()`` when the run was started, before its data were loaded; None: now.

    Returns:
        The history: one list per curve, one entry per epoch. And metrics: last training loss, seconds of training (total
        and per epoch), images per second, peak memory in bytes with the data (of the process; on CUDA of the device), the
        seconds that earlier processes spent on the run, and the machines of all of them.

    Raises:
        ParameterError: if a batch has more images than there are for training, or fewer than there are processes.
        NotFiniteError: if the loss or the weights are not finite; names step, learning rate and last good checkpoint.
        DeviceMemoryError: if memory runs out; suggests a smaller ``micro_batch``.
        StoppedError: on SIGINT (Stop in JupyterLab, Ctrl-C) or SIGTERM, after the current step and a checkpoint.
    """
    together = team()
    steps = steps_per_epoch(len(train), run, together.size)
    plan = choose_plan(run, device, together.size)
    print(f"{plan}; {train.place}")
    optimizer, average = new_optimizer(model, run), Average(model, getattr(run, "ema_decay", 0.0))
    generator = torch.Generator(device).manual_seed(run.seed)
    take_step = new_step(model, objective, train, run, plan, optimizer, generator, together)
    made_of = provenance.ingredients(run, device)
    checkpoint = Checkpoint(folder, model, optimizer, generator, run, made_of, average.averages, began)
    start = Position(torch.zeros(steps, device=device), torch.zeros(0, dtype=torch.int64, device=device))
    at = checkpoint.restore(start)
    if at is not start:
        print(
            f"resumed at step {at.step + 1} of epoch {at.epoch + 1}" if at.epoch < run.epochs else "training was complete"
        )

    devices.reset_peak_memory(device)
    done = {"total": run.epochs * steps, "initial": at.epoch * steps + at.step}
    with stop_requested(together) as stop, progress(**done, desc=folder.name, disable=not together.leads) as bar:
        while at.epoch < run.epochs:
            if at.step == 0:
                at.order_n = torch.randperm(len(train), generator=generator, device=device)
            resumed = time.perf_counter() - at.spent
            batches = at.order_n.split(run.batch_size)[:steps]
            images = train.stream(at.order_n.to(train.images_nCHW.device).split(run.batch_size)[at.step : steps])
            while at.step < steps:
                rate = learning_rate(at.epoch + at.step / steps, run)
                at.losses_S[at.step] = take_step(batches[at.step], rate, next(images))
                average.update()
                at.step += 1
                bar.update()
                stepped = time.perf_counter()
                watch(at)
                if device.type == "cpu":  # elsewhere, a picture waits for steps whose time counts
                    resumed += time.perf_counter() - stepped
                if together.leads and (checkpoint.due() or stop.is_set()) and at.step < steps:
                    check_finite("training loss", at.losses_S[: at.step], at, run, checkpoint)  # waits for the device
                    at.spent = time.perf_counter() - resumed
                    check_finite("sum of weights", sum_of_weights(model), at, run, checkpoint)
                    checkpoint.save(at)
                    if stop.is_set():
                        raise StoppedError(f"stopped at step {at.step} of epoch {at.epoch + 1}: run again to continue")
                    resumed = time.perf_counter() - at.spent
            mean_loss = at.losses_S.mean().item()  # the only synchronization with the device in an epoch
            at.spent = time.perf_counter() - resumed
            check_finite("training loss", at.losses_S, at, run, checkpoint)
            check_finite("sum of weights", sum_of_weights(model), at, run, checkpoint)
            rate = learning_rate(at.epoch + (steps - 1) / steps, run)
            entry = {"epoch": at.epoch + 1, "train_loss": mean_loss, "learning_rate": rate}
            if together.leads:
                with average.in_place():
                    entry |= test_epoch()
            for name, value in entry.items():
                check_finite(name, torch.tensor([value]), at, run, checkpoint)
                at.history.setdefault(name, []).append(value)
            told = ", ".join(f"{name.replace('_', ' ')} {entry[name]:.4g}" for name in SHOWN if name in entry)
            bar.set_postfix_str(told.replace("test", "validation") if run.holdout else told)
            at.seconds.append(at.spent)
            at.epoch, at.step, at.spent = at.epoch + 1, 0, 0.0
            watch(at)
            if together.leads and (checkpoint.due() or stop.is_set() or at.epoch == run.epochs):
                checkpoint.save(at)
            if stop.is_set() and at.epoch < run.epochs:
                raise StoppedError(f"stopped after epoch {at.epoch} of {run.epochs}: run again to continue")
    average.swap()  # after the last checkpoint, which has both
    seconds = sum(at.seconds)
    return at.history, {
        "train_loss": at.history["train_loss"][-1],
        "train_seconds": seconds,
        "epoch_seconds": at.seconds,
        "images_per_second": run.epochs * steps * run.batch_size / seconds,
        "peak_memory_bytes": checkpoint.peak_memory,
        "elapsed_before": checkpoint.elapsed_before,
        "machines": checkpoint.machines,
    }


def steps_per_epoch(n_images: int, run: PretrainParameters | FinetuneParameters, n_processes: int) -> int:
    """The number of whole batches; raises ParameterError if a batch has too many images, or fewer than processes."""
    steps = n_images // run.batch_size
    if not steps:
        raise ParameterError(f"batch_size is {run.batch_size}: there are only {n_images} training images")
    if n_processes > run.batch_size:
        raise ParameterError(f"batch_size is {run.batch_size}: it must be at least the number of processes, {n_processes}")
    if run.epochs * steps == 1 and run.warmup_epochs:
        print(
            f"this run changes no weight: warmup_epochs is {run.warmup_epochs:g}, so its single step has a rate of 0; set "
            "warmup_epochs: 0, or take more epochs or a smaller batch_size"
        )
    return steps


def sum_of_weights(model: nn.Module) -> Tensor:
    """The sum of all weights' absolute values, as a vector of length 1; not finite if any weight is not finite."""
    return torch.stack(torch._foreach_norm(list(model.parameters()), 1)).sum()[None].detach()


def new_step(
    model: nn.Module,
    objective: Objective,
    train: Split,
    run: PretrainParameters | FinetuneParameters,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    together: Team = ALONE,
) -> Callable[..., Tensor]:
    """A function that takes one step and returns the loss before it, given image indices, learning rate, and the images.

    Each process draws for the whole batch, and computes the gradients of its part.
    """
    loss_of = compile_loss(objective.loss_of, plan.graphs) if plan.compiled else objective.loss_of
    replicas = Replicas(model, plan.precision, plan.workers, loss_of)

    def take_step(batch_B: Tensor, rate: float, images_BCHW: Tensor | None = None) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        images_BCHW = train.take(batch_B) if images_BCHW is None else images_BCHW
        images_BCHW = scale_pixels(augment(images_BCHW, run.augment, generator))
        images_BCHW, drawn = objective.draw(images_BCHW, train.labels_n[batch_B], generator)
        with devices.explained_shortage(plan.images_at_once):
            part = together.part(len(batch_B))
            loss = replicas.compute_gradients(images_BCHW[part], drawn[part], plan.images_at_once)
            gradients: list[Any] = [weight.grad for weight in model.parameters()]
            together.average([loss, *gradients], (part.stop - part.start) / len(batch_B))
            optimizer.step()
        return loss

    return take_step


def compile_loss(loss_of: Callable[..., Tensor], graphs: bool) -> Callable[..., Tensor]:
    """Compile ``loss_of``; with CUDA ``graphs``, each call overwrites the loss and the gradients of the call before."""
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
    """Raise NotFiniteError if a value is not finite; ``values_s`` has one value per step so far, or just one value."""
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


@contextlib.contextmanager
def stop_requested(together: Team = ALONE) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step ends before the run stops; a second SIGINT interrupts it.

    Of several processes only the first has one: the others pass their signals on to it.
    """
    stop = threading.Event()
    if not together.leads or threading.current_thread() is not threading.main_thread():  # that alone handles signals
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def progress(total: int, initial: int, desc: str, disable: bool = False) -> tqdm:
    """A one-line progress bar of plain text, for terminals, JupyterLab and executed notebooks.

    It is redrawn once a second; the environment variable TQDM_MININTERVAL sets another interval for batch runs.
    """
    pace = float(os.environ.get("TQDM_MININTERVAL", 1))
    return tqdm(
        total=total, initial=initial, desc=desc, unit="step", mininterval=pace, ncols=100, file=sys.stdout, disable=disable
    )
