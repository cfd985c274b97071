"""A GPU for each run: which GPUs this process may use, and which of them no other run has.

A run locks a file named after its GPU and shows that GPU alone to CUDA. torch is not imported: CUDA_VISIBLE_DEVICES must be
set before CUDA starts, and Snakemake, which only counts the GPUs, starts faster without it.
"""

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mae_core import locks

WAIT_SECONDS = 1.0  # between two looks for a free GPU


def visible() -> dict[str, str]:
    """The UUIDs of NVIDIA's GPUs that this process may use, each under its name in CUDA_VISIBLE_DEVICES.

    If a scheduler or a person has set this variable, it names them; otherwise these are all of the machine.
    """
    there, given = installed(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return {uuid: uuid for parts in there for uuid in parts}
    gpus: dict[str, str] = {}
    for name in given.replace(" ", "").split(","):
        if name.isdecimal():
            meant = [parts[0] for parts in there[int(name) : int(name) + 1]]
        else:
            meant = [uuid for parts in there for uuid in parts if name and uuid.startswith(name)]
        if len(meant) != 1:  # CUDA, too, ignores what follows an unknown name
            break
        gpus[name] = meant[0]
    return gpus


def installed() -> list[list[str]]:
    """The UUIDs of this machine's NVIDIA GPUs as nvidia-smi lists them: for each GPU its own, or those of its MIG parts."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    gpus: list[list[str]] = []
    for kind, uuid in re.findall(r"^ *(GPU|MIG) .*\(UUID: ([\w/-]+)\)", done.stdout, re.MULTILINE):
        if kind == "GPU":
            gpus.append([uuid])
        else:
            gpus[-1] = [*(part for part in gpus[-1] if part.startswith("MIG")), uuid]
    return gpus


@contextlib.contextmanager
def claimed(device: str) -> Iterator[None]:
    """Take a GPU that no other run of this user has, and show it alone to CUDA; wait if there is none.

    The GPU is free again at the end, or when the process ends. Where CUDA runs already, it keeps the GPU that it has.

    Args:
        device: the parameter of the run; a run on ``cpu`` or ``mps`` takes no GPU.
    """
    gpus = visible() if device in ("auto", "cuda") else {}
    if not gpus:
        yield
        return
    name, lock = first_free(gpus)
    with lock:
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        print(f"takes GPU {[*gpus].index(name) + 1} of {len(gpus)} ({name})")
        yield


def first_free(gpus: dict[str, str]) -> tuple[str, contextlib.AbstractContextManager]:
    """A GPU's name, and its locked file; the first GPU and no file where locks are not possible."""
    told = False
    while True:
        for name, uuid in gpus.items():
            path = Path(tempfile.gettempdir()) / f"mae-core-{os.getuid()}-{uuid.replace('/', '-')}.lock"
            try:
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+", encoding="utf-8")
                if locks.acquire(file, wait=False):
                    return name, file
                reason: str | None = "its file system has no locks"
            except BlockingIOError:
                file.close()
                continue
            except OSError as error:
                reason = error.strerror
            print(f"nothing keeps two runs off the same GPU here: {path} cannot be locked ({reason})")
            return name, contextlib.nullcontext()
        if not told:
            print(f"other runs have all GPUs ({', '.join(gpus)}): waiting for one")
            told = True
        time.sleep(WAIT_SECONDS)
