"""Timing in turns: every contestant has its own process and runs only on request, while all others wait.

Each therefore has its own allocator, threads, compiled code and peak memory, and a slow period of the machine that
lasts longer than a round affects all of them.
"""

import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import limits
from benchmarks.contestants import EPOCH_STEPS, Contestant, build
from mae_core import devices

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["benchmarks.contestants"])  # one import of torch for all contestants


@dataclass
class Timing:
    """The measurements of one contestant.

    Attributes:
        who: the contestant, or the name of a limit.
        unit: unit of the rates.
        rates: units per second, one for each block.
        first_seconds: duration of the first step, which compiles, warms up and fills caches; not in the rates.
        peak_bytes: peak memory of its process in bytes (on CUDA: of the device).
        step_bytes: bytes that a step reads and writes, see :func:`counted_bytes`; 0 if they were not counted.
        error: why it was left out; empty if it was timed.
    """

    who: Contestant | str
    unit: str
    rates: list[float] = field(default_factory=list)
    first_seconds: float = 0.0
    peak_bytes: int = 0
    step_bytes: int = 0
    error: str = ""

    @property
    def name(self) -> str:
        return self.who if isinstance(self.who, str) else self.who.label

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if torch.backends.mps.is_available():
        torch.mps.synchronize()


def release() -> None:
    """Return the allocator's free memory to the system: waiting contestants should not hold it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # GNU C library only
    if trim:
        trim(0)


class Traffic(TorchDispatchMode):
    """Counts the bytes that eager operations read and write: each of their tensors once, views not at all."""

    total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        if not any(given.alias_info and not given.alias_info.is_write for given in operation._schema.returns):
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            self.total += sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in tensors)
        return found


def counted_bytes(step: Callable[[], object], compiled: bool) -> int:
    """Run one step and return the bytes that it reads and writes, whatever a cache may spare.

    Args:
        compiled: this is the first step of a compiled model; torch's compiler counts what its kernels read and write, and
            the optimizer's step and what else is not compiled is left out.
    """
    if not compiled:
        with Traffic() as traffic:
            step()
        return traffic.total
    metrics: Any = None
    with contextlib.suppress(Exception):  # private names: if they change, nothing is counted, and the race goes on
        from torch._inductor import compile_fx, graph, metrics

        count = graph.GraphLowering.count_bytes

        def attempt(lowering: graph.GraphLowering) -> Any:
            with contextlib.suppress(Exception):
                return count(lowering)
            return 0, [], []

        graph.GraphLowering.count_bytes = attempt  # type: ignore[method-assign, assignment]
        compile_fx.inductor_metrics_log.setLevel(logging.INFO)  # otherwise the compiler does not count
        metrics.reset()
    step()
    return int(getattr(metrics, "num_bytes_accessed", 0))


def serve(who: Contestant | str, seconds: float, counted: bool, connection: Connection) -> None:
    """Run a contestant's process: build it, run a first step, then one block of steps per request."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compile workers would stay and hold memory
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    try:
        began, step_bytes = time.perf_counter(), 0
        if isinstance(who, str):
            step, per_step, device = limits.LIMITS[who].build(), limits.LIMITS[who].per_step, devices.choose_device()
        else:
            step, per_step, device = build(who), who.shape.batch_size, devices.choose_device(who.device)
            per_step *= EPOCH_STEPS if who.task == "epoch" else 1
        if counted and isinstance(who, Contestant):
            step_bytes = counted_bytes(step, who.compiled)
        else:
            step()
        synchronize()
        first_seconds = time.perf_counter() - began
        for _ in range(2 * getattr(who, "graphs", False)):  # CUDA graphs are recorded in the second step
            step()
        synchronize()
        release()
        connection.send((first_seconds, step_bytes))
        n_steps = 0
        while True:
            connection.recv()
            step()  # not timed: it allocates the released memory again
            synchronize()
            began = time.perf_counter()
            if not n_steps:
                step()
                synchronize()
                n_steps = max(1, round(seconds / (time.perf_counter() - began)))
                began = time.perf_counter()
            for _ in range(n_steps):
                step()
            synchronize()  # wait for the GPU once per block, not after every step
            rate = n_steps * per_step / (time.perf_counter() - began)
            release()
            connection.send((rate, devices.peak_memory(device)))
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def take_turns(
    whos: list[Contestant | str],
    blocks: int,
    seconds: float,
    tell: Callable[[str], None] = print,
    until: float | None = None,
    at_once: int = 1,
) -> list[Timing]:
    """Time all contestants in turns, in one run.

    Args:
        whos: contestants and names of limits.
        blocks: number of timed blocks per contestant; every second round runs in reverse order.
        seconds: approximate length of a block in seconds; a block has at least one step.
        tell: receives lines of progress.
        until: when to end, in seconds of ``time.monotonic``. Who fails, or is not ready after 65 % of the time, is then
            left out with an ``error``, the last rounds may be missing, and the bytes of a step are counted. A round that
            is not complete does not count, unless it is the first.
        at_once: number of contestants that start side by side; the next one starts as soon as one is ready.

    Raises:
        RuntimeError: if a contestant fails and ``until`` is not given; the message names it.
    """
    race = Race(whos, seconds, tell, until)
    try:
        race.start_all(at_once)
        race.time_rounds(blocks)
    finally:
        race.end()
    return race.timings


