"""A data set as one uint8 tensor on the device: loading, scaling, augmentation.

Shapes: B batch, n images of a split, C = 3 colours, H = W pixels.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.data import DATASETS, folder_of
from mae_core.data.cifar import CheckedCIFAR10, open_cifar10
from mae_core.data.shapes import Shapes
from mae_core.errors import MissingDataError

READERS: dict[str, Callable[[Path, bool, int], CheckedCIFAR10]] = {
    "shapes": Shapes,
    "cifar10": lambda data_dir, train, image_size: open_cifar10(data_dir, train),
}


@dataclass(frozen=True)
class Split:
    """The training or the test images of a data set.

    Attributes:
        images_nCHW: uint8, 0 to 255, on the device.
        labels_n: int64, on the device.
        classes: name of each label.
    """

    images_nCHW: Tensor
    labels_n: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_n)


def load(
    dataset: str,
    data_dir: str | Path = "data",
    train: bool = True,
    limit: int = 0,
    device: torch.device | str = "cpu",
    image_size: int = 32,
) -> Split:
    """Load a split onto the device.

    Args:
        dataset: ``shapes`` (drawn on first use, offline) or ``cifar10`` (downloaded by torchvision on first use).
        data_dir: folder that contains the data set's folder, or will contain it.
        train: True for the training split, False for the test split.
        limit: load only the first ``limit`` images; 0: all.
        image_size: side in pixels; shapes are drawn at this size, images of another size are resized.

    Raises:
        ValueError: for an unknown data set.
        MissingDataError: if CIFAR-10 is not in ``data_dir`` and cannot be downloaded, or if a file is damaged.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}, not one of {', '.join(DATASETS)}")
    try:
        source = READERS[dataset](Path(data_dir), train, image_size)
    except OSError as error:
        if isinstance(error, MissingDataError):
            raise
        raise MissingDataError(
            f"data_dir is {str(data_dir)!r}: {folder_of(dataset, image_size)}/ cannot be created there "
            f"({error.strerror or error}): check its permissions and the free space, and delete incomplete files"
        ) from error
    stop = limit or len(source.data)
    images_nCHW = resize(torch.from_numpy(source.data[:stop]).permute(0, 3, 1, 2).contiguous(), image_size)
    return Split(images_nCHW.to(device), torch.tensor(source.targets[:stop]).to(device), tuple(source.classes))


def resize(images_nCHW: Tensor, image_size: int) -> Tensor:
    """Square uint8 images at another size (bicubic, with antialiasing); they stay as they are if they have it already."""
    if images_nCHW.shape[-1] == image_size:
        return images_nCHW
    resized_nCHW = images_nCHW.new_empty((*images_nCHW.shape[:2], image_size, image_size))
    for part in (slice(start, start + 1000) for start in range(0, len(images_nCHW), 1000)):
        values = F.interpolate(images_nCHW[part].float(), (image_size, image_size), mode="bicubic", antialias=True)
        resized_nCHW[part] = values.round().clamp(0, 255).byte()
    return resized_nCHW


def checksum(dataset: str, data_dir: str | Path = "data", image_size: int = 32) -> str:
    """MD5 of the MD5s of a data set's files on disk; raises MissingDataError if there are none."""
    folder = (Path(data_dir) / folder_of(dataset, image_size)).absolute()
    files = sorted(folder.glob("*batch*"))
    if not files:
        raise MissingDataError(f"{folder} contains no data files (*batch*)")
    md5s = [md5_of(path, (state := path.stat()).st_size, state.st_mtime_ns) for path in files]
    return hashlib.md5("".join(md5s).encode()).hexdigest()


@functools.lru_cache
def md5_of(path: Path, size: int, mtime_ns: int) -> str:
    """MD5 of a file; the file is read again only if its size or modification time changes."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def to_unit(images_BCHW: Tensor) -> Tensor:
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


def batches(n: int, device: torch.device) -> list[slice]:
    """Slices that cover n images; small ones on a CPU, whose activations fit into the caches (LOG.md)."""
    size = 128 if device.type == "cpu" else 500
    return [slice(start, start + size) for start in range(0, n, size)]
