"""Images as one uint8 tensor on the device: CIFAR-10, and ``shapes``, which the package draws itself.

Both lie on disk in the format of CIFAR-10's Python version and are read by the same class, torchvision's with a reader
that checks the MD5 of what it unpickles, and lets nothing come out of a pickle but arrays, lists and text.

Shapes: B batch, n images of a split, C = 3 colours, H = W = 32 pixels.
"""

import codecs
import contextlib
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import pickle
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_and_extract_archive

from mae_core.config import DATASETS, FOLDERS
from mae_core.errors import MissingDataError


@dataclass(frozen=True)
class Split:
    """One half of a data set.

    Attributes:
        images_nCHW: uint8, 0 ... 255, on the device.
        labels_n: int64, on the device.
        classes: the ten names.
    """

    images_nCHW: Tensor
    labels_n: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_n)


def load(
    dataset: str, data_dir: str | Path = "data", train: bool = True, limit: int = 0, device: torch.device | str = "cpu"
) -> Split:
    """Read a split into memory, on the device.

    Args:
        dataset: ``shapes`` (drawn on first use, offline) or ``cifar10`` (downloaded by torchvision on first use).
        data_dir: folder that holds, or will hold, the data set's own folder.
        train: the training split or the test split.
        limit: only the first ``limit`` images; 0 means all.
        device: where the tensors live.

    Raises:
        ValueError: for an unknown data set.
        MissingDataError: if CIFAR-10 is neither in ``data_dir`` nor to be had from the network, or a file is damaged.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}, not one of {', '.join(DATASETS)}")
    try:
        source = Shapes(data_dir, train) if dataset == "shapes" else open_cifar10(Path(data_dir), train)
    except OSError as error:
        if isinstance(error, MissingDataError):
            raise
        raise MissingDataError(
            f"data_dir is {str(data_dir)!r}: {FOLDERS[dataset]}/ cannot be made there ({error.strerror or error}); see to "
            f"its permissions and to free space, and delete what is half there"
        ) from error
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2)
    stop = limit or len(images)
    return Split(
        images[:stop].contiguous().to(device), torch.tensor(source.targets[:stop]).to(device), tuple(source.classes)
    )


def checksum(dataset: str, data_dir: str | Path = "data") -> str:
    """MD5 over the MD5s of a data set's files, as they lie on disk."""
    files = sorted((Path(data_dir) / FOLDERS[dataset]).absolute().glob("*batch*"))
    md5s = [md5_of(path, (state := path.stat()).st_size, state.st_mtime_ns) for path in files]
    return hashlib.md5("".join(md5s).encode()).hexdigest()


