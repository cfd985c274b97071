"""The provenance of a result: commit, data, versions, hardware."""

import datetime
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from mae_core import devices
from mae_core.data import images
from mae_core.study import checkout
from mae_core.study.foreign import settings_sha256, weights_file
from mae_core.study.parameters import RunParameters
from mae_core.study.sources import PACKAGE, sources
from mae_core.study.tensors import tensors_sha256

PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "papermill", "nbconvert", "matplotlib", "snakemake", "typst")


def collect(run: RunParameters, device: torch.device, weights: Path, data_md5: str) -> dict[str, Any]:
    """The information, besides the commit, to repeat a run with the final ``weights`` and to check the result.

    Args:
        data_md5: checksum of the data when they were loaded; the files may have changed since.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"versions": versions(), "data_md5": data_md5, "weights_sha256": tensors_sha256(weights)}
    return {"finished": now} | machine(run, device) | found


def machine(run: RunParameters, device: torch.device) -> dict[str, str]:
    """The hardware, precision and system that a run uses."""
    return {
        "device": devices.describe(device),
        "precision": str(devices.choose_precision(run.precision, device)).removeprefix("torch."),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def ingredients(run: RunParameters, device: torch.device) -> dict[str, str]:
    """What a run depends on besides its parameters: checksums of code, data, and initial weights with the settings beside
    them; device; precision.

    And ``machine``, in words: a run may go on elsewhere, and its provenance then names all machines.
    """
    weights, here = getattr(run, "weights", ""), machine(run, device)
    return {
        "code": code(),
        "data": images.checksum(run.dataset, run.data_dir, run.image_size),
        "weights": tensors_sha256(weights_file(weights)) + (settings_sha256(weights) or "") if weights else "",
        "device": device.type,
        "precision": here["precision"],
        "machine": f"{here['device']}; {here['platform']}, torch {torch.__version__}",
    }


def code() -> str:
    """SHA-256 of the modules that training depends on."""
    digest = hashlib.sha256()
    for path in sources(PACKAGE / "training" / "runs.py"):
        digest.update((PACKAGE.parent / path).read_bytes())
    return digest.hexdigest()


def commit() -> dict[str, Any]:
    """The current commit, and whether tracked files match it; both None outside a git checkout.

    ``commit_missing`` says why there is none if git refuses to read a checkout, or if a repository around the package does
    not hold it, as around a virtual environment.
    """
    try:
        head = checkout.git("rev-parse", "HEAD")
        holds_us = checkout.git("ls-files", "--", "mae_core/__init__.py")
        changed = checkout.git("status", "--porcelain", "--untracked-files=no", "--", "mae_core", "notebooks", "params")
    except OSError:
        reason = "git is not installed"
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.splitlines()), "git failed").removeprefix("fatal: ")
    else:
        if holds_us:
            return {"commit": head, "clean": changed == ""}
        reason = "the git repository around the package does not hold it"
    inside = any((parent / ".git").exists() for parent in (checkout.ROOT, *checkout.ROOT.parents))
    return {"commit": None, "clean": None} | ({"commit_missing": reason} if inside else {})


def versions() -> dict[str, str]:
    """Installed versions of the packages that the results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
