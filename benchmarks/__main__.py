"""Run the benchmark and write its results.

python -m benchmarks                       all tasks, an hour or more on two cores
python -m benchmarks --tasks pretrain      one task
python -m benchmarks --tiny                a small model, to check that it works
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import summary
from benchmarks.contestants import Contestant, Shape
from benchmarks.machine import about, installed, machine_name
from benchmarks.measure import Timing, take_turns
from mae_core import devices
from mae_core.evaluation import flops
from mae_core.model.config import STRATEGIES
from mae_core.model.masking import sample_mask
from mae_core.study import results
from mae_core.study.parameters import FinetuneParameters, PretrainParameters

VIT_T2, TINY = Shape(), Shape(patch_size=8, width=24, depth=1, heads=2, decoder_depth=1, batch_size=32)
PEERS = ("transformers", "lightly")
COMPARED = ("pretrain", "finetune", "evaluate")
BATCHES = {"pretrain": 1024, "finetune": 512}  # images a step, to fill a GPU
RACED = {"pretrain": ("transformers", "lightly"), "finetune": ("timm", "transformers")}  # lightly fine-tunes timm's
RACE_STARTS = 6  # at a time: most of a start is the compiler's work on the CPU
MORE = ("tuned", "ours", "scaling", "processes")
SCALED = {
    "batch_size": [{"batch_size": size} for size in (16, 64, 256)],
    "image_size": [{"image_size": size, "batch_size": 8} for size in (32, 64, 96)],
    "width": [{"width": width, "heads": width // 64, "batch_size": 32} for width in (64, 192, 384)],
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=(*COMPARED, *MORE), help="default: all")
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks per contestant (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="approximate seconds per block (default: 4)")
    parser.add_argument("--tiny", action="store_true", help="use a small model; takes a minute or two")
    parser.add_argument("--limit", type=float, help="race against the clock, as in make gpu: seconds per task")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    words = parser.parse_args()
    tasks = words.tasks or tasks_here()
    if not set(tasks) <= set(tasks_here()):
        parser.error("processes is for a CPU: set CUDA_VISIBLE_DEVICES to nothing, or leave this task out")
    if words.limit and not set(tasks) <= set(BATCHES):
        parser.error(f"--limit is for some of the tasks only: add --tasks {' '.join(BATCHES)}")
    shape = TINY if words.tiny else VIT_T2
    path = words.out / ("race" if words.limit else machine_name() + "-tiny" * words.tiny)
    # A part that runs again replaces its earlier results; other parts stay.
    content = results.read_json(path.with_suffix(".json")) if path.with_suffix(".json").exists() else {"parts": {}}
    for task in tasks:
        print(f"== {task}", flush=True)
        if words.limit:
            timings, more = against_the_clock(task, words.tiny, words.blocks, words.seconds, words.limit)
        else:
            timings = take_turns(list(contestants(task, shape, words.tiny)), words.blocks, words.seconds)
            more = {"masks": mask_seconds(shape)} if task == "ours" else {}
        part = {"timings": [as_plain(timing) for timing in timings], "about": about(), "seconds": words.seconds, **more}
        content["parts"][task] = part
        summary.write(path, content)
    print(summary.markdown(content))
    if words.limit:
        print(summary.in_a_line(part))


def against_the_clock(
    task: str, tiny: bool, blocks: int, seconds: float, limit: float
) -> tuple[list[Timing], dict[str, Any]]:
    """Race within a time limit in seconds, and leave out who fails or is late.

    The most important contestants come first; the last one, ours in its deterministic mode, shows what that mode costs.
    They use the fastest precision and batches that fill a GPU; a tiny race is ours against one peer, not compiled.

    Returns:
        The timings, and ``left_out``: a reason for each that has none.
    """
    precision, shape = multiplied()[0], TINY if tiny else dataclasses.replace(VIT_T2, batch_size=BATCHES[task])
    peers = [name for name in RACED[task] if installed(name)][: 1 if tiny else None]
    whos: list[Contestant | str] = [f"{precision} matrix product", "memory copy"]
    for compiled, graphs in ((True, True), (True, False), (False, False))[2 * tiny :]:
        for name in ("ours", *peers):
            whos.append(Contestant(name, task, precision, compiled, shape, threads=int(tiny), graphs=graphs))
    whos.append(Contestant("ours", task, precision, not tiny, shape, threads=int(tiny), deterministic=True))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, (os.cpu_count() or 1) // RACE_STARTS)))
    timings = take_turns(whos, blocks, seconds, until=time.monotonic() + limit, at_once=RACE_STARTS)
    left_out = {timing.name: timing.error for timing in timings if timing.error}
    timed = [timing for timing in timings if not timing.error]
    if any(isinstance(t.who, str) and t.error for t in timings) or not any(t.name.startswith("ours") for t in timed):
        sys.exit(f"the race has no result without ours and the limits, but these were left out: {left_out}")
    return timed, {"left_out": left_out}


def tasks_here() -> list[str]:
    """The tasks for this machine's device: ``processes`` needs the precisions and limits of a CPU."""
    on_cpu = devices.choose_device().type == "cpu"
    return [task for task in (*COMPARED, *MORE) if on_cpu or task != "processes"]


