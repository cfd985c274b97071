"""Prepared images: one memory-mapped file of uint8 pixels for a split and a size, written whole or not at all.

The files are in the hidden folder ``.mae-cache`` beside the data; where that cannot be written, in ``data/.mae-cache`` of
the working folder. They can be deleted at any time. A file's name has a key of all that it is made of, so a file that was
added, removed or changed leads to a new one, and the old one is deleted. A lock keeps two runs from preparing the same.
Beside it is a JSON file with what was noted about the images, and a checksum of the pixels and of this note.

Shapes: n images of a split, C = 3 colours, H = W pixels.
"""

import errno
import hashlib
import json
import mmap
import os
import platform
import shutil
import tokenize
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_core.errors import MissingDataError
from mae_core.locks import held

CACHE = ".mae-cache"
Write = Callable[[int, np.ndarray], None]  # a function of the first image's index and images_nCHW


@dataclass(frozen=True)
class Stored:
    """Prepared images on disk.

    Attributes:
        pixels_nCHW: memory-mapped, read-only.
        about: what was noted when they were prepared.
    """

    pixels_nCHW: np.memmap
    about: dict[str, Any]

    @property
    def images_nCHW(self) -> Tensor:
        """The same memory as a tensor; it must not be written to."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, about memory that must not be written to
            return torch.from_numpy(self.pixels_nCHW)

    def release(self) -> None:
        """Let go of the pages read so far, which would count as this process's memory; the system may keep them cached."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.pixels_nCHW._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def stored(data_dir: Path, name: str, key: str, check: bool = False) -> Stored | None:
    """Images that were prepared before; None if there are none, or if they are damaged or have no checksum.

    Args:
        check: whether to compare the checksum, for which the whole file is read.
    """
    for folder in places(data_dir):
        path = folder / f"{name}-{key}.npy"
        try:
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            crc32 = about.pop("crc32")
            if not check or crc32 == checksum(path, about):
                return Stored(mapped(path), about)
        except MissingDataError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, tokenize.TokenError):  # damaged
            continue
    return None


def mapped(path: Path) -> np.memmap:
    """A .npy file as an array that memory maps; raises MissingDataError where the system refuses to map it."""
    try:
        return np.load(path, mmap_mode="r")
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.ENODEV, errno.EINVAL, errno.EAGAIN):
            raise
        raise MissingDataError(
            f"{path} cannot be mapped into memory ({error.strerror}): raise the limit of memory, or put the images on "
            "another disk"
        ) from error


def prepared(
    data_dir: Path, name: str, key: str, n: int, side: int, fill: Callable[[Write], dict[str, Any]], check: bool = True
) -> Stored:
    """The prepared images of a split; they are prepared now unless they are there.

    Args:
        data_dir: the folder of the data.
        name: of the split and the size, such as ``train-96``.
        key: of all that the images are made of.
        n: number of images.
        side: of an image, in pixels.
        fill: writes all images, and returns what to note about them; it may raise.
        check: see :func:`stored`.

    Raises:
        MissingDataError: if no folder can be written, or the disk is too small.
    """
    if found := stored(data_dir, name, key, check):
        return found
    folder = writable(data_dir)
    with held(folder / "lock") as alone:
        if found := stored(data_dir, name, key, check):  # another process was faster
            return found
        for path in (place / f"{name}-{key}.npy" for place in places(data_dir)):
            if path.exists():
                print(f"{path} is damaged, or has no checksum: its images are prepared anew")
        for path in folder.glob(".unfinished-*") if alone else ():  # of a process that was killed
            path.unlink()
        path, unfinished = folder / f"{name}-{key}.npy", folder / f".unfinished-{platform.node()}-{os.getpid()}"
        needed, free = 3 * n * side**2, shutil.disk_usage(folder).free
        if needed > free:
            raise MissingDataError(
                f"{folder} needs {needed / 1e6:,.0f} MB for the prepared images, and has {free / 1e6:,.0f} MB: free some "
                f"space, or take a smaller image_size"
            )
        try:
            about = write_images(unfinished, n, side, fill)
            about["crc32"] = checksum(unfinished, about)
            unfinished.replace(path)
            unfinished.write_text(json.dumps(about), encoding="utf-8")
            unfinished.replace(path.with_suffix(".json"))
        except MissingDataError:
            raise
        except OSError as error:
            raise MissingDataError(
                f"the prepared images cannot be written to {folder} ({error.strerror or error}): free some space"
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)
        for old in folder.glob(f"{name}-*"):
            if not old.name.startswith(f"{name}-{key}."):
                old.unlink(missing_ok=True)
    done = stored(data_dir, name, key)
    if done is None:
        raise MissingDataError(f"{path} was deleted while it was prepared: run again")
    return done


def write_images(path: Path, n: int, side: int, fill: Callable[[Write], dict[str, Any]]) -> dict[str, Any]:
    """Write a .npy file of n images, and flush it to disk; return what ``fill`` returns."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, 3, side, side)}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        start = file.tell()
        file.truncate(start + 3 * n * side**2)

        def write(first: int, images_nCHW: np.ndarray) -> None:
            content = memoryview(images_nCHW.tobytes())
            place = start + 3 * first * side**2
            while content:
                written = os.pwrite(file.fileno(), content, place)
                content, place = content[written:], place + written

        about = fill(write)
        os.fsync(file.fileno())
    return about


def checksum(path: Path, about: dict[str, Any]) -> int:
    """CRC-32 of a note and of a file, which is read in parts and not mapped: its pages count as no process's memory."""
    crc = zlib.crc32(json.dumps(about).encode())
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            crc = zlib.crc32(part, crc)
    return crc


def places(data_dir: Path) -> tuple[Path, Path]:
    """Where prepared images can be: beside the data, or in the working folder."""
    digest = hashlib.md5(os.fsencode(data_dir.absolute())).hexdigest()[:12]
    return data_dir / CACHE, Path("data") / CACHE / digest


def writable(data_dir: Path) -> Path:
    """The first of the :func:`places` that can be written; raises MissingDataError if none can."""
    reasons = []
    for folder in places(data_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "lock").touch()
            return folder
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise MissingDataError(
        f"the prepared images can be written neither beside the data nor here ({'; '.join(reasons)}): make one of these "
        f"folders writable"
    )
