"""After a ``kill -9``: end what a study's lost jobs left running, and let Snakemake in again."""

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
    """All processes with their command lines and working folders; None where another user's is not told."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            try:
                yield process, words, Path(process.cwd())
            except psutil.AccessDenied:
                yield process, words, None


def check_nobody_runs(folder: Path) -> None:
    """Raise BusyError if a Snakemake is alive in ``folder``, or another user's, who knows where: then nothing is lost."""
    for process, words, where in processes():
        if where in (folder, None) and any(Path(word).name == "snakemake" for word in words[:3]):
            raise BusyError(f"Snakemake is running here, as process {process.pid}: wait for it, or end it")


def orphans(study: str, folder: Path) -> list[psutil.Process]:
    """The papermill processes that run this study's notebooks in ``folder``, and kernels there that have lost theirs."""
    found = []
    for process, words, where in processes():
        papermill = any(Path(word).name == "papermill" for word in words[:3])
        lost_kernel = "ipykernel_launcher" in words and process.ppid() == 1 and not jupyter_is_first()
        ours = lost_kernel or (papermill and any(word.startswith(f"outputs/{study}/") for word in words))
        if ours and where == folder:
            found.append(process)
    return found


def jupyter_is_first() -> bool:
    """Whether process 1 is a Jupyter server, as in a container: then kernels below it are not lost."""
    return any("jupyter" in word for word in psutil.Process(1).cmdline()[:3])


def end(lost: list[psutil.Process]) -> int:
    """End processes and all that they have started; returns how many those were.

    Raises:
        BusyError: if one of them cannot be ended.
    """
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
    """End a study's orphans, and take away the lock that a killed Snakemake has left.

    Args:
        path: the study's file.
        folder: the project's root.

    Raises:
        BusyError: if a Snakemake is running there.
        ParameterError: if the file is no study.
    """
    study = Study.read(path)
    check_nobody_runs(folder.resolve())
    print(f"ended {end(orphans(study.name, folder.resolve()))} lost processes of {study.name}")
    words = [sys.executable, "-m", "snakemake", "--unlock", "--configfile", str(path)]
    check_nobody_runs(folder.resolve())
    done = subprocess.run(words, cwd=folder, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise BusyError(f"Snakemake's lock could not be taken away: {done.stderr.strip().splitlines()[-1]}")
