"""A data set as one uint8 tensor on the device: loading, scaling, augmentation.

Shapes: B batch, n images of a split, C = 3 colours, H = W = 32 pixels.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.data import DATASETS, FOLDERS
from mae_core.data.cifar import CheckedCIFAR10, open_cifar10
from mae_core.data.shapes import Shapes
from mae_core.errors import MissingDataError, ParameterError

HOLDOUT_SEED = 0  # of the held-out images: the same for all seeds of a run

READERS: dict[str, Callable[[Path, bool], CheckedCIFAR10]] = {"shapes": Shapes, "cifar10": open_cifar10}


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
    holdout: int = 0,
) -> Split:
    """Load a split onto the device.

    Args:
        dataset: ``shapes`` (drawn on first use, offline) or ``cifar10`` (downloaded by torchvision on first use).
        data_dir: folder that contains the data set's folder, or will contain it.
        train: True for the training split, False for the test split, or for the held-out images if there are any.
        limit: load only the first ``limit`` images; 0: all.
        holdout: number of training images that are held out to choose a recipe with (validation images).

    Raises:
        ValueError: for an unknown data set.
        MissingDataError: if CIFAR-10 is not in ``data_dir`` and cannot be downloaded, or if a file is damaged.
        ParameterError: if ``holdout`` leaves no training image.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}, not one of {', '.join(DATASETS)}")
    try:
        source = READERS[dataset](Path(data_dir), train or holdout > 0)
    except OSError as error:
        if isinstance(error, MissingDataError):
            raise
        raise MissingDataError(
            f"data_dir is {str(data_dir)!r}: {FOLDERS[dataset]}/ cannot be created there ({error.strerror or error}): "
            f"check its permissions and the free space, and delete incomplete files"
        ) from error
    images_nHWC, labels_n = torch.from_numpy(source.data), torch.tensor(source.targets)
    if holdout:
        held_n, kept_n = held_out(len(labels_n), holdout)
        chosen_n = kept_n if train else held_n
        images_nHWC, labels_n = images_nHWC[chosen_n], labels_n[chosen_n]
    stop = limit or len(labels_n)
    images_nCHW = images_nHWC[:stop].permute(0, 3, 1, 2).contiguous()
    return Split(images_nCHW.to(device), labels_n[:stop].to(device), tuple(source.classes))


def held_out(n_images: int, holdout: int) -> tuple[Tensor, Tensor]:
    """The indices of the held-out training images, and those of the others; drawn with a fixed seed, each in order.

    Raises:
        ParameterError: if no other image is left.
    """
    if holdout >= n_images:
        raise ParameterError(f"holdout is {holdout}: it must leave some of the {n_images} training images to train on")
    order_n = torch.randperm(n_images, generator=torch.Generator().manual_seed(HOLDOUT_SEED))
    return order_n[:holdout].sort().values, order_n[holdout:].sort().values


def checksum(dataset: str, data_dir: str | Path = "data") -> str:
    """MD5 of the MD5s of a data set's files on disk; raises MissingDataError if there are none."""
    folder = (Path(data_dir) / FOLDERS[dataset]).absolute()
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
