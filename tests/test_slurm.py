"""A study on a real SLURM of one node with two pretend GPUs: ``pytest -m slurm``."""

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from checkout import STUDY, Checkout

from mae_core.study.tensors import load_tensors

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[1]
ONE_NODE = Path(os.environ.get("MAE_SLURM_SCRIPT", ROOT.parent / "shared" / "slurm" / "one-node.sh"))
SMALL = ["--default-resources", "slurm_partition=gpu", "mem_mb=1500"]  # for a small node
QUICK = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--latency-wait", "5"]
NO_ACCOUNTING = ["--slurm-status-command", "squeue", "--slurm-no-account"]
SPY = """
import atexit, os, sys, time

def note():
    if "mae_core.training.runs" in sys.modules:
        with open(os.environ["SPY"], "a", encoding="utf-8") as file:
            print(began, time.time(), os.environ["CUDA_VISIBLE_DEVICES"], file=file)

began = time.time()
atexit.register(note)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which ``sbatch`` and ``snakemake --executor slurm`` reach the cluster."""
    if os.getuid():
        pytest.skip("needs root, to start SLURM")
    if any(shutil.which(name) is None for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip("SLURM is not installed: apt-get install slurm-wlm munge")
    if find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("Snakemake's plugin for SLURM is not installed: pip install -e '.[slurm]'")
    if not ONE_NODE.exists():
        pytest.skip("nothing starts a SLURM of one node: set MAE_SLURM_SCRIPT to a script that does (CONTRIBUTING.md)")
    folder = tmp_path_factory.mktemp("slurm")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}  # nproc obeys them
    subprocess.run(["bash", ONE_NODE, "start", folder], check=True, env=environment)
    conf = folder / "slurm.conf"
    srun = folder / "bin" / "srun"  # the plugin takes SLURM_CONF from the environment of its job steps
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n', encoding="utf-8")
    srun.chmod(0o755)
    yield {"SLURM_CONF": str(conf), "PATH": f"{srun.parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"SLURM_CONF": str(conf)}
    subprocess.run(["scancel", "--partition=gpu"], env=environment, check=True)  # what a failed test left
    wait_for(lambda: not subprocess.run(["squeue", "-h"], env=environment, capture_output=True).stdout, 60)
    subprocess.run(["bash", ONE_NODE, "stop", folder], check=True)


class Submitted:
    """A checkout whose Snakemake submits to the cluster with the project's own profile."""

    def __init__(self, folder, slurm, shapes_dir, study):
        self.checkout, self.folder, self.seen = Checkout(folder, shapes_dir, study), folder, folder / "seen"
        shutil.copytree(ROOT / "profiles", folder / "profiles")
        (folder / "spy").mkdir()
        (folder / "spy" / "sitecustomize.py").write_text(SPY, encoding="utf-8")
        added = [folder, folder / "spy", *os.environ.get("PYTHONPATH", "").split(os.pathsep)[1:]]
        bin_dir = Path(sys.executable).parent
        self.env = {**os.environ, **slurm, "SPY": str(self.seen), "PYTHONPATH": os.pathsep.join(map(str, added))}
        self.env["PATH"] = f"{slurm['PATH'].split(os.pathsep)[0]}{os.pathsep}{bin_dir}{os.pathsep}{slurm['PATH']}"

    def start(self, *words, runtime, signal="TERM@60"):
        limits = [f"runtime={runtime}", f"slurm_extra='--signal={signal}'"]
        options = ["--workflow-profile", "profiles/slurm", *NO_ACCOUNTING, *QUICK, *SMALL, *limits]
        command = [sys.executable, "-m", "snakemake", *words, *options, "--configfile", "params/tiny.yaml"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        return subprocess.Popen(command, cwd=self.folder, env=self.env, **pipes)

    def jobs(self):
        """The running jobs: ``{case: job}``."""
        told = subprocess.run(
            ["squeue", "-h", "-t", "R", "-o", "%i %k"], env=self.env, capture_output=True, encoding="utf-8"
        )
        lines = [line.split() for line in told.stdout.splitlines()]
        return {comment.split("_wildcards_")[-1].rpartition("_")[0]: job for job, comment in lines}

    def told(self, case):
        path = self.folder / f"outputs/tiny/{case}/seed0/pretrain/log.txt"
        return path.read_text(encoding="utf-8") if path.exists() else ""


def wait_for(what, seconds):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_study_runs_to_its_report_side_by_side_on_two_gpus(slurm, tmp_path, few_shapes_dir):
    cases = {"random-75": {}, "block-50": {"mask_strategy": "block", "mask_ratio": 0.5}}
    there = Submitted(tmp_path / "project", slurm, few_shapes_dir, STUDY | {"cases": cases})
    process = there.start(runtime=10)
    told = process.communicate(timeout=900)[0]
    assert process.returncode == 0, told[-3000:]
    assert (there.folder / "report" / "tiny" / "report.pdf").exists()
    seen = [line.split() for line in there.seen.read_text(encoding="utf-8").splitlines()]
    assert len(seen) == 4  # two cases, two stages
    assert {gpu for *_, gpu in seen} == {"0", "1"}
    pairs = [(one, two) for one in seen for two in seen if one[2] < two[2]]
    assert any(float(one[0]) < float(two[1]) and float(two[0]) < float(one[1]) for one, two in pairs)


def test_a_cancelled_job_and_one_at_its_limit_save_a_checkpoint_from_which_the_next_submission_goes_on(
    slurm, tmp_path, few_shapes_dir
):
    study = STUDY | {"pretrain": {"epochs": 100_000, "checkpoint_seconds": 100_000.0}}  # no checkpoint but on request
    study |= {"cases": {"cancelled": {"mask_ratio": 0.7}, "limited": {"mask_ratio": 0.8}}}
    there = Submitted(tmp_path / "project", slurm, few_shapes_dir, study)
    targets = [f"outputs/tiny/{case}/seed0/pretrain/metrics.json" for case in study["cases"]]
    newest = [(there.folder / target).with_name("checkpoint.safetensors") for target in targets]

    process = there.start(*targets, runtime=3, signal="TERM@30")  # SLURM may send it up to a minute earlier
    wait_for(lambda: "step/s" in there.told("cancelled") and "cancelled" in there.jobs(), 120)
    assert not any(path.exists() for path in newest)
    subprocess.run(["scancel", there.jobs()["cancelled"]], env=there.env, check=True)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 1, told[-3000:]
    assert all(path.exists() for path in newest)
    assert all("StoppedError: stopped" in there.told(case) for case in study["cases"])
    reached = {case: load_tensors(path)[1]["epoch"] for case, path in zip(study["cases"], newest, strict=True)}

    process = there.start(*targets, runtime=10)
    wait_for(lambda: all("resumed at step" in there.told(case) for case in reached), 120)
    assert all(f"of epoch {epoch + 1}\n" in there.told(case).partition("resumed")[2] for case, epoch in reached.items())
    subprocess.run(["scancel", *there.jobs().values()], env=there.env, check=True)
    process.communicate(timeout=120)
