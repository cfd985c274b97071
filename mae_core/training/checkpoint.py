"""Checkpoints, written atomically. A checkpoint of other parameters is an error; a damaged one is set aside.

A run keeps its newest two checkpoints, so damage to the newest one costs minutes and not the run. A checkpoint that was set
aside is deleted when the run is complete.
Tensors: ``model/...``, ``optimizer/<index>/...``, ``average/...``, ``generator``, ``losses``, ``order``. JSON note: the
rest of :class:`Position`, ``parameters``, ``made_of``, ``elapsed``, ``peak_memory``, ``machines``. ``load_tensors`` reads
both.
"""

import atexit
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mae_core import devices
from mae_core.errors import ParameterError
from mae_core.study.parameters import FREE, RunParameters
from mae_core.study.results import read_json
from mae_core.study.tensors import load_tensors, save_tensors
from mae_core.training.processes import Saved, team

PLAIN = ("epoch", "step", "spent", "history", "seconds")  # the fields of Position that are not tensors


@dataclass
class Position:
    """The progress of a run."""

    losses_S: Tensor  # loss of each step of this epoch so far
    order_n: Tensor  # order of the images in this epoch; empty before its first step
    epoch: int = 0  # number of complete epochs
    step: int = 0  # number of complete steps in this epoch
    spent: float = 0.0  # seconds that these steps took
    history: dict[str, list[float]] = field(default_factory=dict)  # one list per curve, one entry per complete epoch
    seconds: list[float] = field(default_factory=list)  # of training, per epoch; not in the history, which a seed repeats


