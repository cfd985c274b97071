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
from typing import Any, NamedTuple

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

RECOMPILATIONS = 64  # of one function in a process: its runs share the loss's code, and torch stops compiling after eight
SHOWN = ("train_loss", "test_accuracy")  # next to the progress bar


class Fitted(NamedTuple):
    """What :func:`fit` tells of a training.

    Attributes:
        history: one list per curve, one entry per epoch.
        metrics: last training loss, seconds of training (total and per epoch), images per second, and peak memory in bytes
            with the data (of the process; on CUDA of the device).
        elapsed_before: seconds that earlier processes spent on the run.
        machines: on which it ran, in words, in the order of its starts.
    """

    history: dict[str, list[float]]
    metrics: dict[str, Any]
    elapsed_before: float
    machines: list[str]


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
) -> Fitted:
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

    Raises:
        ParameterError: if a batch has more images than there are for training, or fewer than there are processes.
        NotFiniteError: if the loss or the weights are not finite; names step, learning rate and last good checkpoint.
        DeviceMemoryError: if memory runs out; suggests a smaller ``micro_batch``.
        StoppedError: on SIGINT (Stop in JupyterLab, Ctrl-C) or SIGTERM, after the current step and a checkpoint.
    """
    training = Training(model, objective, train, run, folder, device, test_epoch, watch, began)
    training.train()
    at, checkpoint, seconds = training.at, training.checkpoint, sum(training.at.seconds)
    metrics = {
        "train_loss": at.history["train_loss"][-1],
        "train_seconds": seconds,
        "epoch_seconds": at.seconds,
        "images_per_second": run.epochs * training.n_steps * run.batch_size / seconds,
        "peak_memory_bytes": checkpoint.peak_memory,
    }
    return Fitted(at.history, metrics, checkpoint.elapsed_before, checkpoint.machines)


class Training:
    """How the run of :func:`fit` is computed, and how far it is."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        train: Split,
        run: PretrainParameters | FinetuneParameters,
        folder: Path,
        device: torch.device,
        test_epoch: Callable[[], dict[str, float]],
        watch: Callable[[Position], None],
        began: float | None,
    ) -> None:
        self.model, self.data, self.run, self.device = model, train, run, device
        self.test_epoch, self.watch = test_epoch, watch
        self.stop, self.resumed = threading.Event(), 0.0  # whether to stop; when the clock of this epoch would have begun
        self.name, self.together = folder.name, team()
        self.n_steps = steps_per_epoch(len(train), run, self.together.size)
        plan = choose_plan(run, device, self.together.size)
        print(f"{plan}; {train.place}")
        optimizer, self.average = new_optimizer(model, run), Average(model, getattr(run, "ema_decay", 0.0))
        self.generator = torch.Generator(device).manual_seed(run.seed)
        self.take_step = new_step(model, objective, train, run, plan, optimizer, self.generator, self.together)
        made_of = provenance.ingredients(run, device)
        self.checkpoint = Checkpoint(folder, model, optimizer, self.generator, run, made_of, self.average.averages, began)
        start = Position(torch.zeros(self.n_steps, device=device), torch.zeros(0, dtype=torch.int64, device=device))
        self.at = at = self.checkpoint.restore(start)
        if at is not start:
            more = at.epoch < run.epochs
            print(f"resumed at step {at.step + 1} of epoch {at.epoch + 1}" if more else "training was complete")

    def train(self) -> None:
        """Train the epochs that are left."""
        at, epochs = self.at, self.run.epochs
        devices.reset_peak_memory(self.device)
        done = {"total": epochs * self.n_steps, "initial": at.epoch * self.n_steps + at.step}
        quiet = not self.together.leads
        with stop_requested(self.together) as self.stop, progress(**done, desc=self.name, disable=quiet) as self.bar:
            while at.epoch < epochs:
                self.take_steps()
                self.end_epoch()
        self.average.swap()  # after the last checkpoint, which has both

    def take_steps(self) -> None:
        """Take the steps of this epoch that are left; a new epoch draws an order of the images."""
        at, run = self.at, self.run
        if at.step == 0:
            at.order_n = torch.randperm(len(self.data), generator=self.generator, device=self.device)
        self.start_clock()
        batches = at.order_n.split(run.batch_size)[: self.n_steps]
        places = at.order_n.to(self.data.images_nCHW.device).split(run.batch_size)[at.step : self.n_steps]
        images = self.data.stream(places)
        while at.step < self.n_steps:
            rate = learning_rate(at.epoch + at.step / self.n_steps, run)
            at.losses_S[at.step] = self.take_step(batches[at.step], rate, next(images))
            self.average.update()
            at.step += 1
            self.bar.update()
            self.show()
            if self.saves and at.step < self.n_steps:
                self.check("training loss", at.losses_S[: at.step])  # waits for the device
                self.stop_clock()
                self.check("sum of weights", sum_of_weights(self.model))
                self.checkpoint.save(at)
                if self.stop.is_set():
                    raise StoppedError(f"stopped at step {at.step} of epoch {at.epoch + 1}: run again to continue")
                self.start_clock()

    def end_epoch(self) -> None:
        """Check and evaluate the model, and go on to the next epoch."""
        at, run = self.at, self.run
        mean_loss = at.losses_S.mean().item()  # here an epoch first waits for the device
        self.stop_clock()
        self.check("training loss", at.losses_S)
        self.check("sum of weights", sum_of_weights(self.model))
        rate = learning_rate(at.epoch + (self.n_steps - 1) / self.n_steps, run)
        entry = {"epoch": at.epoch + 1, "train_loss": mean_loss, "learning_rate": rate}
        if self.together.leads:
            with self.average.in_place():
                entry |= self.test_epoch()
        for name, value in entry.items():
            self.check(name, torch.tensor([value]))
            at.history.setdefault(name, []).append(value)
        shown = ", ".join(f"{name.replace('_', ' ')} {entry[name]:.4g}" for name in SHOWN if name in entry)
        self.bar.set_postfix_str(shown.replace("test", "validation") if run.holdout else shown)
        at.seconds.append(at.spent)
        at.epoch, at.step, at.spent = at.epoch + 1, 0, 0.0
        self.watch(at)
        if self.saves or (self.together.leads and at.epoch == run.epochs):
            self.checkpoint.save(at)
        if self.stop.is_set() and at.epoch < run.epochs:
            raise StoppedError(f"stopped after epoch {at.epoch} of {run.epochs}: run again to continue")

    @property
    def saves(self) -> bool:
        """Whether it is time for a checkpoint, in the process that writes them."""
        return self.together.leads and (self.checkpoint.due() or self.stop.is_set())

    def show(self) -> None:
        """Let a live picture follow the run; its time does not count."""
        began = time.perf_counter()
        self.watch(self.at)
        if self.device.type == "cpu":  # elsewhere, a picture waits for steps whose time counts
            self.resumed += time.perf_counter() - began

    def start_clock(self) -> None:
        """Go on counting the seconds of this epoch's steps."""
        self.resumed = time.perf_counter() - self.at.spent

    def stop_clock(self) -> None:
        """Stop counting, for what is not training."""
        self.at.spent = time.perf_counter() - self.resumed

    def check(self, name: str, values_s: Tensor) -> None:
        """Raise NotFiniteError if a value is not finite; ``values_s`` has one value per step so far, or just one value."""
        at, run = self.at, self.run
        wrong = values_s.isfinite().logical_not().nonzero()
        if len(wrong):
            step = int(wrong[0]) if len(values_s) == at.step else at.step - 1
            rate = learning_rate(at.epoch + step / self.n_steps, run)
            raise NotFiniteError(
                f"the {name} of step {step + 1} of epoch {at.epoch + 1} is {values_s[wrong[0]].item()} at a learning rate "
                f"of {rate:.2g}: lower base_lr; {self.checkpoint.describe()}"
            )


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
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    if not graphs:
        return torch.compile(loss_of)
    recorded_loss = torch.compile(loss_of, mode="reduce-overhead")

    def replay(*inputs) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return recorded_loss(*inputs)

    return replay


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