@functools.lru_cache
def md5_of(path: Path, size: int, mtime_ns: int) -> str:
    """MD5 of a file, read once as long as its size and its time of change stay the same."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def open_cifar10(data_dir: Path, train: bool) -> "CheckedCIFAR10":
    """CIFAR-10; downloaded by torchvision unless its folder is there."""
    folder = data_dir / CIFAR10.base_folder
    if folder.exists():
        return CheckedCIFAR10(data_dir, train)
    try:
        with alone(data_dir / ".download.lock"):
            if not folder.exists():
                download(data_dir)
            return CheckedCIFAR10(data_dir, train)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise MissingDataError(
            f"CIFAR-10 is not in data_dir ({data_dir}) and could not be downloaded ({error}): put its folder "
            f"{CIFAR10.base_folder}/ there, or use dataset: shapes"
        ) from error


def download(data_dir: Path) -> None:
    """Let torchvision download CIFAR-10, and check it, into ``data_dir``: all of it, or nothing."""
    with tempfile.TemporaryDirectory(dir=data_dir) as unfinished:
        download_and_extract_archive(CIFAR10.url, unfinished, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
        os.rename(Path(unfinished) / CIFAR10.base_folder, data_dir / CIFAR10.base_folder)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process holds ``lock``, and hold it; it is let go even if the process is killed."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def to_unit(images_BCHW: Tensor) -> Tensor:
    """uint8 0 ... 255 to float32 [-1, 1]."""
    return images_BCHW.float() / 127.5 - 1


def augment(images_BCHW: Tensor, how: str, generator: torch.Generator | None = None) -> Tensor:
    """Random views of a batch, on its device.

    Args:
        images_BCHW: any dtype.
        how: ``none``, or ``crop-flip``: shifted by up to 4 pixels (mirrored at the border) and flipped every other time.
        generator: source of randomness, on the images' device.
    """
    if how == "none":
        return images_BCHW
    B, C, H, W = images_BCHW.shape
    device, pad = images_BCHW.device, 4
    padded = F.pad(images_BCHW.float(), (pad,) * 4, mode="reflect").to(images_BCHW.dtype)
    top_B, left_B = torch.randint(2 * pad + 1, (2, B), generator=generator, device=device)
    rows_BH = top_B[:, None] + torch.arange(H, device=device)
    columns_BW = left_B[:, None] + torch.arange(W, device=device)
    flip_B1 = torch.randint(2, (B, 1), generator=generator, device=device).bool()
    columns_BW = torch.where(flip_B1, columns_BW.flip(1), columns_BW)
    place_BHW = rows_BH[:, :, None] * (W + 2 * pad) + columns_BW[:, None, :]
    return padded.flatten(2).gather(2, place_BHW.flatten(1)[:, None].expand(-1, C, -1)).reshape(B, C, H, W)


class CheckedCIFAR10(CIFAR10):
    """CIFAR-10 in memory, from files that were checked.

    Attributes:
        data: images_nHWC, uint8.
        targets: labels.
        classes: their names.

    Raises:
        MissingDataError: if a file is missing or damaged, naming it.
    """

    def __init__(self, root: str | Path, train: bool = True):
        folder = Path(root) / self.base_folder
        entries = [unpickle_checked(folder / name, md5) for name, md5 in (self.train_list if train else self.test_list)]
        self.data = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.targets = [label for entry in entries for label in entry["labels"]]
        meta = unpickle_checked(folder / self.meta["filename"], self.meta["md5"])
        self.classes = meta[self.meta["key"]]


class ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, text, lists, mappings and arrays; nothing that could run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")
        return self.ALLOWED[module, name]


def unpickle_checked(path: Path, md5: str) -> Any:
    """Read a file once, check those bytes, and unpickle them.

    Raises:
        MissingDataError: if the file is missing, its MD5 differs, or it holds anything but arrays, lists and text.
    """
    advice = "delete the folder, it is made again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingDataError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    if hashlib.md5(content).hexdigest() != md5:
        raise MissingDataError(f"{path} is damaged (its MD5 is not {md5}): {advice}")
    try:
        return ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise MissingDataError(f"{path} is no data set ({error}): {advice}") from error


# shapes: ten classes of coloured, textured shapes on textured ground ------------------------------------------------


class Shapes(CheckedCIFAR10):
    """The package's own data set: 5,000 training and 1,000 test images of ten shapes, seeded.

    Files, format and reader are CIFAR-10's. The MD5s stand in ``md5.json`` beside the files, written with them: they
    find damage, not malice. A change of the drawing needs a new number in the folder's name.
    """

    base_folder = FOLDERS["shapes"]
    train_batches, test_batches, images_per_batch = 5, 1, 1000
    names = ("circle", "square", "triangle", "diamond", "plus", "ring", "star", "moon", "hexagon", "heart")

    def __init__(self, root: str | Path, train: bool = True):
        folder = Path(root) / self.base_folder
        if not (folder / "md5.json").exists():
            self.draw(folder)
        try:
            md5 = json.loads((folder / "md5.json").read_text())
            self.train_list = [[f"data_batch_{i + 1}", md5[f"data_batch_{i + 1}"]] for i in range(self.train_batches)]
            self.test_list = [["test_batch", md5["test_batch"]]]
            self.meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
        except (ValueError, KeyError, TypeError) as error:
            raise MissingDataError(f"{folder}/md5.json is damaged: delete the folder, it is made again") from error
        super().__init__(root, train=train)

    @classmethod
    def draw(cls, folder: Path) -> None:
        """Write the data set into ``folder``: all of it, or nothing."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            md5 = {}

            def write(name: str, content: dict) -> None:
                raw = pickle.dumps(content, protocol=2)
                md5[name] = hashlib.md5(raw).hexdigest()
                (Path(unfinished) / name).write_bytes(raw)

            for batch in range(cls.train_batches + cls.test_batches):
                images_nHWC, labels_n = draw_shapes(cls.images_per_batch, seed=batch)
                rows = images_nHWC.transpose(0, 3, 1, 2).reshape(len(labels_n), -1)
                name = f"data_batch_{batch + 1}" if batch < cls.train_batches else "test_batch"
                write(name, {"data": rows, "labels": labels_n.tolist()})
            write("batches.meta", {"label_names": list(cls.names)})
            (Path(unfinished) / "md5.json").write_text(json.dumps(md5, indent=1))
            os.chmod(unfinished, 0o755)
            try:
                os.rename(unfinished, folder)
                os.mkdir(unfinished)  # for the context manager to remove
            except OSError:
                if not (folder / "md5.json").exists():  # else another process was faster: its copy is the same
                    raise


