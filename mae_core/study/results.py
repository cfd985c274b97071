"""A run's folder; files are written atomically and read without unpickling.

Its path is ``outputs/<study>/<case>/seed<k>/<stage>/`` with stage ``pretrain`` or ``finetune``:

* ``parameters.json``, ``history.json`` (one list per curve), ``metrics.json`` (final numbers), ``provenance.json``
* ``pictures.png`` and, after fine-tuning, ``attention.png``, ``mistakes.png``, ``neighbours.png``: see :func:`save_sheet`
* after fine-tuning, ``predictions.png``: the predicted and the true class of every test image, see :func:`save_predictions`
* ``weights.safetensors``; while training, ``checkpoint.safetensors`` and ``checkpoint.before.safetensors``,
  and ``checkpoint*.set-aside.safetensors`` if they did not fit
"""

import contextlib
import csv
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from mae_core import locks
from mae_core.errors import BusyError, OutputError, ParameterError

if TYPE_CHECKING:
    from torch import Tensor

FULL, KEPT = "weights.safetensors", "weights.bfloat16.safetensors"
METRICS = {
    "last_epoch_accuracy": ("test accuracy, last epoch (%)", "{:.2f}"),
    "best_epoch_accuracy": ("test accuracy, best epoch (%)", "{:.2f}"),
    "top5_accuracy": ("top-5 test accuracy, last epoch (%)", "{:.2f}"),
    "linear": ("linear probe, frozen encoder (%)", "{:.2f}"),
    "knn": ("k-NN, frozen encoder (%)", "{:.2f}"),
    "train_loss": ("training loss, last epoch", "{:.4f}"),
    "test_loss": ("test loss", "{:.4f}"),
    "test_psnr": ("test PSNR on masked pixels (dB)", "{:.2f}"),
    "positions": ("positions of patches", "{}"),
    "scale": ("scale of images", "{}"),
    "flops_per_image": ("FLOPs of a forward pass, per image", "{:,.0f}"),
    "images_per_second": ("training images per second", "{:,.0f}"),
    "train_seconds": ("training time (s)", "{:.1f}"),
    "wall_seconds": ("total time, with data and evaluation (s)", "{:.1f}"),
    "peak_memory_bytes": ("peak memory (bytes)", "{:,.0f}"),
}


@contextlib.contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk into an OutputError that names the file or folder and says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written ({reason}): free some space, or check its permissions") from error


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file written there replaces ``path`` once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        synchronize(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_replace(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder; at the end its files move into ``folder``, the file named ``last`` after all others.

    During the move there is no such file in ``folder``: if it exists, all files belong to the same run.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished.") as unfinished:
        yield Path(unfinished)
        (folder / last).unlink(missing_ok=True)
        for path in folder.iterdir():  # delete files of an earlier run that this one lacks
            stale = path.suffix in (".json", ".png", ".safetensors") and not path.name.startswith("checkpoint")
            if stale and not (Path(unfinished) / path.name).exists():
                path.unlink()
        for path in sorted(Path(unfinished).iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
        synchronize(folder)


def synchronize(folder: Path) -> None:
    """Flush renames in a folder to disk, so that they survive a power failure, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock a run's folder until this process ends; raises BusyError if another process holds the lock.

    Where the file system has no locks, a sentence says so, and the run goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "a+", encoding="utf-8") as lock:
        try:
            if not locks.acquire(lock, wait=False):
                print(
                    f"nothing keeps two runs apart here: the file system of {folder} has no locks, so start each run once"
                )
        except BlockingIOError as error:
            lock.seek(0)
            raise BusyError(f"process {lock.read()} trains into {folder}: wait for it, or end it") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        for path in folder.glob(".*"):  # unfinished files of a killed process
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON; equal content gives equal bytes."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: list[list[str]]) -> None:
    """Write rows of text cells as comma-separated values."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run; raises ParameterError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ParameterError:
    """The error for a file of a run that cannot be read."""
    return ParameterError(f"{path} is damaged ({error}): restore it, or delete its folder, and train that run again")


def save_sheet(path: Path, rows: list["Tensor"]) -> None:
    """Save images as one PNG of tiles, one row of tiles per entry.

    Args:
        rows: each images_BCHW scaled to [-1, 1]; all of the same shape.
    """
    values_RBCHW = np.stack([row.float().cpu().numpy() for row in rows])
    sheet_RBCHW = ((values_RBCHW + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    R, B, C, H, W = sheet_RBCHW.shape
    with atomic_write(path) as temporary:
        pixels = sheet_RBCHW.transpose(0, 3, 1, 4, 2).reshape(R * H, B * W, C)
        Image.fromarray(pixels).save(temporary, format="PNG")


def load_sheet(path: Path, n_rows: int) -> np.ndarray:
    """Read a sheet of ``n_rows`` rows of square tiles as images_RBHWC, uint8; raises ParameterError if it is damaged."""
    pixels = read_png(path, "RGB")
    side = pixels.shape[0] // n_rows
    return pixels.reshape(n_rows, side, pixels.shape[1] // side, side, 3).swapaxes(1, 2)


def save_predictions(path: Path, predicted_n: "Tensor", true_n: "Tensor") -> None:
    """Save the predicted and the true class of each test image as a grey PNG of two rows; CIFAR-10's takes under 20 kB."""
    classes_2n = np.stack([predicted_n.cpu().numpy(), true_n.cpu().numpy()])
    with atomic_write(path) as temporary:
        pixels = classes_2n.astype(np.uint8 if classes_2n.max() < 256 else np.uint16)
        Image.fromarray(pixels).save(temporary, format="PNG", optimize=True)


def load_predictions(path: Path) -> np.ndarray:
    """The classes that :func:`save_predictions` saved: predicted and true, classes_2n; errors as :func:`load_sheet`."""
    return read_png(path)


def read_png(path: Path, mode: str = "") -> np.ndarray:
    """The pixels of a PNG file of a run, in a mode of Pillow's or its own; raises ParameterError if it is damaged."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode) if mode else picture)
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's for files that end early or are no pictures
        raise damaged(path, error) from error


def metric_name(key: str, holdout: int = 0) -> str:
    """The name of a metric, with unit; with held-out images, it was measured on these instead of the test images."""
    name = METRICS[key][0]
    return name.replace("test ", "validation ") if holdout else name


def metric_rows(metrics: Mapping[str, Any], holdout: int = 0) -> list[list[str]]:
    """A run's metrics as rows of name and formatted value.

    Args:
        holdout: number of training images that the run held out, as in its parameters.
    """
    values = {**metrics, **metrics.get("probes", {})}
    return [[metric_name(key, holdout), form.format(values[key])] for key, (_, form) in METRICS.items() if key in values]
