"""The project's checkout, and a copy of it with its own small study, for tests of whole studies."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mae_core.study import checkout

ROOT = Path(__file__).parents[1]
STUDY = {
    "study": "tiny",
    "seeds": [0],
    "shared": {
        "dataset": "shapes", "train_images": 256, "threads": 1, "width": 24, "depth": 1, "decoder_width": 24,
    },
    "pretrain": {"epochs": 1},
    "finetune": {"epochs": 1},
    "cases": {"random-75": {}, "block-50": {"mask_strategy": "block", "mask_ratio": 0.5}, "scratch": None},
}  # fmt: skip

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def tracked(*names):
    """The files in these folders, or with these names, that git tracks; where it cannot tell, all of them but caches."""
    try:
        found = checkout.git("ls-files", "-z", "--", *names).split("\0")
    except (OSError, subprocess.CalledProcessError):
        found = []
    if any(found):
        return [Path(name) for name in found if (ROOT / name).is_file()]
    paths = [path for name in names for path in (ROOT / name, *(ROOT / name).rglob("*")) if path.is_file()]
    return [path.relative_to(ROOT) for path in paths if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)]


def published():
    """The studies whose reports are published: those that .gitignore excepts."""
    return re.findall(r"^!report/([\w-]+)/$", (ROOT / ".gitignore").read_text(encoding="utf-8"), re.MULTILINE)


def git(folder, *words):
    """What git prints about a folder; a test that asks where there is no git is skipped."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    names = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *names, *words], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


class Checkout:
    """A copy of the project's files with its own study."""

    def __init__(self, folder, shapes_dir, study):
        self.folder, self.name = folder, study["study"]
        for name in ("mae_core", "notebooks"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        shutil.copy(ROOT / "Snakefile", folder)
        (folder / "params").mkdir(parents=True)
        (folder / "data").symlink_to(shapes_dir)
        self.write(study)

    def write(self, study):
        (self.folder / "params" / f"{self.name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")

    def command(self, *words):
        """The command and the environment that run Snakemake on this study."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(self.folder)}
        given = ["--cores", "2", "--ignore-incomplete", *words, "--configfile", f"params/{self.name}.yaml"]
        return [sys.executable, "-m", "snakemake", *given], {"cwd": self.folder, "env": env}

    def start(self, *words):
        """Start Snakemake in the background."""
        command, where = self.command(*words)
        return subprocess.Popen(command, **where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def snakemake(self, *words, check=True):
        command, where = self.command(*words)
        done = subprocess.run(command, **where, capture_output=True, encoding="utf-8")
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    def planned(self, *words):
        """The jobs of a dry run: ``{rule: {cases of its outputs}}``."""
        told = self.snakemake("-n", *words)
        jobs = re.findall(r"(?:local)?rule (\w+):\n(.*?)(?=\n\n|\n\[|\Z)", told, re.S)
        plan = {}
        for rule, about in jobs:
            case = re.search(r"wildcards: case=([\w-]+)", about)
            plan.setdefault(rule, set()).add(case[1] if case else "")
        return plan
