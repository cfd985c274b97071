"""Checkpoints of a run: written completely or not at all, and refused or skipped if they do not match the run.

The newest two are kept, so that damage to the newest one costs minutes and not the run.
Tensors: ``model/...``, ``optimizer/<index>/...``, ``generator``, ``losses``, ``order``. JSON note: the rest of
:class:`Position`, ``parameters``, ``made_of``, ``elapsed``. ``load_tensors(path)`` reads both.
"""

import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mae_core.errors import ParameterError
from mae_core.study.parameters import FREE, RunParameters
from mae_core.study.tensors import load_tensors, save_tensors

PLAIN = ("epoch", "step", "spent", "history", "seconds")  # of a position, all that is not a tensor


ENDING = threading.Event()


def end_at_checkpoint() -> None:
    """From now on SIGTERM lets training save a checkpoint after the current step, and then ends the process (code 143).

    Raises:
        ValueError: outside the main thread.
    """
    signal.signal(signal.SIGTERM, lambda *_: ENDING.set())


@dataclass
class Position:
    """The progress of a run.

    Attributes:
        losses_S: the losses of this epoch's steps so far.
        order_n: the order of the images in this epoch; empty before its first step.
        epoch: epochs that are complete.
        step: steps of this epoch that are complete.
        spent: seconds that these steps took.
        history: a list per curve, an entry per complete epoch.
        seconds: of training, an entry per complete epoch; not in the history, which the same seed gives again.
    """

    losses_S: Tensor
    order_n: Tensor
    epoch: int = 0
    step: int = 0
    spent: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


class Checkpoint:
    """Model, optimizer, generator and position of a run, in safetensors files in its folder.

    Args:
        made_of: what else the run depends on, as provenance.ingredients says: of other code, data or weights than
            these, a checkpoint is passed over; of another device or precision, it is refused.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        run: RunParameters,
        made_of: dict[str, str],
    ):
        self.newest, self.before = folder / "checkpoint.safetensors", folder / "checkpoint.before.safetensors"
        self.model, self.optimizer, self.generator, self.run = model, optimizer, generator, run
        self.made_of, self.began, self.elapsed_before = made_of, time.monotonic(), 0.0
        self.saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether the last checkpoint is ``checkpoint_seconds`` old, or the process is to end."""
        return ENDING.is_set() or time.monotonic() - self.saved_at >= self.run.checkpoint_seconds

    def save(self, at: Position) -> None:
        """Write a new checkpoint; the newest one becomes the one before.

        Raises:
            SystemExit: after it, if the process is to end: see :func:`end_at_checkpoint`.
        """
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors |= {"generator": self.generator.get_state(), "losses": at.losses_S, "order": at.order_n}
        about = {name: getattr(at, name) for name in PLAIN} | {
            "parameters": self.run.flat(),
            "made_of": self.made_of,
            "elapsed": self.elapsed_before + time.monotonic() - self.began,
        }
        unfinished = self.newest.with_name(".checkpoint.safetensors")
        save_tensors(unfinished, tensors, about)
        if self.newest.exists():
            self.newest.replace(self.before)
        unfinished.replace(self.newest)
        self.saved_at = time.monotonic()
        if ENDING.is_set():
            raise SystemExit(128 + signal.SIGTERM)

    def restore(self, start: Position) -> Position:
        """Go back to the newest checkpoint that is whole and of this run; ``start`` if there is none.

        Raises:
            ParameterError: naming the parameter in which the checkpoint's run differs from this one.
        """
        for path in (self.newest, self.before):
            if not path.exists():
                continue
            try:
                tensors, about = load_tensors(path)
            except ValueError as error:
                print(f"{error}; going back to the checkpoint before, or to the start")
                path.unlink()
                continue
            self.check_parameters(about["parameters"] | about["made_of"])
            other = [name for name in ("code", "data", "weights") if about["made_of"][name] != self.made_of[name]]
            if other:
                print(f"{path} was made with other {' and '.join(other)}: starting anew")
                path.unlink()
                continue
            self.elapsed_before = about["elapsed"]
            return self.take_up(tensors, about, start.losses_S.device)
        return start

    def check_parameters(self, theirs: dict) -> None:
        ours = self.run.flat() | {name: self.made_of[name] for name in ("device", "precision")}
        for name, value in ours.items():
            if theirs.get(name) != value and name not in FREE:
                raise ParameterError(
                    f"{name} is {value!r}, but the unfinished run in {self.newest.parent} has {theirs.get(name)!r}: "
                    f"delete its checkpoint*.safetensors to start anew"
                )

    def take_up(self, tensors: dict[str, Tensor], about: dict, device: torch.device) -> Position:
        self.model.load_state_dict(under(tensors, "model/"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under(tensors, "optimizer/").items():
            index, entry = name.split("/")
            state.setdefault(int(index), {})[entry] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.generator.set_state(tensors["generator"])
        return Position(
            losses_S=tensors["losses"].to(device),
            order_n=tensors["order"].to(device),
            **{name: about[name] for name in PLAIN},
        )

    def describe(self) -> str:
        """The way back, for an error message."""
        if not self.newest.exists():
            return "no checkpoint was saved yet"
        return f"the last good checkpoint is {self.newest}: delete it to start anew with another rate"


def discard(folder: Path) -> None:
    """Delete the checkpoints of a run that is complete: those that are older than its ``metrics.json``."""
    metrics = folder / "metrics.json"
    for path in folder.glob("checkpoint*.safetensors"):
        if metrics.exists() and path.stat().st_mtime_ns <= metrics.stat().st_mtime_ns:
            path.unlink(missing_ok=True)


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
