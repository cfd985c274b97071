"""Recovery after a ``kill -9``: end the processes that a study left running, and unlock Snakemake."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from mae_core.errors import BusyError
from mae_core.study.study import Study

WAIT_SECONDS = 10


def processes() -> Iterator[tuple[psutil.Process, list[str], Path | None]]:
    """All processes with command line and working folder; the folder is None if it is another user's and not readable."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            try:
                yield process, words, Path(process.cwd())
            except psutil.AccessDenied:
                yield process, words, None


def check_nobody_runs(folder: Path) -> None:
    """Raise BusyError if Snakemake is running in ``folder``, or as another user whose lock is there."""
    for process, words, where in processes():
        here = where == folder or (where is None and has_lock(process, folder))
        if here and any(Path(word).name == "snakemake" for word in words[:3]):
            raise BusyError(f"Snakemake is running here, as process {process.pid}: wait for it, or end it")


def has_lock(process: psutil.Process, folder: Path) -> bool:
    """Whether the user of a process owns a lock of Snakemake in ``folder``."""
    with contextlib.suppress(psutil.Error, OSError):
        user = process.uids().real
        return any(lock.stat().st_uid == user for lock in (folder / ".snakemake" / "locks").iterdir())
    return False


def orphans(study: str, folder: Path) -> list[psutil.Process]:
    """The papermill processes of this study in ``folder``, and kernels there whose papermill has ended."""
    found = []
    for process, words, where in processes():
        papermill = any(Path(word).name == "papermill" for word in words[:3])
        lost_kernel = "ipykernel_launcher" in words and is_lost(process)
        ours = lost_kernel or (papermill and any(word.startswith(f"outputs/{study}/") for word in words))
        if ours and where == folder:
            found.append(process)
    return found


def is_lost(kernel: psutil.Process) -> bool:
    """Whether the process that started a kernel has ended; jupyter_client names it in the kernel's environment."""
    with contextlib.suppress(psutil.Error, KeyError, ValueError):
        return not psutil.pid_exists(int(kernel.environ()["JPY_PARENT_PID"]))
    return False


def end(lost: list[psutil.Process]) -> int:
    """End processes and all their descendants, and return their number; raises BusyError if a process does not end."""
    family = set(lost)
    for process in lost:
        with contextlib.suppress(psutil.NoSuchProcess):
            family |= set(process.children(recursive=True))
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(list(family), timeout=WAIT_SECONDS)
    if alive:
        raise BusyError(f"process {alive[0].pid} does not end: end it by hand")
    return len(family)


def recover(path: Path, folder: Path) -> None:
    """End a study's orphaned processes in the project ``folder``, and remove the lock of a killed Snakemake.

    Args:
        path: the study file.

    Raises:
        BusyError: if Snakemake is running there, a process does not end, or the lock cannot be removed.
        ParameterError: if the file is not a valid study.
    """
    study = Study.read(path)
    check_nobody_runs(folder.resolve())
    print(f"ended {end(orphans(study.name, folder.resolve()))} orphaned processes of {study.name}")
    words = [sys.executable, "-m", "snakemake", "--unlock", "--configfile", str(path)]
    check_nobody_runs(folder.resolve())
    done = subprocess.run(words, cwd=folder, capture_output=True, encoding="utf-8")
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1]
        raise BusyError(f"Snakemake's lock could not be removed ({said}): remove the folder .snakemake/locks yourself")
