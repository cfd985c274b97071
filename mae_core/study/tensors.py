"""Save and load tensors as safetensors files with a JSON note and a checksum; nothing is unpickled."""

import hashlib
import json
import stat
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mae_core.errors import ParameterError
from mae_core.study.results import atomic_write


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any], copied_sha256: str = "") -> None:
    """Write tensors, a JSON note and a checksum of both as safetensors.

    Args:
        copied_sha256: for a copy in another precision, :func:`tensors_sha256` of the weights that it was made from.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    note = json.dumps(about)
    with atomic_write(path) as temporary:
        try:
            # One entry only: safetensors writes several in random order, but equal weights must give equal bytes.
            told = {"about": note, "crc32": checksum(tensors, note)}
            told |= {"copied_sha256": copied_sha256} if copied_sha256 else {}
            write_tensors(temporary, tensors, {"mae_core": json.dumps(told)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write safetensors with the usual permissions of a new file; the library alone lets only its owner read it."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`save_tensors` on the CPU.

    Raises:
        ValueError: if it is missing, damaged or from another program.
        ParameterError: if it cannot be opened; the file itself may be intact.
    """
    try:
        with open(path, "rb") as opened:  # safetensors calls a file missing whatever keeps it from opening it
            opened.read(1)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, UnicodeDecodeError, FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{path} is damaged, or no file of weights ({error})") from error
    except OSError as error:
        why = error.strerror or error
        raise ParameterError(
            f"{path} cannot be read ({why}): check its permissions and the disk; it is unchanged"
        ) from error
    try:
        told = json.loads(metadata["mae_core"])
        note, crc32 = told["about"], told["crc32"]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or was not written by this package: it has no note or no checksum") from error
    if crc32 != checksum(tensors, note):
        raise ValueError(f"{path} is damaged (its checksum differs): delete it")
    return tensors, json.loads(note)


def checksum(tensors: dict[str, Tensor], note: str) -> int:
    """CRC-32 of the tensors' names, types, shapes and values, and of the note."""
    crc = zlib.crc32(note.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return crc


def origin_sha256(path: Path) -> str:
    """:func:`tensors_sha256` of the weights that a file of :func:`save_tensors` was copied from; its own if of none."""
    with safe_open(path, framework="pt") as file:
        copied = json.loads(file.metadata()["mae_core"]).get("copied_sha256", "")
    return copied or tensors_sha256(path)


def tensors_sha256(path: Path) -> str:
    """SHA-256 of the names, types, shapes and values of all tensors in a safetensors file, ignoring its metadata."""
    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
