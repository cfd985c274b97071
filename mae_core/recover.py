"""After a ``kill -9``: end what a study's lost jobs left running, and let Snakemake in again.

python -m mae_core.recover params/laptop.yaml
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from mae_core.errors import BusyError, Explained
from mae_core.study import Study

WAIT_SECONDS = 10


def processes_in(folder: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """The processes that work in a folder, with their command lines."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if Path(process.cwd()) == folder:
                yield process, words
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


def check_nobody_runs(folder: Path) -> None:
    """Raise BusyError if a Snakemake is alive in ``folder``: then nothing is lost."""
    for process, words in processes_in(folder):
        if any(Path(word).name == "snakemake" for word in words[:3]):
            raise BusyError(f"Snakemake is running here, as process {process.pid}: wait for it, or end it")


def orphans(study: str, folder: Path) -> list[psutil.Process]:
    """The papermill processes that run this study's notebooks in ``folder``, and kernels there that have lost theirs."""
    found = []
    for process, words in processes_in(folder):
        papermill = any(Path(word).name == "papermill" for word in words[:3])
        if papermill and any(word.startswith(f"outputs/{study}/") for word in words):
            found.append(process)
        if "ipykernel_launcher" in words and process.ppid() == 1:
            found.append(process)
    return found


def end(processes: list[psutil.Process]) -> int:
    """End processes and all that they have started; returns how many those were."""
    family = {child for process in processes for child in [process, *process.children(recursive=True)]}
    for process in family:
        process.kill()
    psutil.wait_procs(list(family), timeout=WAIT_SECONDS)
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
    subprocess.run(words, cwd=folder, check=True)


def main() -> None:
    """End what a killed study left running, and let Snakemake in again."""
    parser = argparse.ArgumentParser(prog="python -m mae_core.recover", description=main.__doc__)
    parser.add_argument("study", type=Path, help="its file, such as params/laptop.yaml")
    words = parser.parse_args()
    try:
        recover(words.study, Path.cwd())
    except Explained as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
