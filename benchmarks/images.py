"""Images of one's own: how fast they are decoded and delivered, against torchvision's ImageFolder with a DataLoader.

    python -m benchmarks.images              decoding, and an epoch from memory, from the mapped file, from the peer
    python -m benchmarks.images memory       what a process holds that trains on 100,000 images of 96 pixels from the file

All in a temporary folder, which needs 3 GB for ``memory``.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from mae_core import devices
from mae_core.data.images import Split, augment, load, place, scale_pixels
from mae_core.data.store import Stored, Write, prepared
from mae_core.model.mae import MaskedAutoencoder
from mae_core.study.parameters import PretrainParameters
from mae_core.training import objective, runs
from mae_core.training.loop import fit

SIDE, BATCH, WORKERS = 96, 128, 2
N_FILES, FILE_SIZE = 2000, (500, 375)  # JPEG files, of the usual size of ImageNet's
N_MEMORY = 100_000
CPU = torch.device("cpu")


def write_photos(folder: Path) -> None:
    """JPEG files of smooth noise, in two classes, for training and for testing."""
    draw = np.random.default_rng(0)
    for i in range(N_FILES + 2):
        part = folder / ("train" if i < N_FILES else "test") / f"class {i % 2}"
        part.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8))
        coarse.resize(FILE_SIZE, Image.Resampling.BICUBIC).save(part / f"{i}.jpg", quality=90)


def peer_epoch(folder: Path) -> None:
    """One epoch of torchvision's loader, with as many workers as there are cores here."""
    steps = transforms.Compose([
        transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.RandomCrop(SIDE, 4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ])  # fmt: skip
    for _ in DataLoader(datasets.ImageFolder(folder / "train", steps), BATCH, shuffle=True, num_workers=WORKERS):
        pass


def own_epoch(split: Split) -> None:
    """One epoch of ours, augmented and scaled as for training."""
    for images_BCHW in split.stream(torch.randperm(len(split)).split(BATCH)):
        scale_pixels(augment(images_BCHW, "crop-flip"))


def rate(what: Callable[[], object], repeats: int) -> float:
    """Images per second, best of several times."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        what()
        times.append(time.perf_counter() - began)
    return N_FILES / min(times)


def race() -> None:
    """Print images per second, each way."""
    with tempfile.TemporaryDirectory() as place_:
        folder = Path(place_)
        write_photos(folder)
        peer = rate(lambda: peer_epoch(folder), 2)
        decoding = rate(lambda: load("folder", folder, image_size=SIDE), 1)
        split = load("folder", folder, image_size=SIDE)
        on_host, in_memory = (place([split], where, CPU)[0] for where in ("host", "device"))
        rows = {
            f"ImageFolder and DataLoader, {WORKERS} workers": peer,
            "decoding, once": decoding,
            "an epoch from the memory-mapped file": rate(lambda: own_epoch(on_host), 5),
            "an epoch from memory": rate(lambda: own_epoch(in_memory), 5),
        }
    print(f"{N_FILES} JPEG files of {FILE_SIZE[0]} × {FILE_SIZE[1]} pixels to {SIDE} × {SIDE}; {devices.describe(CPU)}")
    for name, speed in rows.items():
        print(f"{name:<44} {speed:>9,.0f} images/s  {speed / peer:6.2f} × the peer")


def resident(key: str) -> int:
    """A figure of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(key))


def memory() -> None:
    """Train one epoch on a file of 100,000 images, and print what the process held at most."""
    run = PretrainParameters(
        image_size=SIDE, patch_size=16, batch_size=256, epochs=1, data_on="host", device="cpu", augment="crop-flip",
        checkpoint_seconds=1e9,
    )  # fmt: skip
    draw = np.random.default_rng(0)

    def fill(write: Write) -> dict:
        for start in range(0, N_MEMORY, 1000):
            write(start, draw.integers(0, 256, (1000, 3, SIDE, SIDE), np.uint8))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        file: Stored = prepared(Path(folder), "train", "key", N_MEMORY, SIDE, fill)
        labels_n = torch.full((N_MEMORY,), -1)
        split = place([Split(file.images_nCHW, labels_n, (), file)], "host", CPU)[0]
        load("shapes", image_size=SIDE)  # for the checkpoint's checksum of the data
        devices.set_up()
        model, anonymous = runs.new_model(MaskedAutoencoder, run, CPU), [resident("RssAnon")]
        before = resident("VmRSS")
        metrics = fit(
            model, objective.reconstruction(run), split, run, Path(folder), CPU,
            watch=lambda at: anonymous.append(resident("RssAnon")),
        ).metrics  # fmt: skip
    print(f"{N_MEMORY:,} images of {SIDE} pixels, {file.pixels_nCHW.nbytes / 2**20:,.0f} MiB in the file")
    print(f"before training: VmRSS {before:,} MiB, RssAnon {anonymous[0]:,} MiB")
    print(f"at most: VmHWM {metrics['peak_memory_bytes'] >> 20:,} MiB, RssAnon {max(anonymous):,} MiB")
    print(f"{metrics['images_per_second']:,.0f} images/s")


if __name__ == "__main__":
    memory() if sys.argv[1:] == ["memory"] else race()
