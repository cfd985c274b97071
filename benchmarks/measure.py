"""Timing in turns: every contestant has its own process and runs only on request, while all others wait.

Each therefore has its own allocator, threads, compiled code and peak memory, and a slow period of the machine that
lasts longer than a round affects all of them.
"""

import ctypes
import gc
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

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
    """

    who: Contestant | str
    unit: str
    rates: list[float] = field(default_factory=list)
    first_seconds: float = 0.0
    peak_bytes: int = 0

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
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # GNU C library only
    if trim:
        trim(0)


def serve(who: Contestant | str, seconds: float, connection: Connection) -> None:
    """Run a contestant's process: build it, run a first step, then one block of steps per request."""
    warnings.filterwarnings("ignore")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of compile workers would stay and hold memory
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    try:
        began = time.perf_counter()
        if isinstance(who, str):
            step, per_step, device = limits.LIMITS[who].build(), limits.LIMITS[who].per_step, devices.choose_device()
        else:
            step, per_step, device = build(who), who.shape.batch_size, devices.choose_device(who.device)
            per_step *= EPOCH_STEPS if who.task == "epoch" else 1
        step()
        synchronize()
        first = time.perf_counter()
        step()
        synchronize()
        n_steps = max(1, round(seconds / (time.perf_counter() - first)))
        release()
        connection.send(first - began)
        while connection.recv():
            step()  # not timed: it allocates the released memory again
            synchronize()
            began = time.perf_counter()
            for _ in range(n_steps):
                step()
            synchronize()  # wait for the GPU once per block, not after every step
            rate = n_steps * per_step / (time.perf_counter() - began)
            release()
            connection.send(rate)
        connection.send(devices.peak_memory(device))
    except Exception as error:
        connection.send(error)


def take_turns(
    whos: list[Contestant | str], blocks: int, seconds: float, tell: Callable[[str], None] = print
) -> list[Timing]:
    """Time all contestants in turns, in one run.

    Args:
        whos: contestants and names of limits.
        blocks: number of timed blocks per contestant; every second round runs in reverse order.
        seconds: approximate length of a block in seconds; a block has at least one step.
        tell: receives lines of progress.

    Raises:
        RuntimeError: if a contestant fails; the message names it.
    """
    timings: list[Timing] = []
    connections: list[Connection] = []
    children: list[Any] = []

    def ask(index: int, word: object) -> Any:
        if word is not None:
            connections[index].send(word)
        try:
            answer = connections[index].recv()
        except EOFError:
            answer = RuntimeError("its process ended, possibly out of memory")
        if isinstance(answer, Exception):
            raise RuntimeError(f"{whos[index]} failed: {answer}")
        return answer

    try:
        for index, who in enumerate(whos):
            here, there = processes.Pipe()
            child = processes.Process(target=serve, args=(who, seconds, there), daemon=True)
            child.start()
            there.close()  # so that ``recv`` notices when the process ends
            connections.append(here)
            children.append(child)
            unit = limits.LIMITS[who].unit if isinstance(who, str) else "images"
            timings.append(Timing(who, unit, first_seconds=ask(index, None)))
            tell(f"{who if isinstance(who, str) else who.label}: first step after {timings[-1].first_seconds:.1f} s")
        for block in range(blocks):
            order = list(range(len(whos)))
            for index in order if block % 2 == 0 else order[::-1]:
                timings[index].rates.append(ask(index, True))
            tell(f"block {block + 1} of {blocks}")
        for index, timing in enumerate(timings):
            timing.peak_bytes = ask(index, False)
    finally:
        for child in children:
            child.kill()
            child.join()  # frees its memory for the next part
    return timings
