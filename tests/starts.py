"""Start many notebooks at once, and count those that never begin: ``python tests/starts.py 500 16``."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat


def command() -> list[str]:
    """The command ``papermill`` of this environment, as the Snakefile and people start it."""
    return [str(Path(sys.executable).with_name("papermill")), "-k", "python3", "--no-progress-bar"]


def write_notebook(path: Path, source: str) -> None:
    """Write a notebook of one cell."""
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)


def failed_starts(folder: Path, total: int, at_once: int, *options: str) -> list[str]:
    """Execute a notebook ``total`` times in batches of ``at_once``; what those said that failed."""
    write_notebook(folder / "one.ipynb", "1 + 1")
    failed = []
    for first in range(0, total, at_once):
        jobs = [
            subprocess.Popen(
                [*command(), *options, folder / "one.ipynb", folder / f"out{k}.ipynb"],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
            )
            for k in range(min(at_once, total - first))
        ]  # fmt: skip
        told = [job.communicate()[1] for job in jobs]
        failed += [text.strip().splitlines()[-1] for text, job in zip(told, jobs, strict=True) if job.returncode]
    return failed


if __name__ == "__main__":
    total, at_once = map(int, sys.argv[1:3])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        lines = failed_starts(Path(place), total, at_once, *sys.argv[3:])
    print(*lines, sep="\n")
    print(f"{len(lines)} of {total} failed in {time.monotonic() - began:.0f} s, {at_once} at once")
    raise SystemExit(bool(lines))
