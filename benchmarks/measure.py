"""Turns: every contestant lives in a process of its own and runs only when it is told to, while all others wait.

So each has its own allocator, threads and compiled code, its peak memory is its own, and a slow spell of the machine
that lasts longer than a round meets all of them.
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

processes = multiprocessing.get_context("spawn")


@dataclass
class Timing:
    """What was measured of one contestant.

    Attributes:
        who: the contestant, or the name of a limit.
        unit: of the rates.
        rates: one a block: units a second.
        first_seconds: of the first step, which compiles, warms up and fills caches; not among the rates.
        peak_bytes: the most memory that its process held, all in all (on CUDA: on the device).
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
    """Give back what the allocator keeps: the contestants who wait should not hold the memory of the one who runs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim:
        trim(0)


def serve(who: Contestant | str, seconds: float, connection: Connection) -> None:
    """What a contestant's process does: build, take a first step, then a block of steps each time it is asked."""
    warnings.filterwarnings("ignore")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of compilers would stay, and hold memory
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
            step()  # not timed: it gets back the memory that was released
            synchronize()
            began = time.perf_counter()
            for _ in range(n_steps):
                step()
            synchronize()  # a GPU is waited for once a block, not at every step
            rate = n_steps * per_step / (time.perf_counter() - began)
            release()
            connection.send(rate)
        connection.send(devices.peak_memory(device))
    except Exception as error:
        connection.send(error)


def take_turns(
    whos: list[Contestant | str], blocks: int, seconds: float, tell: Callable[[str], None] = print
) -> list[Timing]:
    """Time all contestants in one run, in turns.

    Args:
        whos: contestants and names of limits.
        blocks: timed blocks of each; the order is turned round from round to round.
        seconds: length of a block, about, and one step at least.
        tell: gets a line of progress.

    Raises:
        RuntimeError: if a contestant fails, naming it.
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
            answer = RuntimeError("its process ended; for lack of memory?")
        if isinstance(answer, Exception):
            raise RuntimeError(f"{whos[index]} failed: {answer}")
        return answer

    try:
        for index, who in enumerate(whos):
            here, there = processes.Pipe()
            child = processes.Process(target=serve, args=(who, seconds, there), daemon=True)
            child.start()
            there.close()  # so that the end of the process is noticed
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
            child.join()  # its memory is free for those who come next
    return timings
