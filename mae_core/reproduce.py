"""Run a published run again from its provenance, at its commit, and say whether it gives the same weights.

python -m mae_core.reproduce outputs/laptop/random-75/seed0/pretrain/provenance.json
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mae_core import data, provenance
from mae_core.errors import Explained, ParameterError
from mae_core.parameters import RunParameters
from mae_core.results import metric_rows, read_json
from mae_core.study import STAGES

ROOT = Path(__file__).parents[1]

# What a run at another commit is asked to do; these names are the same at every commit.
SCRIPT = """
import json, sys
from mae_core import training
from mae_core.parameters import FinetuneParameters, PretrainParameters
stage, values = sys.argv[1], json.loads(sys.argv[2])
kind = {"pretrain": PretrainParameters, "finetune": FinetuneParameters}[stage]
getattr(training, stage)(kind.check(values))
"""


def reproduce(path: Path) -> bool:
    """Run again what a provenance file describes, in a temporary folder; the published files are only read.

    A fine-tuned run is repeated from pre-trained weights of the published checksum: those that lie beside it, or
    else those that its pre-training gives again.

    Args:
        path: ``outputs/<study>/<case>/seed<k>/<stage>/provenance.json``.

    Returns:
        Whether the weights are the same, bit for bit.

    Raises:
        ParameterError: if the file does not tell enough, or the data or the pre-trained weights are not the same.
    """
    try:
        told = read_json(path)
        stage, values, commit = told["stage"], told["parameters"], told["commit"]
        run = STAGES[stage].check(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParameterError(f"{path} cannot be used ({error}): it must be the provenance.json of a run") from error
    if data.checksum(run.dataset, run.data_dir) != told["data_md5"]:
        raise ParameterError(f"the data set in {run.data_dir} is not the one of the run: its checksum differs")
    for difference in differences(told):
        print(f"not as published: {difference}")
    with tempfile.TemporaryDirectory() as place, checked_out(commit, told["clean"]) as code:
        if not Path(run.data_dir).is_absolute():
            (Path(place) / run.data_dir).parent.mkdir(parents=True, exist_ok=True)
            (Path(place) / run.data_dir).symlink_to(Path(run.data_dir).absolute())
        if getattr(run, "weights", ""):
            provide_weights(run, path, Path(place), code)
        train(stage, values, Path(place), code)
        again = Path(place) / run.folder / stage
        same = read_json(again / "provenance.json")["weights_sha256"] == told["weights_sha256"]
        print(
            f"weights: {'the same, bit for bit' if same else 'not the same'} (SHA-256 {told['weights_sha256'][:16]} …)"
        )
        for line in compare(read_json(path.with_name("metrics.json")), read_json(again / "metrics.json")):
            print(line)
    return same


def differences(told: dict[str, Any]) -> Iterator[str]:
    """What is not as it was when the run was made, and can change its bits."""
    here = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    if told["platform"] != here:
        yield f"platform, {told['platform']}; here {here}"
    for name, version in provenance.versions().items():
        if told["versions"].get(name) != version:
            yield f"{name} {told['versions'].get(name)}; here {version}"
    if told["clean"] is False:
        yield "the code, which had changes beside its commit"


@contextlib.contextmanager
def checked_out(commit: str | None, clean: bool | None) -> Iterator[Path]:
    """A folder with the package at ``commit``: a temporary work tree, or this one where it is at that commit."""
    here = provenance.commit()
    if commit is None or (here["commit"] == commit and here["clean"] and clean):
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "code"
        done = subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, commit], capture_output=True, text=True
        )
        if done.returncode:
            raise ParameterError(f"commit {commit} is not in this repository ({done.stderr.strip()})")
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def provide_weights(run: RunParameters, path: Path, place: Path, code: Path) -> None:
    """Put the pre-trained weights of a fine-tuned run where it will look for them."""
    published, target = Path(run.weights), place / run.weights
    beside = path.parents[1] / "pretrain" / "provenance.json"
    if not beside.exists():
        raise ParameterError(f"{path} was fine-tuned, and the provenance of its pre-training is not in {beside}")
    told = read_json(beside)
    target.parent.mkdir(parents=True, exist_ok=True)
    if published.exists() and provenance.sha256(published) == told["weights_sha256"]:
        target.symlink_to(published.absolute())
        return
    print(f"{published} is not there or not the published one: pre-training first")
    train("pretrain", told["parameters"], place, code)


def train(stage: str, values: dict[str, Any], place: Path, code: Path) -> None:
    """Train in a process of its own, in the folder ``place``, with the package that lies in ``code``."""
    environment = {**os.environ, "PYTHONPATH": str(code)}
    words = [sys.executable, "-c", SCRIPT, stage, json.dumps(values)]
    if subprocess.run(words, cwd=place, env=environment).returncode:
        raise ParameterError(f"{stage} of {values['case']} failed: see above")


def compare(published: dict[str, Any], again: dict[str, Any]) -> Iterator[str]:
    """A line per metric: published, and now."""
    for (name, before), (_, now) in zip(metric_rows(published), metric_rows(again), strict=True):
        yield f"{name}: {before} published, {now} now"


def main() -> None:
    """Run a published run again and say whether it gives the same weights. Exit code 0: the same, bit for bit; 3: not."""
    parser = argparse.ArgumentParser(prog="python -m mae_core.reproduce", description=main.__doc__)
    parser.add_argument("provenance", type=Path, help="outputs/<study>/<case>/seed<k>/<stage>/provenance.json")
    words = parser.parse_args()
    try:
        same = reproduce(words.provenance)
    except Explained as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    raise SystemExit(0 if same else 3)


if __name__ == "__main__":
    main()
