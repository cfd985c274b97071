"""How a run is computed: precision, workers, images per part, and compilation."""

import math
import os
import shutil
from dataclasses import dataclass

import torch

from mae_core.devices import choose_precision, cpu_has_tiles
from mae_core.study.parameters import FinetuneParameters, PretrainParameters

# Target size of a worker's widest activations, in bytes. Measured: half and twice as much are no faster (LOG.md).
CACHED_BYTES = 8 << 20
TILED_BYTES = 32 << 20  # processors with AMX tiles multiply bfloat16 several times as fast and need larger parts


@dataclass(frozen=True)
class Plan:
    """How a run is computed; ``str`` gives it in one line, with reasons."""

    precision: torch.dtype  # of matrix products and activations; weights, gradient sums and optimizer stay float32
    workers: int  # number of model copies that compute in parallel
    images_at_once: int  # per pass of one worker; gradients are accumulated over the passes of a step
    compiled: bool  # whether the loss is compiled with torch.compile
    graphs: bool  # whether CUDA graphs are used too
    reasons: tuple[str, ...]  # one for each choice

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def choose_plan(run: PretrainParameters | FinetuneParameters, device: torch.device, processes: int = 1) -> Plan:
    """Choose the settings of each process that are ``auto`` or 0 in the run, based on measurements (LOG.md)."""
    precision = choose_precision(run.precision, device)
    cpu = device.type == "cpu"
    workers = torch.get_num_threads() if cpu else 1
    batch_size = math.ceil(run.batch_size / processes)
    images = min(run.micro_batch or batch_size, batch_size)
    tiled = cpu and precision == torch.bfloat16 and cpu_has_tiles()
    if cpu and not run.micro_batch:
        image_bytes = (1 + run.model.n_patches) * run.width * run.model.mlp_ratio * precision.itemsize
        most_bytes = TILED_BYTES if tiled else CACHED_BYTES
        images = min(images, 2 ** max(0, int(math.log2(most_bytes / image_bytes))))
        images = min(images, math.ceil(batch_size / workers))
    on_cuda = device.type == "cuda"
    graphs = run.compile == "graphs" and on_cuda
    compiled = run.compile in ("on", "graphs") or (run.compile == "auto" and on_cuda and has_compiler())
    in_parallel = f"{workers} workers" if workers > 1 else "1 worker"
    computed = "compiled, CUDA graphs" if graphs else "compiled" if compiled else "not compiled"
    return Plan(
        precision,
        workers,
        images,
        compiled,
        graphs,
        (
            f"{device.type} in {str(precision).removeprefix('torch.')} ({why_precision(run.precision, precision)})",
            *([f"{processes} processes, each with a part of the batch"] if processes > 1 else []),
            f"{in_parallel}, {images} images at once ({why_images(run.micro_batch, cpu, tiled)})",
            f"{computed} ({why_compiled(run.compile, device.type, compiled)})",
        ),
    )


def why_precision(asked: str, precision: torch.dtype) -> str:
    """The reason for a precision, in a few words."""
    if asked != "auto":
        return "as asked"
    return "multiplied in hardware" if precision == torch.bfloat16 else "bfloat16 is no faster here"


def why_images(micro_batch: int, on_cpu: bool, tiled: bool) -> str:
    """The reason for the number of images in one pass, in a few words."""
    if micro_batch:
        return "as asked"
    if tiled:
        return "large parts feed the tiles"
    return "activations near the caches" if on_cpu else "the whole batch"


def why_compiled(asked: str, device: str, compiled: bool) -> str:
    """The reason for compiling or not, in a few words."""
    if asked != "auto":
        return "as asked"
    if device == "cpu":
        return "starting it costs more than it saves"
    if compiled:
        return "operations fused save memory traffic"
    return "no C compiler here" if device == "cuda" else "not tried on this device"


def has_compiler() -> bool:
    """Whether Triton, torch's compiler for CUDA, finds the C compiler that it needs."""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
