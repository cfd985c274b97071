"""Use a borrowed GPU with one command, ``make gpu``: its tests, the race against the peers, and a study.

python -m benchmarks.gpu                    tests, race, and the study speedrun in the time that is left
python -m benchmarks.gpu --study paper      as many runs of one study as fit
python -m benchmarks.gpu --rehearse         the same with tiny settings on the CPU

Run it in the project's folder. Every part is a process with a time limit, and its result is saved at once. Give the same
command again to continue. It needs no papermill, no Snakemake and no network.
"""

import argparse
import contextlib
import ctypes
import functools
import hashlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import torch
    import yaml
    from safetensors import SafetensorError

    from benchmarks.machine import machine_name
    from mae_core.data import folder_of
    from mae_core.errors import Explained, MissingDataError
    from mae_core.study import results
    from mae_core.study.parameters import FinetuneParameters, PretrainParameters
    from mae_core.study.repeat import started_from
    from mae_core.study.study import Study
    from mae_core.study.tensors import load_tensors, tensors_sha256
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is missing here: install it, or name a folder that holds it in PYTHONPATH")

ROOT = Path(__file__).parents[1]
SHARES = {"tests": 0.2, "pretrain": 0.24, "finetune": 0.24}  # of the time; the study has what is left
MARGIN = 25.0  # seconds, at most, of a race's share that are for its imports, its tables and GRACE
GRACE = 10.0  # seconds, at most, from SIGTERM to SIGKILL: the time to save a checkpoint
SMALL = {
    "dataset": "shapes", "train_images": 256, "batch_size": 64, "patch_size": 4, "width": 24, "depth": 1, "heads": 2,
    "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2, "threads": 1, "checkpoint_seconds": 0.0,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--study", help="train this study alone, such as paper; default: tests, race and speedrun")
    parser.add_argument("--seconds", type=float, default=550.0, help="end after this time (default: 550)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder for the results")
    parser.add_argument("--rehearse", action="store_true", help="use the CPU and tiny settings")
    words = parser.parse_args(arguments)
    if words.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} finds no GPU here: use a machine that has one, or rehearse on the CPU with tiny "
            f"settings (make gpu REHEARSE=1, or --rehearse)"
        )
    folder = words.out / (machine_name() + "-rehearsal" * words.rehearse)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        parts = [] if words.study else checks(folder, words.seconds, words.rehearse)
        parts += runs(words.study or "speedrun", folder, words.seconds, words.rehearse)
        for part in parts:
            if isinstance(part, Run) and words.study:
                check_data(part.run)
    except Explained as error:
        sys.exit(f"{type(error).__name__}: {error}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: a training then saves a checkpoint
    try:
        sys.exit(work(parts, folder, words.study or "all", words.seconds))
    except KeyboardInterrupt:
        sys.exit("interrupted: give the same command again to continue")


@dataclass(frozen=True)
class Part:
    """A part of the work.

    Attributes:
        name: as the table shows it.
        words: arguments of Python.
        limit: seconds, at most.
        folder: of parts.json.
    """

    name: str
    words: list[str]
    limit: float
    folder: Path

    def done(self) -> str | None:
        """The result by the same code, if there is one."""
        entry = read(self.folder / "parts.json").get(self.name, {})
        return entry["result"] if (entry.get("state"), entry.get("code")) == ("done", code_sha256()) else None

    def obstacle(self, left: float) -> str | None:
        """Why it cannot start when so many seconds are left, if so."""
        needed = self.needed()
        return f"not started: it needs {needed:.0f} s, {max(left, 0):.0f} s are left" if left < needed else None

    def needed(self) -> float:
        """Seconds that it needs to be worth a start."""
        return self.limit / 2

    def notice(self) -> str:
        """What to tell before it starts."""
        return ""

    def progress(self) -> str | None:
        """How far it came, if it can continue from there."""
        return None


@dataclass(frozen=True)
class Run(Part):
    """A run of a study, with its parameters and stage; ``before`` is its pre-training."""

    run: PretrainParameters | FinetuneParameters
    stage: str
    before: "Run | None" = None

    def done(self) -> str | None:
        folder, before = self.run.folder / self.stage, Path(getattr(self.run, "weights", ""))
        metrics = read(folder / "metrics.json")
        if not metrics or self.run.change(folder / "parameters.json") or not has_weights(folder):
            return None
        made, begun = (folder / "metrics.json").stat().st_mtime_ns, folder / "checkpoint.safetensors"
        if begun.is_file() and begun.stat().st_mtime_ns > made:
            return None  # it is being trained again
        if before.is_file() and before.stat().st_mtime_ns > made and not started_from(self.run, folder / "metrics.json"):
            return None  # its pre-training was
        key, unit = ("test_psnr", "dB") if self.stage == "pretrain" else ("last_epoch_accuracy", "%")
        return f"{metrics[key]:.2f} {unit}, {metrics['images_per_second']:,.0f} images/s, {metrics['wall_seconds']:.0f} s"

    def obstacle(self, left: float) -> str | None:
        if self.before and not self.before.done():
            return "not started: its pre-training is not finished"
        try:
            check_data(self.run)
        except MissingDataError as error:
            return f"not started: {error}"
        return super().obstacle(left)

    def needed(self) -> float:
        """Seconds to its first checkpoint, or to its end if that is sooner, by the pace of the study's earlier runs."""
        earlier = [read(p) for p in self.run.folder.parent.parent.glob(f"*/seed*/{self.stage}/metrics.json")]
        paces = [(metrics["wall_seconds"] - metrics["train_seconds"], metrics["train_seconds"]) for metrics in earlier]
        start, trained = (statistics.median(column) for column in zip(*paces, strict=True)) if paces else (0.0, 1e9)
        return start + min(self.run.checkpoint_seconds, trained)

    def notice(self) -> str:
        folder = self.run.folder / self.stage
        replaces = (folder / "metrics.json").is_file()
        return f"; its results will replace those in {folder} (git diff shows the change)" if replaces else ""

    def progress(self) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            about = load_tensors(self.run.folder / self.stage / "checkpoint.safetensors")[1]
            return f"interrupted after {about['epoch']} of {self.run.epochs} epochs"
        return "interrupted before its first checkpoint"


def checks(folder: Path, seconds: float, rehearse: bool) -> list[Part]:
    """The tests marked for a GPU, and the races."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [str(path) for path in files if "mark.gpu" in path.read_text("utf-8")]  # others may need more packages
    # With -v, a test is named when it starts and when it has failed: the names are there however the tests end.
    commands = {"tests": ["-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *marked]}
    for task in [name for name in SHARES if name != "tests"]:
        blocks = ["--blocks", "1", "--seconds", "0.05", "--tiny"] if rehearse else ["--blocks", "5", "--seconds", "1"]
        share = SHARES[task] * seconds
        limit = ["--limit", f"{share - min(MARGIN, share / 5):.0f}", "--out", str(folder)]
        commands[task] = ["-m", "benchmarks", "--tasks", task, *limit, *blocks]
    return [Part(name, words, SHARES[name] * seconds, folder) for name, words in commands.items()]


def runs(study_name: str, folder: Path, seconds: float, rehearse: bool) -> Iterator[Run]:
    """The runs of a study, seed by seed: its first case, then from scratch, then the other cases.

    Raises:
        ParameterError: if the study's file is missing or cannot be used.
    """
    path = Path("params") / f"{study_name}.yaml"
    study = Study.read(path)
    if rehearse:
        path = folder / f"{study_name}-rehearsal.yaml"
        stages = {"pretrain": {"epochs": 3}, "finetune": {"epochs": 2, "probes": False}}
        content = {"study": path.stem, "seeds": [study.seeds[0]], "shared": SMALL, **stages, "cases": study.cases}
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        study = Study.read(path)
    first, *others = study.cases
    for seed in study.seeds:
        for case in (first, *sorted(others, key=lambda case: study.cases[case] is not None)):
            before = None
            for stage in study.stages(case):
                words = ["-m", "mae_core", "train", str(path), case, str(seed), stage, "--again"]  # see Run.done
                name, run = f"{study.name} {case} seed {seed} {stage}", study.run(case, seed, stage)
                before = Run(name, words, seconds, folder, run, stage, before)
                yield before


def check_data(run: PretrainParameters | FinetuneParameters) -> None:
    """Raise MissingDataError if a run would have to download its images: a borrowed machine may have no network."""
    folder = Path(run.data_dir) / folder_of(run.dataset, run.image_size)
    if run.dataset.startswith("cifar") and not folder.is_dir():
        raise MissingDataError(
            f"{folder}/ is missing, and make gpu downloads nothing: put the folder {folder.name}/ into {run.data_dir}/, or "
            f"make {run.data_dir} a link to the folder that holds it"
        )


def work(parts: list[Part], folder: Path, title: str, seconds: float) -> int:
    """Carry out the parts that are not done yet, in order, as far as the time allows.

    Args:
        folder: for parts.json with an entry a part, log.txt with all that the parts print, and the table.
        title: name of the table's file.
        seconds: for all parts together.

    Returns:
        The exit code: 1 if a part failed or its tests were cut short, else 0.
    """
    end, rows, path = time.monotonic() + seconds, {}, folder / "parts.json"
    for part in parts:
        began = time.monotonic()
        state, result = "done before", part.done()
        if result is None:
            state, result = "waits", part.obstacle(end - began)
        if result is None:
            limit = min(part.limit, end - began)
            print(f"== {part.name}: at most {limit:.0f} s{part.notice()}", flush=True)
            state, result = attempt(part, limit, folder / "log.txt")
        rows[part.name] = {"state": state, "result": result, "seconds": round(time.monotonic() - began, 1)}
        if state not in ("done before", "waits"):
            results.write_json(path, read(path) | {part.name: rows[part.name] | {"code": code_sha256()}})
        with results.atomic_write(folder / f"{title}.md") as temporary:
            temporary.write_text(table(rows), encoding="utf-8")
        print(f"{part.name}: {state}: {result}", flush=True)
    print(f"\n{table(rows)}\nThe results are in {folder}.")
    states = {row["state"] for row in rows.values()}
    if states & {"unfinished", "waits"}:
        print("Some work is left: give the same command again to continue.")
    return int(bool(states & {"failed", "cut short"}))


def attempt(part: Part, limit: float, log: Path) -> tuple[str, str]:
    """Carry out a part within a limit of seconds; return its state and its result."""
    code, printed = carry_out(part.words, limit, log)
    if code == 0:
        return "done", part.done() or last_lines(printed)
    if code is not None:
        return "failed", last_lines(printed)
    if told := passed(printed):
        return "cut short", told
    progress = part.progress()
    return ("unfinished", progress) if progress else ("failed", f"its {limit:.0f} s ran out: {last_lines(printed)}")


def carry_out(words: list[str], limit: float, log: Path) -> tuple[int | None, str]:
    """Run Python; at a time limit or at Ctrl-C, end it and what it started, by SIGTERM first and then by SIGKILL.

    Args:
        words: Python's arguments.
        limit: seconds.
        log: a file to which its output is added.

    Returns:
        Its exit code, or None if the limit ended it; and its output.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "10", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    grace = min(GRACE, limit / 10)
    with open(log, "ab") as output:
        output.write(f"\n== {' '.join(words)}\n".encode())
        output.flush()
        start = output.tell()
        child = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | more, start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(limit - grace)
        finally:
            try:
                if (code := child.poll()) is None:
                    os.killpg(child.pid, signal.SIGTERM)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        code = 0 if child.wait(grace) == 0 else None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    with open(log, "rb") as output:
        output.seek(start)
        return code, output.read().decode("utf-8", errors="replace")


def end_with_parent() -> None:
    """Let this process be killed when its parent ends, however that ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def passed(printed: str) -> str | None:
    """How many tests had passed when the time ran out; None if one had failed, or if these were no tests."""
    states = re.findall(r"::.* (PASSED|FAILED|ERROR) +\[", printed)
    return f"tests passed: {len(states)}; none failed, and the time ran out" if set(states) == {"PASSED"} else None


def last_lines(printed: str) -> str:
    """What to tell of an output: the tests that failed, and the last line."""
    lines = list(filter(None, (line.strip(" =") for line in printed.replace("\r", "\n").splitlines())))
    failed = [line for line in lines[:-1] if line.startswith(("FAILED ", "ERROR "))]  # pytest's summary
    failed = failed or [line for line in lines[:-1] if re.search(r"::.* (FAILED|ERROR) +\[", line)]  # it never came
    return "; ".join([*failed, *lines[-1:]])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A Markdown table that reads well as plain text; the seconds are those of this call."""
    cells = [["part", "state", "result", "seconds"]]
    cells += [[name, row["state"], row["result"].replace("|", "/"), f"{row['seconds']:.1f}"] for name, row in rows.items()]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    cells.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in cells)


def read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none."""
    return results.read_json(path) if path.is_file() else {}


def has_weights(folder: Path) -> bool:
    """Whether a folder has the weights of its results: a checkout has results of published runs, but no weights."""
    with contextlib.suppress(OSError, SafetensorError):
        return tensors_sha256(folder / results.FULL) == read(folder / "provenance.json").get("weights_sha256")
    return False


@functools.cache
def code_sha256() -> str:
    """SHA-256 of torch's version and of the code that the tests and the race run."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(path for room in ("mae_core", "benchmarks", "tests") for path in (ROOT / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