class Checkpoint:
    """Saves and restores model, optimizer, generator and position of a run, as safetensors files in its folder.

    Args:
        made_of: what the run depends on besides its parameters, see provenance.ingredients. A checkpoint made with
            other code, data or initial weights is set aside; one made on another device or precision is an error.
        averages: moving averages of weights, by name, if the run has them.
        began: ``time.monotonic()`` when the run was started; None: now.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        run: RunParameters,
        made_of: dict[str, str],
        averages: dict[str, Tensor] | None = None,
        began: float | None = None,
    ):
        self.newest, self.before = folder / "checkpoint.safetensors", folder / "checkpoint.before.safetensors"
        self.model, self.optimizer, self.generator, self.run = model, optimizer, generator, run
        self.averages = averages or {}
        self.made_of = made_of
        self.saved_at = time.monotonic()
        self.began = self.saved_at if began is None else began
        self.elapsed_before = 0.0
        self.peak_memory_before = 0
        self.machines_before: list[str] = []

    @property
    def machines(self) -> list[str]:
        """The machines of all starts of this run, each once, in the order of their first start."""
        return [*dict.fromkeys([*self.machines_before, self.made_of["machine"]])]

    @property
    def peak_memory(self) -> int:
        """The largest peak memory of all starts of this run, in bytes; see :func:`~mae_core.devices.peak_memory`."""
        return max(self.peak_memory_before, devices.peak_memory(self.generator.device))

    def due(self) -> bool:
        """Whether the last checkpoint is at least ``checkpoint_seconds`` old."""
        return time.monotonic() - self.saved_at >= self.run.checkpoint_seconds

    def save(self, at: Position) -> None:
        """Write a new checkpoint, and keep the one before."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.averages.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors |= {"generator": self.generator.get_state(), "losses": at.losses_S, "order": at.order_n}
        about = {name: getattr(at, name) for name in PLAIN} | {
            "parameters": self.run.flat(),
            "made_of": self.made_of,
            "elapsed": self.elapsed_before + time.monotonic() - self.began,
            "peak_memory": self.peak_memory,
            "machines": self.machines,
        }
        unfinished = self.newest.with_name(".checkpoint.safetensors")
        save_tensors(unfinished, tensors, about)
        if self.newest.exists():
            self.newest.replace(self.before)
        unfinished.replace(self.newest)
        self.saved_at = time.monotonic()

    def restore(self, start: Position) -> Position:
        """Restore the newest usable checkpoint and return its position, or ``start`` if there is none.

        The first of several processes reads it for all of them.

        Raises:
            ParameterError: if a parameter differs between the checkpoint and this run, or if it cannot be read.
        """
        together = team()
        found = together.share(self.newest_usable() if together.leads else None)
        if not found:
            return start
        tensors, about = found
        return self.load(tensors, about, start.losses_S.device)

    def newest_usable(self) -> Saved | None:
        """The tensors and the note of the newest checkpoint that is whole and belongs to this run; None without one."""
        for path in (self.newest, self.before):
            if not path.exists():
                continue
            try:
                tensors, about = load_tensors(path)
            except ParameterError:  # it cannot be read, but may be whole
                raise
            except ValueError as error:
                what = str(error).removesuffix(": delete it")
                print(f"{what}; kept as {set_aside(path)}, going back to the checkpoint before, or to the start")
                continue
            self.check_parameters(about["parameters"], about["made_of"])
            other = [name for name in ("code", "data", "weights") if about["made_of"][name] != self.made_of[name]]
            if other:
                what = " and ".join(other)
                print(
                    f"{path} was made with other {what}: starting anew; kept as {set_aside(path)} until this run is "
                    f"complete: to continue it instead, go back to that {what} and rename it to {path.name}"
                )
                continue
            self.elapsed_before, self.machines_before = about["elapsed"], about["machines"]
            self.peak_memory_before = about["peak_memory"]
            return tensors, about
        return None

    def check_parameters(self, parameters: dict, made_of: dict) -> None:
        """Raise ParameterError if a checkpoint's parameters, or its device or precision, differ from those of this run."""
        ours, theirs = (
            values | {name: machine[name] for name in ("device", "precision")}
            for values, machine in ((self.run.flat(), self.made_of), (parameters, made_of))
        )
        for name, value in ours.items():
            if name in (*FREE, "data_dir", "weights"):  # what these lead to has checksums
                continue
            if theirs.get(name, value) != value:  # one from before a parameter existed has other code
                raise ParameterError(
                    f"{name} is {value!r}, but the unfinished run in {self.newest.parent} has {theirs.get(name)!r}: "
                    f"delete its checkpoint*.safetensors to start anew"
                )

    def load(self, tensors: dict[str, Tensor], about: dict, device: torch.device) -> Position:
        """Load a checkpoint's content into the model, the optimizer and the generator; return its position."""
        self.model.load_state_dict(under(tensors, "model/"))
        for name, tensor in under(tensors, "average/").items():
            self.averages[name].copy_(tensor)
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
        """The last checkpoint, for an error message."""
        if not self.newest.exists():
            return "no checkpoint was saved yet"
        return f"the last good checkpoint is {self.newest}: delete it to start anew with another rate"


def set_aside(path: Path) -> str:
    """Rename a checkpoint that does not fit, in place of an earlier one of that kind; return its new name."""
    return path.replace(path.with_name(f"{path.stem}.set-aside.safetensors")).name


def discard(folder: Path) -> None:
    """Delete all checkpoints of a complete run."""
    newest = folder / "checkpoint.safetensors"
    if is_left_over(newest):
        for path in sorted(folder.glob("checkpoint*.safetensors"), key=lambda path: path == newest):  # last what tells so
            path.unlink(missing_ok=True)


def discard_at_exit(folder: Path) -> None:
    """Delete all checkpoints of a complete run when this process exits normally.

    With MAE_KEEP_CHECKPOINTS in the environment they stay: Snakemake deletes the results of a notebook whose later cells
    fail, and its rules delete the checkpoints where the whole notebook has ended well.
    """
    if not os.environ.get("MAE_KEEP_CHECKPOINTS"):
        atexit.register(discard, folder.absolute())


def is_left_over(newest: Path) -> bool:
    """Whether a run's newest checkpoint is of a complete run: it has the curves of the ``history.json`` beside it.

    Dates would not do: a clock that was set back makes an unfinished run look older than the results of the run before it.
    """
    try:
        _, about = load_tensors(newest)
        return newest.with_name("metrics.json").exists() and about["history"] == read_json(newest.with_name("history.json"))
    except (OSError, ValueError, KeyError):  # no checkpoint, or a damaged one
        return False


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names start with ``prefix``, with the prefix removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
