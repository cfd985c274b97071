"""After a ``kill -9``: end what a study's lost jobs left running, and let Snakemake in again.

python -m mae_core.recover params/laptop.yaml
"""

import argparse
import subprocess
import sys
from pathlib import Path

import psutil

from mae_core.errors import BusyError, Explained
from mae_core.study import Study

WAIT_SECONDS = 10


def orphans(study: str, folder: Path) -> list[psutil.Process]:
    """The papermill processes that run this study's notebooks in ``folder``, and kernels there that have lost theirs.

    Raises:
        BusyError: if one of them has a living Snakemake above it: then nothing is lost.
    """
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            papermill = any(Path(word).name == "papermill" for word in words[:3])
            lost_kernel = "ipykernel_launcher" in words and process.ppid() == 1
            ours = any(word.startswith(f"outputs/{study}/") for word in words) if papermill else lost_kernel
            if not ours or Path(process.cwd()) != folder:
                continue
            above = [
                parent for parent in process.parents() if any("snakemake" in word for word in parent.cmdline()[:3])
            ]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if above:
            raise BusyError(f"{study} is running: Snakemake is process {above[-1].pid}; wait for it, or end it")
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
        BusyError: if the study is running.
        ParameterError: if the file is no study.
    """
    study = Study.read(path)
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
