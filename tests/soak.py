"""Inject faults for ten minutes, then start many notebooks: ``make soak`` or ``python tests/soak.py --minutes 10``.

Pre-train one run after another. Kill it at random times, start it twice at once, fill its disk, damage its newest
checkpoint, or take the file locks away; its final weights and curves must be bit for bit those of an undisturbed run.
Between these runs, kill the Snakemake of a whole study and recover the study; kill or stop one of two processes that train
together, or the process that started them. At the end, start 500 notebooks, 16 at
once (``--starts 0`` leaves this out). The last lines count the faults and list what was lost.
"""

import argparse
import collections
import errno
import fcntl
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from checkout import Checkout
from starts import failed_starts

from mae_core.data.images import load
from mae_core.errors import BusyError, OutputError
from mae_core.study.parameters import PretrainParameters
from mae_core.study.tensors import load_tensors
from mae_core.training.runs import pretrain

BUSY, FULL = 5, 7  # exit codes of the children
AT_ONCE = 16  # starts of notebooks
VALUES = {
    "width": 32, "depth": 2, "decoder_width": 32, "train_images": 1024, "epochs": 6, "threads": 1,
    "augment": "crop-flip", "checkpoint_seconds": 0.0,
}  # fmt: skip
STUDY = {
    "study": "soak", "seeds": [0], "shared": {"train_images": 512, "threads": 1, "width": 24, "decoder_width": 24},
    "pretrain": {"epochs": 2, "checkpoint_seconds": 0.0}, "finetune": {"epochs": 1},
    "cases": {"random-75": {}, "scratch": None},
}  # fmt: skip

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["mae_core.training.runs"])


def no_locks(*_) -> None:
    """What a file system without locks answers."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def train(run: PretrainParameters, folder: Path, limit: int, locks: bool) -> None:
    """Train in a child process; with a ``limit`` in bytes, no file may grow beyond it, as on a full disk."""
    if not locks:
        fcntl.flock = no_locks
    os.chdir(folder)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        pretrain(run)
    except BusyError:
        os._exit(BUSY)
    except OutputError:
        os._exit(FULL)


def start(run: PretrainParameters, folder: Path, limit: int = 0, locks: bool = True) -> multiprocessing.Process:
    child = processes.Process(target=train, args=(run, folder, limit, locks))
    child.start()
    return child


def outcome(folder: Path, run: PretrainParameters) -> str:
    """A checksum of the run's weights and curves."""
    tensors, _ = load_tensors(folder / run.folder / "pretrain" / "weights.safetensors")
    content = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(content + (folder / run.folder / "pretrain" / "history.json").read_bytes()).hexdigest()