def contestants(task: str, shape: Shape, tiny: bool) -> Iterator[Contestant | str]:
    """The contestants of one part of the benchmark, after the machine's limits."""
    precisions = multiplied()
    yield from (f"{precision} matrix product" for precision in precisions)
    yield "memory copy"
    if task == "scaling":
        for variants in SCALED.values():
            for more in variants if not tiny else variants[:1]:
                yield Contestant("ours", "pretrain", precisions[0], False, dataclasses.replace(shape, **more))
        return
    if task == "tuned":
        for compared in COMPARED:
            for name in ("ours", *PEERS):
                yield Contestant(name, compared, precisions[0], False, shape, tuned=name != "ours")
        return
    if task == "processes":
        for own in ("pretrain", "finetune"):
            yield Contestant("ours", own, precisions[0], False, shape, threads=2, device="cpu")
            yield Contestant("ours", own, precisions[0], False, shape, threads=1, device="cpu", processes=2)
        return
    if task == "ours":
        for own in ("pretrain", "mask tokens", "epoch", "steps alone"):
            yield Contestant("ours", own, precisions[0], False, shape)
        return
    for name in ("ours", *PEERS):
        for precision in precisions:
            for compiled in (False, True):
                if task != "evaluate" or not compiled:
                    yield Contestant(name, task, precision, compiled, shape)


def multiplied() -> tuple[str, ...]:
    """The precisions to measure, the fastest first: bfloat16 only where ``precision: auto`` chooses it.

    A CPU without bfloat16 emulates it hundreds of times slower than float32 (LOG.md): a step would take too long.
    """
    fastest = devices.choose_precision("auto", devices.choose_device())
    return ("bfloat16", "float32") if fastest == torch.bfloat16 else ("float32",)


def as_plain(timing: Timing) -> dict[str, Any]:
    who = {"limit": timing.who} if isinstance(timing.who, str) else dataclasses.asdict(timing.who)
    plain = {**who, "unit": timing.unit, "rates": timing.rates, "median": timing.median}
    plain |= {"first_seconds": timing.first_seconds, "peak_bytes": timing.peak_bytes}
    if isinstance(timing.who, Contestant):
        plain["label"] = timing.who.label
        plain["flops_per_image"] = training_flops(timing.who)
        if timing.step_bytes:
            plain["bytes_per_image"] = timing.step_bytes / timing.who.shape.batch_size
    return plain


def training_flops(who: Contestant) -> int:
    """The model's FLOPs per image: the forward pass, plus twice as much for the backward pass when training.

    They are the same for every contestant, whatever it adds or skips: the published model predicts all patches.
    """
    shape = {k: v for k, v in dataclasses.asdict(who.shape).items() if k != "batch_size"}
    shape |= {"decoder_width": who.shape.width, "decoder_heads": who.shape.heads}
    if who.task in ("finetune", "evaluate"):
        forward = flops.of_classifier(FinetuneParameters(**shape), n_classes=10)
        return forward * (3 if who.task == "finetune" else 1)
    return 3 * flops.of_pretraining(PretrainParameters(**shape, mask_tokens_in_encoder=who.task == "mask tokens"))


def mask_seconds(shape: Shape, batch: int = 4096, repeats: int = 5) -> dict[str, Any]:
    """Median time in seconds to sample the masks of a batch, per strategy."""
    device, grid_size = devices.choose_device(), shape.image_size // shape.patch_size
    found: dict[str, Any] = {"batch": batch}
    for strategy in STRATEGIES:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            sample_mask(strategy, 0.75, batch, grid_size, None, device).ids_shuffle_BN.sum().item()
            times.append(time.perf_counter() - began)
        found[strategy] = statistics.median(times)
    return found


if __name__ == "__main__":
    main()
