"""Where a result came from: commit, data, versions, hardware."""

import ast
import datetime
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from mae_core import data, devices, results
from mae_core.parameters import RunParameters

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "safetensors",
    "papermill",
    "nbconvert",
    "matplotlib",
    "snakemake",
    "typst",
)


def collect(run: RunParameters, device: torch.device, weights: Path) -> dict[str, Any]:
    """What it takes, beside the commit, to run the same again and to know whether it is the same.

    Args:
        weights: the file of the run's final weights.
    """
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": devices.describe(device),
        "precision": str(devices.choose_precision(run.precision, device)).removeprefix("torch."),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions(),
        "data_md5": data.checksum(run.dataset, run.data_dir),
        "weights_sha256": results.tensors_sha256(weights),
    }


def ingredients(run: RunParameters, device: torch.device) -> dict[str, str]:
    """What a run depends on beside its parameters: checksums of code, data and pre-trained weights, device, precision."""
    weights = getattr(run, "weights", "")
    return {
        "code": code(),
        "data": data.checksum(run.dataset, run.data_dir),
        "weights": results.tensors_sha256(Path(weights)) if weights else "",
        "device": device.type,
        "precision": str(devices.choose_precision(run.precision, device)).removeprefix("torch."),
    }


def code() -> str:
    """Checksum of the modules that training depends on."""
    digest = hashlib.sha256()
    for path in sources(Path(__file__).with_name("training.py")):
        digest.update((Path(__file__).parents[1] / path).read_bytes())
    return digest.hexdigest()


def commit() -> dict[str, Any]:
    """The commit of the code now, and whether tracked files differ from it; None outside a git checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None:
        return {"commit": None, "clean": None}
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/mae_core", ":/notebooks", ":/params")
    return {"commit": git("rev-parse", "HEAD"), "clean": changed == ""}


def versions() -> dict[str, str]:
    """Installed versions of what the results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sources(path: str | Path) -> list[str]:
    """The package's modules that a notebook or a module imports, directly or through others: what a change must re-run.

    ``from mae_core import name`` counts as an import of the module that defines the name.
    """
    package = Path(__file__).parent
    exported = {}
    for node in ast.parse((package / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            exported |= {alias.name: node.module for alias in node.names}

    def imports(source: str) -> set[Path]:
        modules = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package.name:
                modules.add(node.module)
                modules |= {f"{node.module}.{alias.name}" for alias in node.names}
                modules |= {exported[alias.name] for alias in node.names if alias.name in exported}
        paths = {package / f"{module.removeprefix(f'{package.name}.').replace('.', '/')}.py" for module in modules}
        return {path for path in paths if path.exists()}

    path = Path(path)
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        found, queue = set(), imports(re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE))
    else:
        found, queue = set(), {path.resolve()}
    while queue:
        found |= queue
        queue = set().union(*(imports(module.read_text()) for module in queue)) - found
    return sorted(str(module.relative_to(package.parent)) for module in found)