def draw_shapes(n_images: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Draw seeded images: a shape of random place, size, angle, colour and texture on a textured ground.

    Returns:
        images_nHWC (uint8) and labels_n, indices into ``Shapes.names``.
    """
    rng = np.random.default_rng(seed)
    labels_n = rng.permutation(np.arange(n_images) % len(Shapes.names))
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size * 2 - 1

    def column(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (n_images, 1, 1)).astype(np.float32)

    scale, angle = column(0.45, 0.75), column(-0.4, 0.4)
    dx, dy = x - column(-0.25, 0.25), y - column(-0.25, 0.25)
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / scale
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / scale
    inside = np.empty((n_images, size, size), np.float32)
    for label in range(len(Shapes.names)):
        chosen = labels_n == label
        distance = signed_distance(label, u[chosen], v[chosen]) * scale[chosen]
        inside[chosen] = np.clip(0.5 - distance * size / 2, 0, 1)  # one pixel of soft edge

    # As in photographs, colour is a cue to the class and not proof: each class leans towards a hue of its own.
    hue_C1 = np.arange(len(Shapes.names))[:, None] / len(Shapes.names)
    favourite_C3 = 0.5 + 0.5 * np.cos(2 * math.pi * (hue_C1 + np.array([0, 1, 2]) / 3))
    ground = textured(rng.uniform(0, 1, (2, n_images, 3)), x, y, rng)
    mixed_2n3 = rng.uniform(0, 1, (2, n_images, 3))
    figure = textured(0.6 * favourite_C3[labels_n] + 0.4 * mixed_2n3, x, y, rng)
    alike = np.abs(ground.mean((1, 2)) - figure.mean((1, 2))).sum(-1) < 0.5
    ground[alike] = 1 - ground[alike]
    image = ground + inside[..., None] * (figure - ground)
    image += rng.normal(0, 0.02, image.shape).astype(np.float32)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), labels_n


def textured(colours_2n3: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two colours of each image blended by a wave of random direction, pitch and softness: (n, H, W, 3) in 0 ... 1."""
    first, second = colours_2n3[:, :, None, None].astype(np.float32)
    n_images = len(first)
    angle, pitch, phase, hardness = (
        rng.uniform(low, high, (n_images, 1, 1)).astype(np.float32)
        for low, high in ((0, math.pi), (2, 12), (0, 2 * math.pi), (0.3, 3))
    )
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * pitch + phase)
    blend = (0.5 + 0.35 * np.tanh(hardness * wave))[..., None]
    return first * blend + second * (1 - blend)


def signed_distance(label: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the outline of shape ``label`` of radius 1 at the origin (v points down); negative inside.

    Exact or a close lower bound, after Quilez's catalogue of two-dimensional distance functions.
    """
    radius, direction = np.hypot(u, v), np.arctan2(u, -v)
    match Shapes.names[label]:
        case "circle":
            return radius - 0.85
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.75
        case "triangle":
            sector = 2 * math.pi / 3
            return radius * np.cos(direction % sector - sector / 2) - 0.5
        case "diamond":
            return (np.abs(u) + np.abs(v) * 0.8 - 0.85) / 1.28
        case "plus":
            a, b = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
            return np.maximum(a - 0.95, b - 0.3)
        case "ring":
            return np.abs(radius - 0.7) - 0.22
        case "star":
            sector = 2 * math.pi / 5
            slice_angle = np.abs((direction + sector / 2) % sector - sector / 2)
            a, b = radius * np.cos(slice_angle), radius * np.sin(slice_angle)
            return (a - 1.05) * math.sin(0.6) + b * math.cos(0.6)
        case "moon":
            return np.maximum(radius - 0.95, 0.75 - np.hypot(u - 0.45, v))
        case "hexagon":
            sector = math.pi / 3
            return radius * np.cos((direction % sector) - sector / 2) - 0.78
        case "heart":
            a, b = np.abs(u) * 1.05, 0.35 - v
            lobes = np.hypot(a - 0.42, b - 0.25) - 0.48
            point = a * 0.78 - (b + 0.95) * 0.62
            return np.minimum(lobes, np.maximum(point, b - 0.28))
