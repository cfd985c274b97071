"""A data set's images as uint8, on the device or on the host: loading, scaling, augmentation.

Shapes: B batch, n images of a split, C = 3 colours, H = W pixels.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.data import DATASETS, folder, folder_of, layout
from mae_core.data.cifar import Checked, CheckedCIFAR10, CheckedCIFAR100, open_cifar
from mae_core.data.shapes import Shapes
from mae_core.data.store import Stored, Write, prepared
from mae_core.devices import available_memory
from mae_core.errors import MissingDataError, ParameterError

HOLDOUT_SEED = 0  # of the held-out images: the same for all seeds of a run

READERS: dict[str, Callable[[Path, bool, int], Checked]] = {
    "shapes": Shapes,
    "cifar10": lambda data_dir, train, image_size: open_cifar(CheckedCIFAR10, data_dir, train),
    "cifar100": lambda data_dir, train, image_size: open_cifar(CheckedCIFAR100, data_dir, train),
}
MOST = 0.5  # of the memory that is available: images that need more stay on the host


@dataclass(frozen=True)
class Split:
    """The training or the test images of a data set.

    Attributes:
        images_nCHW: uint8, 0 to 255: on the device, or on the host; there perhaps memory-mapped, and not to be written to.
        labels_n: int64, on the device; -1 without classes.
        classes: name of each label.
        file: the memory-mapped file of the images, if they are still in it.
        place: where the images are, and why, in words.
        chosen_n: places of this split's images in the file, where it holds others, too; None: all, in order.
    """

    images_nCHW: Tensor
    labels_n: Tensor
    classes: tuple[str, ...]
    file: Stored | None = None
    place: str = "images in memory"
    chosen_n: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels_n)

    def take(self, part: slice | Tensor) -> Tensor:
        """Some images, on the device: images_BCHW."""
        return self.images_nCHW[part] if self.is_resident else self.read(part).to(self.labels_n.device, non_blocking=True)

    def stream(self, parts: Sequence[slice | Tensor]) -> Iterator[Tensor]:
        """The images of each part, on the device; from the host, a thread reads one part ahead.

        Args:
            parts: slices, or indices on the device of ``images_nCHW``.
        """
        if self.is_resident:
            yield from (self.images_nCHW[part] for part in parts)
            return
        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as reader:
            for part in parts:
                ahead.append(reader.submit(self.read, part))
                if len(ahead) > 1:
                    yield ahead.popleft().result().to(self.labels_n.device, non_blocking=True)
            while ahead:
                yield ahead.popleft().result().to(self.labels_n.device, non_blocking=True)

    def read(self, part: slice | Tensor) -> Tensor:
        """A copy of some images, on the host; in pinned memory if they go to a CUDA device."""
        part = part.cpu() if isinstance(part, Tensor) else part
        images_BCHW = self.images_nCHW[part if self.chosen_n is None else self.chosen_n[part]].clone()
        if self.file:
            self.file.release()
        return images_BCHW.pin_memory() if self.labels_n.is_cuda else images_BCHW

    def only(self, part: slice | Tensor) -> Self:
        """The split with some of its images; those in a memory-mapped file stay there."""
        labels_n = self.labels_n[part]
        if self.chosen_n is not None:
            return replace(self, labels_n=labels_n, chosen_n=self.chosen_n[part])
        if self.file and isinstance(part, Tensor):
            return replace(self, labels_n=labels_n, chosen_n=part)
        return replace(self, images_nCHW=self.images_nCHW[part], labels_n=labels_n)

    @property
    def is_resident(self) -> bool:
        """Whether the images are in the device's memory."""
        return self.file is None and self.images_nCHW.device == self.labels_n.device

    def on(self, device: torch.device) -> Self:
        """The split with all images in the device's memory."""
        if self.chosen_n is not None:
            images_nCHW = self.images_nCHW[self.chosen_n].to(device)
        else:
            images_nCHW = self.images_nCHW.to(device, copy=self.file is not None)
        if self.file:
            self.file.release()
        return replace(self, images_nCHW=images_nCHW, labels_n=self.labels_n.to(device), file=None, chosen_n=None)


def place(splits: Sequence[Split], data_on: str, device: torch.device) -> list[Split]:
    """Put the images of all splits on the device, or leave them on the host and put their labels on the device.

    Args:
        data_on: ``device``, ``host``, or ``auto``: on the device if they take at most half of its available memory.
    """
    needed = sum(len(split) * split.images_nCHW[0].numel() for split in splits)
    available = available_memory(device)
    fits = needed <= MOST * available
    if data_on == "device" or (data_on == "auto" and fits):
        told = "images in memory" if device.type == "cpu" else "images on the device"
        placed = [split.on(device) for split in splits]
    else:
        source = "a memory-mapped file" if splits[0].file else "the host's memory"
        told = f"images batch by batch from {source}"
        placed = [replace(split, labels_n=split.labels_n.to(device)) for split in splits]
    sizes = f"{needed / 1e6:,.0f} MB" + (f"; {available / 1e6:,.0f} MB available" if data_on == "auto" else ", as asked")
    return [replace(split, place=f"{told} ({sizes})") for split in placed]


