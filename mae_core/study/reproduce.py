"""Repeat a published run at its commit, and report whether it gives the same weights."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError

from mae_core import devices
from mae_core.data import folder_of, images
from mae_core.errors import ParameterError
from mae_core.study import checkout, provenance
from mae_core.study.foreign import settings_sha256, weights_file
from mae_core.study.parameters import FinetuneParameters, PretrainParameters, RunParameters, check_data_dir
from mae_core.study.results import FULL, KEPT, metric_rows, read_json
from mae_core.study.study import STAGES
from mae_core.study.tensors import tensors_sha256

# Run with the code of the published commit, so it uses only names that exist at every commit.
SCRIPT = """
import json, sys
import mae_core
stage, values = sys.argv[1], json.loads(sys.argv[2])
kind = {"pretrain": mae_core.PretrainParameters, "finetune": mae_core.FinetuneParameters}[stage]
getattr(mae_core, stage)(kind.check(values))
"""


@dataclass(frozen=True)
class Published:
    """A published run: its ``provenance.json`` and the files beside it."""

    stage: str
    parameters: dict[str, Any]  # as in the file: later versions have more
    run: PretrainParameters | FinetuneParameters
    provenance: dict[str, Any]
    metrics: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ``provenance.json`` and the files beside it; raises ParameterError if one is missing or incomplete."""
        stage = path.absolute().parent.name
        try:
            told = read_json(path)
            for key in ("commit", "clean", "platform", "versions", "device", "precision", "data_md5", "weights_sha256"):
                _ = told[key]
            parameters = read_json(path.with_name("parameters.json"))
            run = STAGES[stage](**parameters)
            for name in ("data_dir", "weights"):
                if ".." in Path(getattr(run, name, "")).parts:
                    raise ValueError(f"its {name} contains '..'")
            return cls(stage, parameters, run, told, read_json(path.with_name("metrics.json")))
        except ParameterError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ParameterError(f"{path} cannot be used ({error!r}): it must be the provenance.json of a run") from error


def reproduce(path: Path) -> bool:
    """Repeat a published run in a temporary folder, and return whether the weights are identical bit for bit.

    Fine-tuning starts from weights with the published checksum; if its own pre-training's are missing, that is repeated.

    Args:
        path: ``outputs/<study>/<case>/seed<k>/<stage>/provenance.json``.

    Raises:
        ParameterError: if the file is incomplete, the data or the pre-trained weights differ, or data would be written
            outside the project.
    """
    published = Published.read(path)
    run, told = published.run, published.provenance
    check_data_dir(run.dataset, run.data_dir, run.image_size, published.stage == "finetune")
    images.load(run.dataset, run.data_dir, image_size=run.image_size)  # creates or downloads the data set if it is missing
    if images.checksum(run.dataset, run.data_dir, run.image_size) != told["data_md5"]:
        raise ParameterError(
            f"the data set in {run.data_dir} is not the one that the run used (its checksum differs): put that one there"
        )
    for difference in differences(published):
        print(f"not as published: {difference}")
    with tempfile.TemporaryDirectory() as place:
        if getattr(run, "weights", ""):
            provide_weights(published, path, Path(place))
        again = train(published, Path(place))
        metrics, source = (
            read_json(Path(place) / run.folder / published.stage / f"{name}.json") for name in ("metrics", "provenance")
        )
        same = again == told["weights_sha256"]
        print(f"weights: {'the same, bit for bit' if same else 'not the same'} (SHA-256 {told['weights_sha256'][:16]} …)")
        if source["precision"] != told["precision"]:
            print(f"precision: {told['precision']} published, {source['precision']} now")
        before, now = (dict(metric_rows(measured, run.holdout)) for measured in (published.metrics, metrics))
        for name in before | now:
            print(f"{name}: {before.get(name, '–')} published, {now.get(name, '–')} now")
    return same


def differences(published: Published) -> Iterator[str]:
    """Differences from the published run that can change its weights."""
    told, run = published.provenance, published.run
    device = devices.choose_device(run.device)
    devices.set_up(run.threads)
    for name, value in provenance.machine(run, device).items():
        if name != "precision" and told[name] != value:  # the code of that commit chooses the precision
            yield f"{name}, {told[name]}; here {value}"
    for name, version in provenance.versions().items():
        if told["versions"].get(name) != version:
            yield f"{name} {told['versions'].get(name)}; here {version}"
    if machines := told.get("machines"):
        yield f"several machines, one after the other: {', then '.join(machines)}"
    if told["clean"] is False:
        yield "the code, which had uncommitted changes"


