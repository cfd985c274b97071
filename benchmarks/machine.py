"""The machine of a measurement: a file name, and what to write beside the numbers."""

import importlib.metadata
import importlib.util
import platform
import re
from typing import Any

import torch

from mae_core import devices
from mae_core.study import provenance


def about() -> dict[str, Any]:
    """The machine and the package versions of the results."""
    packages, device = ("torch", "transformers", "lightly", "timm"), devices.choose_device()
    return {
        **provenance.commit(),
        "device": devices.describe(device),
        "processor": processor() if device.type == "cpu" else "",
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in packages if installed(name)},
    }


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def processor() -> str:
    """Family and model, which distinguish processors of the same name, on Linux: ``family 25, model 1``."""
    family, model = devices.cpu_fact("cpu family"), devices.cpu_fact("model")
    return f"family {family}, model {model}" if family and model else ""


def machine_name() -> str:
    """A file name for this machine's results; processors of the same name can differ in age and instructions."""
    device = devices.choose_device()
    name = devices.describe(device)
    if device.type == "cpu":
        name += f" {processor()} {torch.backends.cpu.get_cpu_capability()}"
        name += " bfloat16" * devices.cpu_has_bfloat16() + " tiles" * devices.cpu_has_tiles()
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
