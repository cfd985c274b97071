"""A GPU for each run: which GPUs this process may use, and which of them no other run has.

A run locks a file named after its GPU and shows that GPU alone to CUDA. torch is not imported: CUDA_VISIBLE_DEVICES must be
set before CUDA starts, and Snakemake, which only counts the GPUs, starts faster without it.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from mae_core import locks
from mae_core.errors import ParameterError

VARIABLE = "CUDA_VISIBLE_DEVICES"
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA then numbers the GPUs as nvidia-smi does
TAKEN: dict[str | None, str | None] = {}  # what this process has set the variable to, and what it was given before
WAIT_SECONDS = 1.0  # between two looks for a free GPU


def visible() -> dict[str, str]:
    """The UUIDs of NVIDIA's GPUs that this process may use, each under its name in CUDA_VISIBLE_DEVICES.

    If a scheduler or a person has set this variable, it names them; otherwise these are all of the machine.
    """
    there, given = installed(), os.environ.get(VARIABLE)
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
def claimed(device: str, count: int = 1) -> Iterator[None]:
    """Take GPUs that no other run of this user has, and show them alone to CUDA; wait until there are enough.

    They are free again at the end, or when the process ends. Where CUDA runs already, it keeps the GPU that it has.

    Args:
        device: the parameter of the run; a run on ``cpu`` or ``mps`` takes no GPU.
        count: how many; each of several processes needs its own.

    Raises:
        ParameterError: if there are some GPUs, but fewer than ``count``.
    """
    now = os.environ.get(VARIABLE)
    given, taken = TAKEN.get(now, now), now in TAKEN
    if count > 1:  # several processes start CUDA anew, whatever GPU an earlier run in this one took
        show(given)
    gpus = visible() if device in ("auto", "cuda") and torch_has_cuda() else {}
    try:
        if not gpus:
            yield
            return
        if count > len(gpus):
            raise ParameterError(f"processes is {count}: each needs a GPU of its own, and there are {len(gpus)} here")
        with contextlib.ExitStack() as locked:
            names = free(gpus, count, locked)
            show(",".join(names))
            TAKEN.setdefault(",".join(names), given)
            places = [str([*gpus].index(name) + 1) for name in names]
            print(f"takes GPU {', '.join(places)} of {len(gpus)} ({', '.join(names)})")
            yield
    finally:
        if count > 1 and taken:  # CUDA in this process keeps the GPU of the earlier run
            show(now)


def torch_has_cuda() -> bool:
    """Whether torch was built for CUDA: else it uses no GPU, whatever is there. Before its import, its version tells."""
    torch = sys.modules.get("torch")
    return torch.backends.cuda.is_built() if torch else not version("torch").endswith("+cpu")


def show(names: str | None) -> None:
    """Show CUDA these GPUs alone, or with None all."""
    if names is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = names


def free(gpus: dict[str, str], count: int, locked: contextlib.ExitStack) -> list[str]:
    """The names of ``count`` free GPUs, whose files stay locked; the first ones and no files where locks are not possible.

    Two runs that each need several never wait for each other: who gets too few gives them back before it waits.
    """
    told = False
    while True:
        with contextlib.ExitStack() as found:
            names = []
            for name, uuid in gpus.items():
                path = Path(tempfile.gettempdir()) / f"mae-core-{os.getuid()}-{uuid.replace('/', '-')}.lock"
                try:
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                    file = found.enter_context(os.fdopen(descriptor, "r+", encoding="utf-8"))
                    reason = None if locks.acquire(file, wait=False) else "its file system has no locks"
                except BlockingIOError:
                    continue
                except OSError as error:
                    reason = error.strerror
                if reason:
                    print(f"nothing keeps two runs off the same GPU here: {path} cannot be locked ({reason})")
                    return [*gpus][:count]
                names.append(name)
                if len(names) == count:
                    locked.enter_context(found.pop_all())
                    return names
        if not told:
            print(f"other runs have the GPUs ({', '.join(gpus)}): waiting for {count if count > 1 else 'one'}")
            told = True
        time.sleep(WAIT_SECONDS)
