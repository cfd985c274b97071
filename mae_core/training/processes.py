"""Data parallelism: several processes train one run, each on its slice of every batch.

Every process has the same weights and draws the same order, augmentation and masks from the same seeded generator, so the
number of processes changes the rounding and nothing else. After a step's gradients, one message adds them up
(torch.distributed: gloo between CPUs, nccl between GPUs). The first process, rank 0, alone evaluates and writes.

:func:`train` is the notebook's side: it starts the processes by torch's elastic launcher and waits for them. The other
functions are a process's side; there they work under ``torchrun``, too, for several machines.
"""

import contextlib
import datetime
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, errors
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mae_core import errors as explained
from mae_core import gpus
from mae_core.devices import choose_device, n_cores
from mae_core.errors import Explained, ParameterError, ProcessError, StoppedError
from mae_core.study.parameters import FinetuneParameters, PretrainParameters

BEAT = 2.0  # seconds between two signs of life of a process
SILENCE = 20.0  # seconds without one, after which it counts as hung
PATIENCE = datetime.timedelta(days=30)  # with a process that gives signs of life: the first one alone evaluates

Saved = tuple[dict[str, Tensor], dict[str, Any]]  # tensors on the CPU, and a JSON note


@dataclass(frozen=True)
class Team:
    """The processes that train this run, seen from one of them; a run without others is a team of one."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the first, which evaluates and writes."""
        return self.rank == 0

    def part(self, n_images: int) -> slice:
        """This process's slice of a batch of ``n_images``; the slices' lengths differ by one at most."""
        return slice(n_images * self.rank // self.size, n_images * (self.rank + 1) // self.size)

    def average(self, tensors: list[Tensor], weight: float) -> None:
        """Replace float32 tensors by their sum over all processes, each times its ``weight``; the same bits everywhere."""
        if self.size == 1:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors]).mul_(weight)
        dist.all_reduce(message)
        parts = message.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def share(self, found: Saved | None) -> Saved | None:
        """What the first process has ``found``, in every process; sent as JSON and safetensors, so nothing is unpickled."""
        if self.size == 1:
            return found
        tensors, about = found or ({}, None)
        about = json.loads(broadcast(json.dumps(about).encode()))
        return None if about is None else (safetensors.torch.load(broadcast(safetensors.torch.save(tensors))), about)


ALONE = Team()


def broadcast(content: bytes) -> bytes:
    """The first process's ``content``, in every process."""
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    length = torch.tensor([len(content)], device=device)
    dist.broadcast(length, 0)
    message = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if dist.get_rank() == 0:
        message.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(message, 0)
    return message.cpu().numpy().tobytes()