class Race:
    """The contestants' processes, and what was measured of each; arguments as in :func:`take_turns`."""

    def __init__(
        self, whos: list[Contestant | str], seconds: float, tell: Callable[[str], None], until: float | None
    ) -> None:
        self.timings = [Timing(who, limits.LIMITS[who].unit if isinstance(who, str) else "images") for who in whos]
        self.seconds, self.tell, self.until = seconds, tell, until
        self.connections: dict[int, Connection] = {}  # by place in ``timings``, as the processes
        self.children: dict[int, Any] = {}

    def start_all(self, at_once: int) -> None:
        """Start all contestants, some at once, and wait for their first steps."""
        began, waiting, starting = time.monotonic(), list(range(len(self.timings))), dict[Any, int]()
        while waiting or starting:
            while waiting and len(starting) < at_once:
                index = waiting.pop(0)
                self.start(index)
                starting[self.connections[index]] = index
            left = None if self.until is None else max(0.0, began + 0.65 * (self.until - began) - time.monotonic())
            ready = wait(list(starting), left)
            for connection in ready:
                index = starting.pop(connection)
                if answer := self.receive(index):
                    timing = self.timings[index]
                    timing.first_seconds, timing.step_bytes = answer
                    self.tell(f"{timing.name}: first step after {timing.first_seconds:.1f} s")
            if not ready:
                for index in (*starting.values(), *waiting):
                    self.leave_out(index, "it was not ready in time")
                return

    def time_rounds(self, blocks: int) -> None:
        """Let the contestants run one block each in every round, as long as there is time for a whole round."""
        began = time.monotonic()
        for block in range(blocks):
            if self.until and block and time.monotonic() + (time.monotonic() - began) / block > self.until:
                break
            order = [index for index, timing in enumerate(self.timings) if not timing.error]
            if not all(self.time_block(index) for index in (order if block % 2 == 0 else order[::-1])):
                for timing in self.timings:
                    timing.rates = timing.rates[: max(1, block)]
                break
            self.tell(f"block {block + 1} of {blocks}")
        for index, timing in enumerate(self.timings):
            if not timing.rates and not timing.error:
                self.leave_out(index, "the time was up before the end of its first block")

    def time_block(self, index: int) -> bool:
        """Let a contestant run a block; False if the time is up before its end."""
        with contextlib.suppress(ConnectionError):  # ``receive`` notices it as well
            self.connections[index].send(True)
        if self.until is not None and not self.connections[index].poll(max(0.0, self.until - time.monotonic())):
            return False
        if answer := self.receive(index):
            rate, self.timings[index].peak_bytes = answer
            self.timings[index].rates.append(rate)
        return True

    def start(self, index: int) -> None:
        """Start a contestant's process; its first message says that it is ready."""
        self.connections[index], there = processes.Pipe()
        words = (self.timings[index].who, self.seconds, self.until is not None, there)
        child = processes.Process(target=serve, args=words, daemon=True)
        child.start()
        self.children[index] = child
        there.close()  # so that ``recv`` notices when the process ends

    def receive(self, index: int) -> Any:
        """The next message of a contestant; None if it failed and the race goes on without it."""
        try:
            answer = self.connections[index].recv()
        except (EOFError, ConnectionError):
            answer = RuntimeError("its process ended, possibly out of memory")
        if not isinstance(answer, Exception):
            return answer
        if self.until is None:
            raise RuntimeError(f"{self.timings[index].who} failed: {answer}")
        self.leave_out(index, str(answer).strip().split("\n")[0])
        return None

    def leave_out(self, index: int, why: str) -> None:
        """Go on without a contestant, and end its process."""
        self.timings[index].error = why
        self.tell(f"{self.timings[index].name} is left out: {why}")
        if index in self.children:
            self.children[index].kill()

    def end(self) -> None:
        """End all processes."""
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.join()  # frees its memory for the next part