class Soak:
    """Injects faults, counts them, and records what was lost."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.chance = folder, random.Random(seed)
        self.injected, self.lost, self.runs = collections.Counter(), [], 0
        (folder / "data").mkdir()
        load("shapes", folder / "data")
        self.whole = PretrainParameters.check({**VALUES, "case": "whole"})
        start(self.whole, folder).join()
        self.expected = outcome(folder, self.whole)
        together = PretrainParameters.check({**VALUES, "case": "together", "processes": 2})
        start(together, folder).join()
        self.expected_together = outcome(folder, together)

    def one_run(self) -> None:
        """Disturb a run several times, let it finish, and compare."""
        self.runs += 1
        run = PretrainParameters.check({**VALUES, "case": f"run-{self.runs}"})
        folder = self.folder / run.folder / "pretrain"
        newest = folder / "checkpoint.safetensors"
        for _ in range(self.chance.randint(2, 6)):
            fault = self.chance.choice(["kill", "kill", "twice", "full disk", "damage", "no locks"])
            seen = newest.stat().st_mtime_ns if newest.exists() else 0
            child = start(run, self.folder, limit=20000 if fault == "full disk" else 0, locks=fault != "no locks")
            while (
                child.is_alive() and fault != "full disk" and (newest.stat().st_mtime_ns if newest.exists() else 0) == seen
            ):
                time.sleep(0.005)
            if fault == "twice":
                second = start(run, self.folder)
                second.join()
                self.expect(second.exitcode == BUSY, f"a second start exited with {second.exitcode}")
            if fault == "full disk":
                child.join()
                self.expect(child.exitcode == FULL, f"a run on a full disk exited with {child.exitcode}")
            else:
                time.sleep(self.chance.uniform(0, 0.2))
                child.kill()
                child.join()
                fault = fault if child.exitcode == -signal.SIGKILL else "end"
            if fault == "damage" and newest.exists():
                content = bytearray(newest.read_bytes())
                content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
                newest.write_bytes(content[: self.chance.choice([len(content), len(content) // 2])])
            if fault == "end":
                break
            self.injected[fault] += 1
        child = start(run, self.folder)
        child.join()
        self.expect(child.exitcode == 0, f"run {self.runs} exited with {child.exitcode}")
        self.expect(
            child.exitcode == 0 and outcome(self.folder, run) == self.expected, f"run {self.runs} has different weights"
        )
        shutil.rmtree(self.folder / run.folder.parent, ignore_errors=True)

    def one_study(self) -> None:
        """Start a study twice, kill its Snakemake, recover it, and let it finish."""
        place = self.folder / "study"
        shutil.rmtree(place, ignore_errors=True)
        checkout = Checkout(place, self.folder / "data", STUDY)
        words, where = checkout.command()
        quiet = where | {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        recover = [sys.executable, "-m", "mae_core", "recover", "params/soak.yaml"]
        first = subprocess.Popen(words, **quiet)
        while first.poll() is None and not list((place / ".snakemake" / "locks").glob("*")):
            time.sleep(0.05)
        time.sleep(self.chance.uniform(0, 20))
        if first.poll() is None:
            second = subprocess.run(words, **quiet)
            self.expect(second.returncode != 0, "two studies ran at once")
            self.injected["second study"] += 1
            self.expect(subprocess.run(recover, **quiet).returncode != 0, "recover did not refuse a running study")
            first.kill()
            first.wait()
            self.injected["Snakemake killed"] += 1
        self.expect(subprocess.run(recover, **quiet).returncode == 0, "a study could not be recovered")
        self.expect(subprocess.run(words, **quiet).returncode == 0, "a recovered study did not finish")
        self.expect((place / "report" / "soak" / "report.pdf").exists(), "a recovered study has no report")

    def many_starts(self, total: int) -> None:
        """Start many notebooks at once, as Snakemake does on a large machine."""
        failed = failed_starts(self.folder, total, AT_ONCE)
        self.injected["start of a notebook"] += total
        self.expect(not failed, f"{len(failed)} of {total} notebooks did not start: {failed[:1]}")

    def one_team(self) -> None:
        """Kill or stop one of two processes that train a run together, or the process that started them, and go on."""
        run = PretrainParameters.check({**VALUES, "case": "team", "processes": 2})
        newest = self.folder / run.folder / "pretrain" / "checkpoint.safetensors"
        for fault in ("member killed", "member hangs", "starter killed"):
            seen, child = newest.stat().st_mtime_ns if newest.exists() else 0, start(run, self.folder)
            while child.is_alive() and (newest.stat().st_mtime_ns if newest.exists() else 0) == seen:
                time.sleep(0.005)
            members = psutil.Process(child.pid).children()
            if fault == "starter killed":
                child.kill()
            else:
                victim = self.chance.choice(members)
                victim.kill() if fault == "member killed" else victim.suspend()
            self.injected[fault] += 1
            child.join(60)
            left = psutil.wait_procs(members, timeout=60)[1]
            self.expect(not child.is_alive() and not left, f"{fault}: {len(left)} processes went on for a minute")
        child = start(run, self.folder)
        child.join()
        self.expect(child.exitcode == 0, f"a run of two processes exited with {child.exitcode}")
        same = child.exitcode == 0 and outcome(self.folder, run) == self.expected_together
        self.expect(same, "a run of two processes has different weights")
        shutil.rmtree(self.folder / run.folder.parent, ignore_errors=True)

    def expect(self, held: bool, otherwise: str) -> None:
        if not held:
            self.lost.append(otherwise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--starts", type=int, default=500, help="notebooks to start, 16 at once")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    end = time.monotonic() + 60 * words.minutes
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), words.seed)
        while time.monotonic() < end:
            soak.one_study()
            for _ in range(4):
                if time.monotonic() < end:
                    soak.one_run()
            soak.one_team()
        soak.many_starts(words.starts)
    told = ", ".join(f"{name} {count}" for name, count in sorted(soak.injected.items()))
    print(f"{soak.injected.total()} faults in {words.minutes:g} minutes and {soak.runs} runs: {told}")
    print("lost: nothing" if not soak.lost else "LOST: " + "; ".join(soak.lost))
    raise SystemExit(bool(soak.lost))


if __name__ == "__main__":
    main()