def load(
    dataset: str,
    data_dir: str | Path = "data",
    train: bool = True,
    limit: int = 0,
    image_size: int = 32,
    holdout: int = 0,
    check: bool = True,
) -> Split:
    """Load a split onto the host; images of one's own, and resized ones, are memory-mapped.

    Args:
        dataset: ``shapes`` (drawn on first use, offline), ``cifar10`` or ``cifar100`` (downloaded by torchvision on first
            use), or ``folder`` (see layout.py; decoded on first use).
        data_dir: folder that contains the data set's folder, or will contain it; for ``folder``, the folder itself.
        train: True for the training split, False for the test split, or for the held-out images if there are any.
        limit: load only the first ``limit`` images; 0: all.
        image_size: side in pixels; shapes are drawn at this size, images of another size are resized.
        holdout: number of training images that are held out to choose a recipe with (validation images).
        check: whether to compare the checksum of decoded or resized images, for which their whole file is read.

    Raises:
        ValueError: for an unknown data set.
        MissingDataError: if the data set is not in ``data_dir`` and cannot be made or downloaded, or if a file is damaged.
        ParameterError: if ``holdout`` leaves no training image.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}, not one of {', '.join(DATASETS)}")
    try:
        split = load_whole(dataset, Path(data_dir), train or holdout > 0, image_size, check)
    except MissingDataError:
        raise
    except OSError as error:
        what = (
            "its images cannot be read" if dataset == "folder" else f"{folder_of(dataset, image_size)}/ cannot be created"
        )
        raise MissingDataError(
            f"data_dir is {str(data_dir)!r}: {what} there "
            f"({error.strerror or error}): check its permissions and the free space, and delete incomplete files"
        ) from error
    if holdout:
        held_n, kept_n = held_out(len(split), holdout)
        split = split.only(kept_n if train else held_n)
    if limit:
        split = split.only(slice(limit))
    return replace(split, images_nCHW=split.images_nCHW.contiguous())


def load_whole(dataset: str, data_dir: Path, train: bool, image_size: int, check: bool) -> Split:
    """All images of a split; those of CIFAR and shapes are views in another order of memory."""
    if dataset == "folder":
        listing = layout.list_images(data_dir)[0 if train else 1]
        file = folder.prepare(listing, "train" if train else "test", image_size, check)
        return Split(file.images_nCHW, torch.tensor(listing.labels), listing.classes, file)
    source = READERS[dataset](data_dir, train, image_size)
    images_nCHW, resized = torch.from_numpy(source.data).permute(0, 3, 1, 2), None
    if source.side != image_size:
        name, key = f"{dataset}-{'train' if train else 'test'}", checksum(dataset, data_dir, image_size)
        resized = resize_once(images_nCHW, data_dir, name, key, image_size, check)
        images_nCHW = resized.images_nCHW
    return Split(images_nCHW, torch.tensor(source.targets), tuple(source.classes), resized)


def held_out(n_images: int, holdout: int) -> tuple[Tensor, Tensor]:
    """The indices of the held-out training images, and those of the others; drawn with a fixed seed, each in order.

    Raises:
        ParameterError: if no other image is left.
    """
    if holdout >= n_images:
        raise ParameterError(f"holdout is {holdout}: it must leave some of the {n_images} training images to train on")
    order_n = torch.randperm(n_images, generator=torch.Generator().manual_seed(HOLDOUT_SEED))
    return order_n[:holdout].sort().values, order_n[holdout:].sort().values


def resize_once(images_nCHW: Tensor, data_dir: Path, name: str, key: str, image_size: int, check: bool) -> Stored:
    """The images at another size, resized on first use; see store.py for ``check``."""

    def fill(write: Write) -> dict[str, Any]:
        for start in range(0, len(images_nCHW), 1000):
            write(start, resize(images_nCHW[start : start + 1000], image_size).numpy())
        return {}

    return prepared(data_dir, f"{name}-{image_size}", key, len(images_nCHW), image_size, fill, check)


def resize(images_nCHW: Tensor, image_size: int) -> Tensor:
    """Square uint8 images at another size (bicubic, with antialiasing)."""
    values = F.interpolate(images_nCHW.float(), (image_size, image_size), mode="bicubic", antialias=True)
    return values.round().clamp(0, 255).byte()


def checksum(dataset: str, data_dir: str | Path = "data", image_size: int = 32) -> str:
    """MD5 of the MD5s of a data set's files on disk; raises MissingDataError if there are none."""
    if dataset == "folder":
        return folder.content_md5(Path(data_dir), image_size)
    within = (Path(data_dir) / folder_of(dataset, image_size)).absolute()
    names = ("meta", "test", "train") if dataset == "cifar100" else ("*batch*",)
    files = sorted(path for name in names for path in within.glob(name))
    if not files:
        raise MissingDataError(f"{within} contains no data files ({', '.join(names)})")
    states = [path.stat() for path in files]
    md5s = [md5_of(path, state.st_size, state.st_mtime_ns) for path, state in zip(files, states, strict=True)]
    return hashlib.md5("".join(md5s).encode()).hexdigest()


@functools.lru_cache
def md5_of(path: Path, size: int, mtime_ns: int) -> str:
    """MD5 of a file; the file is read again only if its size or modification time changes."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def scale_pixels(images_BCHW: Tensor) -> Tensor:
    """Scale uint8 values, 0 to 255, to float32 in [-1, 1]."""
    return images_BCHW.float() / 127.5 - 1


def augment(images_BCHW: Tensor, how: str, generator: torch.Generator | None = None) -> Tensor:
    """Augment a batch, on its device.

    Args:
        images_BCHW: any dtype.
        how: ``none``, or ``crop-flip``: shift by up to 4 pixels (mirrored at the border), and flip with probability 1/2.
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


def batches(n: int, device: torch.device, n_patches: int) -> list[slice]:
    """Slices that cover n images to evaluate; small ones on a CPU, whose activations fit into the caches (LOG.md).

    Images of more than 256 patches come in smaller ones, so that the activations need no more memory.
    """
    size = 128 if device.type == "cpu" else 500
    size = max(1, size * 256 // max(256, n_patches))
    return [slice(start, start + size) for start in range(0, n, size)]