@contextlib.contextmanager
def checked_out(commit: str | None, clean: bool | None) -> Iterator[Path]:
    """A folder with the package at ``commit``: this work tree if it is unchanged at that commit, else a temporary one."""
    here = provenance.commit()
    if commit is None or (here["commit"] == commit and here["clean"] and clean):
        yield checkout.ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "code"
        try:
            checkout.git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        except OSError as error:
            raise ParameterError(f"commit {commit} is needed, but git is not installed: install it") from error
        except subprocess.CalledProcessError as error:
            raise ParameterError(
                f"commit {commit} is not in this repository ({error.stderr.strip()}): take a clone of the project; in a "
                f"shallow one, fetch the whole history: git fetch --unshallow"
            ) from error
        try:
            yield tree / checkout.git("rev-parse", "--show-prefix")  # the project may be a subfolder of the repository
        finally:
            checkout.git("worktree", "remove", "--force", str(tree))


def provide_weights(published: Published, path: Path, place: Path) -> None:
    """Put the weights that a run started from, by their checksum, where fine-tuning in ``place`` looks for them.

    Weights of its own pre-training are trained again if they are missing; other weights must be where the run found them.

    Raises:
        ParameterError: if they are missing, and no pre-training gives them.
    """
    run = published.run
    assert isinstance(run, FinetuneParameters)
    given, beside = Path(run.weights), path.absolute().parents[1] / "pretrain" / "provenance.json"
    own = Published.read(beside) if run.from_own and beside.exists() else None
    expected = published.provenance.get("initial_weights_sha256")  # not told by runs from before it was recorded
    if not expected and own:
        expected = own.provenance["weights_sha256"]
    if not expected and beside.exists():
        raise ParameterError(
            f"{path} does not tell the checksum of {given}, from which the run started: it cannot be repeated"
        )
    if not expected:
        raise ParameterError(f"{path} is a fine-tuned run, but {beside} is missing: put its pre-training's results there")
    trained = own if given.name != KEPT and not given.is_absolute() else None  # its pre-training can be repeated
    for weights in (given, beside.with_name(FULL)) if trained else (given,):
        if holds(weights, expected, published.provenance.get("initial_settings_sha256")):
            link(place / given, weights)
            for told in () if own or weights.is_dir() else weights.parent.glob("*.json"):  # of timm or transformers
                link(place / given.with_name(told.name), told)
            return
    if not trained:
        raise ParameterError(
            f"the run started from {given} with the SHA-256 {expected[:16]} …, which is missing or another file now, or "
            f"another configuration is beside it: put that file there"
        )
    if trained.provenance["weights_sha256"] != expected:
        raise ParameterError(
            f"{path} started from other weights than those of {beside}: put the pre-training there that it started from"
        )
    print(f"{given} is missing or is not the published file: pre-training first")
    if train(trained, place) != expected:
        raise ParameterError("pre-training does not reproduce the published weights: see what is not as published")
    link(place / given, place / trained.run.folder / "pretrain" / FULL)


def holds(given: Path, weights_sha256: str, settings: str | None) -> bool:
    """Whether a file or folder has these weights and, where a run recorded them, these settings beside them."""
    try:
        found = tensors_sha256(weights_file(str(given)))
    except (ParameterError, SafetensorError, OSError):  # missing or damaged
        return False
    return found == weights_sha256 and (settings is None or settings_sha256(str(given)) == settings)


def link(name: Path, target: Path) -> None:
    """Link ``name`` to ``target`` unless ``name`` exists, as an absolute path of the published run may."""
    if not name.exists():
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(target.absolute())


def link_data(run: RunParameters, place: Path) -> None:
    """Link the files of a data set, and nothing beside them, to where a run in ``place`` looks for them.

    Raises:
        ParameterError: for images of one's own in the project's folder itself, whose results would be replaced.
    """
    within = "" if run.dataset == "folder" else folder_of(run.dataset, run.image_size)
    if Path(run.data_dir, within) == Path("."):
        raise ParameterError(
            "data_dir is the project's own folder: move the images to a folder of their own, and train again"
        )
    link(place / run.data_dir / within, Path(run.data_dir, within))


def train(published: Published, place: Path) -> str:
    """Train in another process in the folder ``place``, with the package at the run's commit; SHA-256 of the weights."""
    run, told = published.run, published.provenance
    link_data(run, place)
    with checked_out(told["commit"], told["clean"]) as code:
        words = [sys.executable, "-c", SCRIPT, published.stage, json.dumps(published.parameters)]
        if subprocess.run(words, cwd=place, env={**os.environ, "PYTHONPATH": str(code)}).returncode:
            raise ParameterError(f"{published.stage} of {run.case} failed: see above")
    return tensors_sha256(place / run.folder / published.stage / FULL)
