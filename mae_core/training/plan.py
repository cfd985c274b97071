"""How a run is computed: precision, workers, images per part, and compilation."""

import math
from dataclasses import dataclass

import torch

from mae_core.devices import choose_precision, cpu_has_tiles
from mae_core.study.parameters import FinetuneParameters, PretrainParameters

# The widest activations of a worker's images, in bytes, by measurement (LOG.md): half and twice as much are no faster.
CACHED_BYTES = 8 << 20
TILED_BYTES = 32 << 20  # where tiles multiply bfloat16, several times as fast: small parts would not feed them


@dataclass(frozen=True)
class Plan:
    """How a run is computed; ``str`` says it, with the reasons, in one line.

    Attributes:
        precision: of matrix products and activations; weights, gradients' sums and the optimizer stay float32.
        workers: copies of the model that compute side by side.
        images_at_once: of a worker; gradients add up to a step's.
        compiled: whether torch.compile fuses the model's operations.
        graphs: whether a part's operations are recorded as CUDA graphs too, and started by one call each.
        reasons: one a choice.
    """

    precision: torch.dtype
    workers: int
    images_at_once: int
    compiled: bool
    graphs: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def choose_plan(run: PretrainParameters | FinetuneParameters, device: torch.device) -> Plan:
    """Choose the settings that the run leaves open, based on measurements (in LOG.md)."""
    precision = choose_precision(run.precision, device)
    cpu = device.type == "cpu"
    workers = torch.get_num_threads() if cpu else 1
    images = run.micro_batch or run.batch_size
    tiled = cpu and precision == torch.bfloat16 and cpu_has_tiles()
    if cpu and not run.micro_batch:
        image_bytes = (1 + run.model.n_patches) * run.width * run.model.mlp_ratio * precision.itemsize
        most_bytes = TILED_BYTES if tiled else CACHED_BYTES
        images = min(images, 2 ** max(0, int(math.log2(most_bytes / image_bytes))))
        images = min(images, math.ceil(run.batch_size / workers))
    graphs = run.compile == "graphs" and device.type == "cuda"
    compiled = run.compile in ("on", "graphs") or (run.compile == "auto" and device.type == "cuda")
    why = {
        "precision": "as asked" if run.precision != "auto" else "multiplied in hardware"
        if precision == torch.bfloat16 else "no hardware for bfloat16",
        "images": "as asked" if run.micro_batch else "large parts feed the tiles" if tiled
        else "activations near the caches" if cpu else "the whole batch",
        "compiled": "as asked" if run.compile != "auto" else "starting it costs more than it saves" if cpu
        else "operations fused save memory traffic" if compiled else "not tried on this device",
    }  # fmt: skip
    return Plan(
        precision,
        workers,
        images,
        compiled,
        graphs,
        (
            f"{device.type} in {str(precision).removeprefix('torch.')} ({why['precision']})",
            f"{workers} worker{'s' * (workers > 1)}, {images} images at once ({why['images']})",
            f"{'compiled' if compiled else 'not compiled'}{', CUDA graphs' * graphs} ({why['compiled']})",
        ),
    )
