"""Which finished runs Snakemake repeats.

Snakemake repeats runs that are older than their sources, or that had other parameters. It knows the parameters of the runs
that it trained here, but not in a fresh clone: so we compare them ourselves, and date the results accordingly.
"""

import itertools
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mae_core.study.checkout import ROOT, git
from mae_core.study.parameters import OUTPUTS, FinetuneParameters, PretrainParameters
from mae_core.study.results import read_json
from mae_core.study.study import Study

LONG_AGO = 24 * 3600 * 10**9  # 2 January 1970, in nanoseconds: older than any source


def date_results(study: Study, sources: Iterable[str], fingerprints: Mapping[str, str]) -> list[str]:
    """Date the results of finished runs for Snakemake, and return a sentence on each run that is out of date.

    * A run is out of date if its parameters are not the study's, or its own images are not those that are there. Its
      results become older than any source.
    * So is one whose notebook stopped after the training: its other cells run then, from the last checkpoint.
    * A fine-tuning that is newer than the sources becomes as new as the weights that it started from: copies are dated by
      the clock.
    * Committed results become as new as the newest of the sources that made them, unless they are newer. git dates what
      it writes by the clock: after a pull, code may be newer than results that did not change. Results that differ from
      the commit, or are in none, keep their time.

    Args:
        fingerprints: of the images in each folder of one's own; see :func:`~mae_core.data.layout.fingerprint`.
    """
    newest = max((Path(path).stat().st_mtime_ns for path in sources), default=0)
    valid, told = committed(OUTPUTS / study.name), []
    for run, results in finished(study):
        difference = run.change(results.with_name("parameters.json")) or other_images(run, results, fingerprints)
        if difference := difference or ("its notebook did not end" if unended(results) else ""):
            told.append(f"{results.parent} is out of date: {difference}")
            valid.discard(results.absolute())
            os.utime(results, ns=(LONG_AGO, LONG_AGO))
        elif dated(results) == LONG_AGO:  # the study was changed, and changed back
            valid.add(results.absolute())
        elif (weights := started_from(run, results)) and newest <= dated(results) < dated(weights):
            os.utime(results, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns))
    for path in valid:
        if dated(path) < newest:
            os.utime(path, ns=(newest, newest))
    return told


def dated(path: Path) -> int:
    """When a file was changed, in nanoseconds."""
    return path.stat().st_mtime_ns


def unended(results: Path) -> bool:
    """Whether the notebook of a finished run stopped after the training: its checkpoint and papermill's metadata tell.

    Not so a pre-training from which a fine-tuning has started and finished: it would be repeated, too.
    """
    stage = results.parent.name
    tuned = stage == "pretrain" and (results.parents[1] / "finetune" / "metrics.json").is_file()
    if tuned or not results.with_name("checkpoint.safetensors").is_file():
        return False
    try:
        told = read_json(results.with_name(f"{stage}.ipynb"))["metadata"]["papermill"]
    except (OSError, ValueError, KeyError, TypeError):  # of mae-core train, or damaged
        return False
    return not told.get("end_time") or bool(told.get("exception"))


def started_from(run: PretrainParameters | FinetuneParameters, results: Path) -> Path | None:
    """The weights that a finished fine-tuning started from, if they are those of its pre-training by what both recorded."""
    before = results.parents[1] / "pretrain" / "provenance.json"
    weights = Path(getattr(run, "weights", ""))
    if weights.parent != before.parent or not weights.is_file():
        return None
    try:
        told, expected = read_json(results.with_name("provenance.json")), read_json(before)["weights_sha256"]
    except (OSError, ValueError, KeyError):  # missing or damaged
        return None
    return weights if told.get("initial_weights_sha256") == expected else None


def finished(study: Study) -> Iterator[tuple[PretrainParameters | FinetuneParameters, Path]]:
    """The parameters that the study asks for, and the ``metrics.json``, of every finished run."""
    for case, seed in itertools.product(study.all_cases, study.all_seeds):
        for stage in study.stages(case):
            results = OUTPUTS / study.name / case / f"seed{seed}" / stage / "metrics.json"
            if results.exists():
                yield study.run(case, seed, stage), results


def other_images(run: PretrainParameters | FinetuneParameters, results: Path, fingerprints: Mapping[str, str]) -> str:
    """A sentence if a finished run read other images in a folder of one's own; empty if not, or if that is not known."""
    if run.dataset != "folder":
        return ""
    try:
        read = read_json(results.with_name("provenance.json")).get("images")
    except (OSError, ValueError):
        return "its provenance.json cannot be read"
    return f"the images in {run.data_dir} have changed since" if read and read != fingerprints[run.data_dir] else ""


def committed(folder: Path) -> set[Path]:
    """The files of a folder that are committed and unchanged since; none outside a git checkout."""
    try:
        known = git("ls-files", "-z", "--", str(folder)).split("\0")
        differ = git("diff", "--name-only", "-z", "--relative", "HEAD", "--", str(folder)).split("\0")
    except (OSError, subprocess.CalledProcessError):
        return set()
    return {ROOT / name for name in set(known) - set(differ) - {""}}
