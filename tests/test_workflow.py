"""A whole study through Snakemake: from its file to the report, and what runs again after a change."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from mae_core.results import load_tensors

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


class Checkout:
    """A copy of the project's files, with a study of its own."""

    def __init__(self, folder, shapes_dir):
        self.folder = folder
        for name in ("mae_core", "notebooks", "report/templates", "report/fonts"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        shutil.copy(ROOT / "Snakefile", folder)
        (folder / "params").mkdir()
        (folder / "data").symlink_to(shapes_dir)

    def write(self, study):
        (self.folder / "params" / "tiny.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    def command(self, *words):
        """The words and the environment of a Snakemake on this study."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(self.folder)}
        given = ["--cores", "2", "--rerun-incomplete", *words, "--configfile", "params/tiny.yaml"]
        return [sys.executable, "-m", "snakemake", *given], {"cwd": self.folder, "env": env}

    def start(self, *words):
        """A Snakemake in the background."""
        command, where = self.command(*words)
        return subprocess.Popen(command, **where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def snakemake(self, *words, check=True):
        command, where = self.command(*words)
        done = subprocess.run(command, **where, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    def planned(self):
        """What a dry run would do: ``{rule: [its outputs' cases]}``."""
        told = self.snakemake("-n")
        jobs = re.findall(r"(?:local)?rule (\w+):\n(.*?)(?=\n\n|\n\[|\Z)", told, re.S)
        plan = {}
        for rule, about in jobs:
            case = re.search(r"wildcards: case=([\w-]+)", about)
            plan.setdefault(rule, set()).add(case[1] if case else "")
        return plan


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, shapes_dir):
    """The study, run once."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"), shapes_dir)
    checkout.write(STUDY)
    checkout.snakemake()
    return checkout


def test_one_command_makes_the_report(checkout):
    report = checkout.folder / "report" / "tiny"
    assert (report / "report.pdf").read_bytes().startswith(b"%PDF")
    page = (report / "index.html").read_text()
    assert (report / "figures" / "fig-reconstructions.png").exists()
    links = set(re.findall(r'href="(notebooks/[^"]+)"', page))
    assert len(links) == 6  # five runs and the ablations
    assert all((report / link).exists() for link in links)
    for case, stages in (("random-75", ("pretrain", "finetune")), ("scratch", ("finetune",))):
        for stage in stages:
            folder = checkout.folder / "outputs" / "tiny" / case / "seed0" / stage
            written = {path.name for path in folder.iterdir()}
            files = ("parameters", "history", "metrics", "provenance")
            assert {*(f"{name}.json" for name in files), "pictures.png", "weights.safetensors"} <= written
            assert not [name for name in written if name.startswith((".", "checkpoint"))]
    assert (checkout.folder / "outputs" / "tiny" / "results.csv").read_text().count("\n") == 4


def test_a_published_study_is_printed_without_its_notebooks_and_weights(checkout, tmp_path):
    """As in a fresh clone: results and pages are there, executed notebooks and weights are not."""
    folder = tmp_path / "clone"
    shutil.copytree(checkout.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("*.safetensors", "*.ipynb"))
    pages = {path: path.read_bytes() for path in folder.glob("report/tiny/**/*") if path.is_file()}
    report = checkout.folder / "outputs" / "tiny" / "report.ipynb"
    shutil.copy(report, folder / "outputs" / "tiny")
    words = [sys.executable, "-m", "mae_core.export", "outputs/tiny/report.ipynb", "report/tiny"]
    subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, check=True)
    assert {path: path.read_bytes() for path in pages} == pages
    (folder / "report" / "tiny" / "notebooks" / "ablations.html").unlink()
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.startswith("ExportError: outputs/tiny/ablations.ipynb")


def test_a_second_time_nothing_runs(checkout):
    assert "Nothing to be done" in checkout.snakemake("-n")


def test_a_change_of_one_case_runs_that_case_again(checkout):
    cases = STUDY["cases"] | {"block-50": {"mask_strategy": "block", "mask_ratio": 0.6}}
    checkout.write(STUDY | {"cases": cases})
    plan = checkout.planned()
    checkout.write(STUDY)
    assert plan == {
        "pretrain": {"block-50"},
        "finetune": {"block-50"},
        "ablations": {""},
        "report": {""},
        "render": {""},
        "all": {""},
    }


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("markup", {"render", "all"}),
        ("narrative", {"report", "render", "all"}),
        ("masking", {"pretrain", "finetune", "ablations", "report", "render", "all"}),
    ],
)
def test_a_change_of_the_package_runs_what_imports_it(checkout, module, rules):
    path = checkout.folder / "mae_core" / f"{module}.py"
    before = path.read_text()
    path.write_text(f"{before}\n# changed\n")
    plan = checkout.planned()
    path.write_text(before)
    assert set(plan) == rules
    assert checkout.planned() == {}


def test_a_study_that_cannot_run_stops_before_any_job(checkout):
    checkout.write(STUDY | {"pretrain": {"epocs": 1}})
    told = checkout.snakemake("-n", check=False)
    checkout.write(STUDY)
    assert "epocs is not a parameter of pretrain; did you mean epochs?" in told
    assert "Traceback" not in told


# Kills ----------------------------------------------------------------------------------------------------------------

LONG = {
    **STUDY,
    "pretrain": {"epochs": 400, "checkpoint_seconds": 0.0},
    "cases": {"random-75": {}, "scratch": None},
}


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def kernels(folder):
    """The processes of papermill and of kernels that work in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            known = "ipykernel_launcher" in words or any(Path(word).name == "papermill" for word in words[:3])
            if known and Path(process.cwd()) == folder:
                found.append(process)
    return found


def recover(checkout):
    words = [sys.executable, "-m", "mae_core.recover", "params/tiny.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.folder)}
    return subprocess.run(words, cwd=checkout.folder, env=environment, capture_output=True, text=True)


def test_after_any_kill_the_study_goes_on_and_repeats_nothing(tmp_path, shapes_dir):
    """kill -9 of a kernel, of papermill, of Snakemake: the same command goes on, after the last one with ``recover``."""
    checkout, target = Checkout(tmp_path, shapes_dir), "outputs/tiny/random-75/seed0/pretrain/metrics.json"
    checkout.write(LONG)
    checkout.snakemake("outputs/tiny/scratch/seed0/finetune/metrics.json")
    complete = tmp_path / "outputs/tiny/scratch/seed0/finetune/metrics.json"
    finished = complete.stat().st_mtime_ns
    newest = tmp_path / "outputs/tiny/random-75/seed0/pretrain/checkpoint.safetensors"

    def start_and_wait():
        """A Snakemake that has come further than the last one."""
        before = load_tensors(newest)[1]["epoch"] if newest.exists() else -1
        process = checkout.start(target, str(complete.relative_to(tmp_path)))
        wait_for(lambda: newest.exists() and load_tensors(newest)[1]["epoch"] > before)
        return process

    try:
        for victim in ("ipykernel_launcher", "papermill"):
            process = start_and_wait()
            for other in kernels(tmp_path):
                if any(victim in word for word in other.cmdline()):
                    other.kill()
            assert process.wait(60) != 0
            wait_for(lambda: not kernels(tmp_path))  # no orphan is left to write

        process = start_and_wait()
        running = recover(checkout)
        assert running.returncode != 0
        assert f"BusyError: Snakemake is running here, as process {process.pid}" in running.stderr
        assert "cannot be locked" in checkout.snakemake(target, check=False)  # a second one is told
        process.kill()
        process.wait()
        assert kernels(tmp_path)
        done = recover(checkout)
        assert done.returncode == 0, done.stderr
        assert not kernels(tmp_path)
        process = start_and_wait()
        process.kill()
        process.wait()
        assert complete.stat().st_mtime_ns == finished
    finally:
        for other in kernels(tmp_path):
            other.kill()


PAYLOAD = 'it\'s "<script>alert(1)</script>" $(touch pwned) `touch pwned`; touch pwned & <img src=x onerror=alert(1)>'


def test_a_hostile_study_runs_nothing_and_writes_nothing_elsewhere(tmp_path, shapes_dir):
    """Every string of a study that is not a name or a choice: it goes through YAML, the shell, papermill and the pages."""
    checkout = Checkout(tmp_path / "project", shapes_dir)
    (checkout.folder / "own").mkdir()
    hostile = {"dataset": "shapes", "data_dir": f"own/{PAYLOAD.replace('/', ' ')}"}
    (checkout.folder / hostile["data_dir"]).symlink_to(shapes_dir)
    checkout.write(STUDY | {"cases": {"scratch": None}, "shared": STUDY["shared"] | hostile})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    checkout.snakemake()
    written = {path.relative_to(checkout.folder) for path in tmp_path.rglob("*") if path.is_file()} - {
        path.relative_to(checkout.folder) for path in before
    }
    assert not list(tmp_path.rglob("pwned"))
    own = {path for path in written if path.suffix != ".pyc" and path.parts[0] != ".snakemake"}
    assert {path.parts[:2] for path in own} == {("outputs", "tiny"), ("report", "tiny")}
    for page in (checkout.folder / "report" / "tiny").rglob("*.html"):
        assert "<script" not in page.read_text()
        assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", page.read_text())