def team() -> Team:
    """The team of this process."""
    return Team(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else ALONE


def started() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def leads() -> bool:
    """Whether this process is the first of several, or alone."""
    return not started() or os.environ["RANK"] == "0"


def threads(wanted: int) -> int:
    """CPU threads of this process: ``wanted``, or if that is 0, an equal share of this machine's cores."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if started() else 1
    return wanted if wanted or here == 1 else max(1, n_cores() // here)


def train(run: PretrainParameters | FinetuneParameters, stage: str) -> None:
    """Train a run with ``run.processes`` processes on this machine, and wait for its results.

    Raises:
        ParameterError: if there are fewer GPUs than processes, or no way for them to talk, and as in the processes.
        ProcessError: if a process is killed or hangs; the others end, too, within a minute.
        StoppedError: on SIGINT or SIGTERM, after a checkpoint.
    """
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    environment = {
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "15",
        "PYTHONUNBUFFERED": "1",
    }
    with (
        gpus.claimed(run.device, run.processes),
        tempfile.TemporaryDirectory() as folder,
        quiet_launcher(),
        more_environment(environment),
    ):
        if choose_device(run.device).type == "mps":  # starts CUDA, which then has the claimed GPUs alone
            raise ParameterError(
                f"processes is {run.processes}: an Apple GPU trains in one process; set processes: 1, or device: cpu"
            )
        config = LaunchConfig(
            1, 1, run.processes, DefaultLogsSpecs(folder), run_id="mae-core", rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, local_addr="localhost",
        )  # fmt: skip
        words = ("-m", "mae_core.training.member", stage, json.dumps(run.flat()))
        try:
            elastic_launch(config, sys.executable)(*words)
        except SignalException:
            raise StoppedError("stopped: run again to start, or to continue from the last checkpoint") from None
        except errors.ChildFailedError as error:
            print()  # the progress bar has not ended its line
            raise reason(error, run.processes) from None
        finally:
            if threading.current_thread() is threading.main_thread():  # the launcher leaves its own handlers behind
                for number, handler in handlers.items():
                    signal.signal(number, handler)


def reason(error: errors.ChildFailedError, n_processes: int) -> Exception:
    """What ended the processes: their own explanation, a signal, or another error."""
    told = []
    killed = any(failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM for failure in error.failures.values())
    for rank, failure in error.failures.items():
        message: Any = failure.message
        text = message["message"] if isinstance(message, dict) else message
        kind = getattr(explained, text.partition(": ")[0], None)
        if isinstance(kind, type) and issubclass(kind, Explained) and not (killed and kind is StoppedError):
            return kind(text.partition(": ")[2])  # where one was killed, the launcher has stopped the others
        order = (failure.exitcode == -signal.SIGTERM, failure.exitcode >= 0)  # the launcher ends the others by SIGTERM
        told.append((order, rank, failure.signal_name(), text))
    order, rank, name, text = min(told)
    if order == (False, True):
        return RuntimeError(f"process {rank + 1} of {n_processes} failed: {text}")
    return ProcessError(
        f"process {rank + 1} of {n_processes} was ended by {name}, and the others with it: run again to continue from the "
        f"last checkpoint; if nobody ended it, memory may be short: use fewer processes or a smaller micro_batch"
    )


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """Join the other processes that a launcher has started for this run, if any; see :class:`Pulse`."""
    if not started():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(iter(dist.rendezvous("env://")))
    pulse = Pulse(store.clone(), Team(rank, size))  # before all meet, so that each finds the other's signs
    kind = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(kind, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    pulse.start()
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        stack.callback(pulse.end)
        if rank:  # only the first process prints and handles signals; the others pass them on
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: pulse.asked.set())
        yield Team(rank, size)


class Pulse(threading.Thread):
    """Gives signs of life, and ends this process when the next one's stop, so that no run waits forever.

    A process that should stop asks the first one, which saves a checkpoint and stops; the launcher then ends the others.
    """

    def __init__(self, store: dist.Store, team: Team):
        super().__init__(daemon=True)
        self.store, self.team, self.over, self.asked = store, team, threading.Event(), threading.Event()
        self.watched = (team.rank + 1) % team.size
        self.here = socket.gethostname()
        store.set(f"process {team.rank}", f"{os.getpid()} {self.here}")
        store.set(f"pulse {team.rank}", "0")

    def run(self) -> None:
        count, seen, seen_at = 0, "", time.monotonic()
        while not self.over.wait(BEAT):
            count += 1
            try:
                self.store.set(f"pulse {self.team.rank}", str(count))
                found = self.store.get(f"pulse {self.watched}").decode()
                if self.asked.is_set():
                    self.store.set("stop", "1")
                stop = self.team.leads and self.store.check(["stop"])
            except (RuntimeError, OSError):  # the launcher is gone: time for a checkpoint, and no longer
                if self.team.leads:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.over.wait(SILENCE)
                os._exit(1)
            if stop:
                os.kill(os.getpid(), signal.SIGTERM)
            if found != seen or found == "ended":
                seen, seen_at = found, time.monotonic()
            elif time.monotonic() - seen_at > SILENCE:
                self.give_up()

    def give_up(self) -> None:
        """End this process, and the hung one if it is on this machine."""
        errors.get_error_handler().record_exception(
            ProcessError(
                f"process {self.watched + 1} of {self.team.size} has not answered for {SILENCE:.0f} s, and the others have "
                f"ended: run again to continue from the last checkpoint"
            )
        )
        with contextlib.suppress(Exception):
            pid, machine = self.store.get(f"process {self.watched}").decode().split(" ", 1)
            if machine == self.here:
                os.kill(int(pid), signal.SIGKILL)
        os._exit(1)

    def end(self) -> None:
        self.over.set()
        self.join()
        with contextlib.suppress(RuntimeError, OSError):
            self.store.set(f"pulse {self.team.rank}", "ended")


@contextlib.contextmanager
def quiet_launcher() -> Iterator[None]:
    """Without the launcher's own messages: what they tell is in the error."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if "torch.distributed.elastic" in name]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def more_environment(more: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({name: value for name, value in more.items() if name not in os.environ})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
