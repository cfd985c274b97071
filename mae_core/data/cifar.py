"""CIFAR's files, downloaded by torchvision, checked by MD5, and unpickled by a reader that allows only plain data."""

import codecs
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import download_and_extract_archive

from mae_core.errors import MissingDataError
from mae_core.locks import held


def open_cifar(kind: type["Checked"], data_dir: Path, train: bool) -> "Checked":
    """Open CIFAR-10 or CIFAR-100; torchvision downloads it if its folder is missing."""
    folder = data_dir / kind.base_folder
    if not folder.exists():
        try:
            with held(data_dir / ".download.lock"):
                if not folder.exists():
                    download(kind, data_dir)
        except (OSError, RuntimeError, tarfile.TarError) as error:
            raise MissingDataError(
                f"{kind.title} is not in data_dir ({data_dir}) and could not be downloaded ({error}): put its folder "
                f"{kind.base_folder}/ there, or use dataset: shapes"
            ) from error
    return kind(data_dir, train)


def download(kind: type["Checked"], data_dir: Path) -> None:
    """Download and check a data set with torchvision; ``data_dir`` gets the complete folder or nothing."""
    folder = data_dir / kind.base_folder
    with tempfile.TemporaryDirectory(dir=data_dir) as unfinished:
        download_and_extract_archive(kind.url, unfinished, filename=kind.filename, md5=kind.tgz_md5)
        try:
            os.rename(Path(unfinished) / kind.base_folder, folder)
        except OSError:
            if not folder.exists():  # otherwise another process has put the same files there
                raise


class Checked(CIFAR10):
    """A data set of CIFAR-10's format in memory, from checked files.

    Attributes:
        data: images_nHWC, uint8.
        targets: label of each image.
        classes: name of each label.

    Raises:
        MissingDataError: if a file is missing or damaged; names the file.
    """

    title, side = "CIFAR-10", 32  # its name; side of the images in these files, in pixels

    def __init__(self, root: str | Path, train: bool = True):
        folder = Path(root) / self.base_folder
        entries = [unpickle_checked(folder / name, md5) for name, md5 in (self.train_list if train else self.test_list)]
        rows = np.concatenate([entry["data"] for entry in entries])
        self.data = rows.reshape(-1, 3, self.side, self.side).transpose(0, 2, 3, 1)
        self.targets = [label for entry in entries for label in entry["labels" if "labels" in entry else "fine_labels"]]
        meta = unpickle_checked(folder / self.meta["filename"], self.meta["md5"])
        self.classes = meta[self.meta["key"]]


class CheckedCIFAR10(Checked, CIFAR10):
    """CIFAR-10."""


class CheckedCIFAR100(Checked, CIFAR100):
    """CIFAR-100 with its 100 fine labels."""

    title = "CIFAR-100"


RECONSTRUCT = np.zeros(0).__reduce__()[0]  # the function that pickled arrays call; its module depends on NumPy's version


class ArraysOnly(pickle.Unpickler):
    """An unpickler for numbers, text, lists, mappings and arrays only, which cannot run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data set")
        return self.ALLOWED[module, name]


def unpickle_checked(path: Path, md5: str) -> Any:
    """Read a file, check the MD5 of the bytes read, and unpickle them.

    Raises:
        MissingDataError: if the file is missing, its MD5 differs, or it contains anything but plain data and arrays.
    """
    advice = "delete its folder, and it will be created again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingDataError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    if hashlib.md5(content).hexdigest() != md5:
        raise MissingDataError(f"{path} is damaged (its MD5 is not {md5}): {advice}")
    try:
        return ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise MissingDataError(f"{path} is not a data set ({error}): {advice}") from error
