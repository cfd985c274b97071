"""The machine's limits: products of large square matrices, and memory copies.

Other shapes can be up to a fifth faster (LOG.md): a share of a limit measures utilization, not the possible speed-up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mae_core import devices

SIDE = 4096


@dataclass(frozen=True)
class Limit:
    """A limit's unit, a function that builds its step, and the number of units per step."""

    unit: str
    build: Callable[[], Callable[[], object]]
    per_step: float


def product(precision: torch.dtype) -> Callable[[], Callable[[], object]]:
    def build() -> Callable[[], object]:
        device = devices.choose_device()
        devices.set_up()
        a, b = (torch.randn(SIDE, SIDE, device=device).to(precision) for _ in range(2))
        return lambda: a @ b

    return build


def copy() -> Callable[[], object]:
    source = torch.randn(64 << 20, device=devices.choose_device())  # 256 MiB: larger than any cache
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


LIMITS = {
    "bfloat16 matrix product": Limit("FLOP", product(torch.bfloat16), 2 * SIDE**3),
    "float32 matrix product": Limit("FLOP", product(torch.float32), 2 * SIDE**3),
    "memory copy": Limit("byte", copy, 2 * 4 * (64 << 20)),  # read and written
}
