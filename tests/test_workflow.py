"""A whole study with Snakemake: from its file to the report, and what runs again after a change."""

import base64
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from checkout import STUDY, Checkout, git

ROOT = Path(__file__).parents[1]


PAYLOAD = 'it\'s "<script>alert(1)</script>" $(touch pwned) `touch pwned`; touch pwned & <img src=x onerror=alert(1)>'
SHARED = STUDY["shared"] | {"data_dir": f"own/{PAYLOAD}"}  # a study's only free-form string
STUDY = STUDY | {"shared": SHARED, "beside": ["other"]}  # a study that is not there


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, few_shapes_dir):
    """The study, run once. Its hostile string passes through YAML, the shell, papermill and the pages."""
    checkout = Checkout(tmp_path_factory.mktemp("around") / "project", few_shapes_dir, STUDY)
    data = checkout.folder / SHARED["data_dir"]
    data.parent.mkdir(parents=True)
    data.symlink_to(few_shapes_dir)
    checkout.before = files_around(checkout)
    checkout.snakemake()
    return checkout


def files_around(checkout):
    """All files in and beside the project's folder, except internal files of Python and Snakemake."""
    paths = {path.relative_to(checkout.folder.parent) for path in checkout.folder.parent.rglob("*") if path.is_file()}
    return {path for path in paths if path.suffix != ".pyc" and ".snakemake" not in path.parts}


def test_a_hostile_study_runs_nothing_and_writes_nothing_elsewhere(checkout):
    written = files_around(checkout) - checkout.before
    assert {path.parts[:3] for path in written} == {("project", "outputs", "tiny"), ("project", "report", "tiny")}
    assert not [path for path in written if path.name == "pwned"]
    pages = list((checkout.folder / "report" / "tiny").rglob("*.html"))
    assert pages
    for page in pages:
        assert "<script" not in page.read_text(encoding="utf-8")
        assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", page.read_text(encoding="utf-8"))


def test_one_command_makes_the_report(checkout):
    report = checkout.folder / "report" / "tiny"
    assert (report / "report.pdf").read_bytes().startswith(b"%PDF")
    page = (report / "index.html").read_text(encoding="utf-8")
    assert (report / "figures" / "fig-reconstructions.png").exists()
    links = set(re.findall(r'href="(notebooks/[^"]+)"', page))
    assert len(links) == 7  # five runs, the ablations and the report itself
    assert all((report / link).exists() for link in links)
    for case, stages in (("random-75", ("pretrain", "finetune")), ("scratch", ("finetune",))):
        for stage in stages:
            folder = checkout.folder / "outputs" / "tiny" / case / "seed0" / stage
            written = {path.name for path in folder.iterdir()}
            files = ("parameters", "history", "metrics", "provenance")
            assert {*(f"{name}.json" for name in files), "pictures.png", "weights.safetensors"} <= written
            assert not [name for name in written if name.startswith((".", "checkpoint"))]
    assert (checkout.folder / "outputs" / "tiny" / "results.csv").read_text(encoding="utf-8").count("\n") == 4


def test_a_published_study_is_printed_without_its_notebooks_and_weights(checkout, tmp_path):
    """As in a fresh clone, results and pages exist, but executed notebooks and weights do not."""
    folder = tmp_path / "clone"
    shutil.copytree(checkout.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("*.safetensors", "*.ipynb"))
    pages = {path: path.read_bytes() for path in folder.glob("report/tiny/**/*") if path.is_file()}
    report = checkout.folder / "outputs" / "tiny" / "report.ipynb"
    shutil.copy(report, folder / "outputs" / "tiny")
    words = [sys.executable, "-m", "mae_core", "render", "outputs/tiny/report.ipynb", "report/tiny"]
    subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, check=True)
    assert {path: path.read_bytes() for path in pages} == pages
    page = folder / "report" / "tiny" / "notebooks" / "block-50-seed0-finetune.html"
    page.unlink()  # as of a run of `mae-core train`, which has no notebook
    subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, check=True)
    index = folder / "report" / "tiny" / "index.html"
    assert f'<a href="notebooks/{page.name}">block-50/seed0/finetune</a>' in index.read_text(encoding="utf-8")
    assert "this page was made from the files that the run saved" in page.read_text(encoding="utf-8")
    assert index.read_bytes() == pages[index]
    (folder / "report" / "tiny" / "notebooks" / "ablations.html").unlink()
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, encoding="utf-8"
    )
    assert done.returncode != 0
    assert done.stderr.startswith("ExportError: outputs/tiny/ablations.ipynb")


def test_everything_may_be_in_folders_with_spaces(checkout, tmp_path, monkeypatch):
    place = tmp_path / "My Thesis"
    place.mkdir()
    (place / "venv").symlink_to(sys.prefix)
    monkeypatch.setattr(sys, "executable", str(place / "venv" / "bin" / "python"))
    copied = copy.copy(checkout)
    copied.folder = place / "project"
    shutil.copytree(checkout.folder, copied.folder, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    for name in ("outputs/tiny/results.csv", "outputs/tiny/scratch/seed0/finetune/metrics.json", "report/tiny/report.pdf"):
        (copied.folder / name).unlink()
    copied.snakemake()
    assert (copied.folder / "report" / "tiny" / "report.pdf").exists()
    for name in ("outputs/tiny/results.csv", "outputs/tiny/scratch/seed0/finetune/weights.safetensors"):
        assert (copied.folder / name).exists()


def test_a_second_time_nothing_runs(checkout):
    assert "Nothing to be done" in checkout.snakemake("-n")


def test_a_run_that_failed_when_it_was_repeated_is_repeated(checkout):
    """Before it repeats a run, Snakemake deletes its results; those of its fine-tuning are still there."""
    results = checkout.folder / "outputs" / "tiny" / "random-75" / "seed0" / "pretrain" / "metrics.json"
    results.rename(checkout.folder / "deleted")
    plan = checkout.planned()
    (checkout.folder / "deleted").rename(results)
    assert (plan["pretrain"], plan["finetune"]) == ({"random-75"}, {"random-75"})
    assert "Nothing to be done" in checkout.snakemake("-n")


def test_results_that_were_finished_after_a_kill_are_not_trained_again(checkout):
    """Snakemake has marked the outputs of a job that it did not see to its end."""
    output = "outputs/tiny/random-75/seed0/pretrain/metrics.json"
    mark = checkout.folder / ".snakemake" / "incomplete" / base64.urlsafe_b64encode(output.encode()).decode()
    mark.parent.mkdir(exist_ok=True)
    mark.write_text("{}", encoding="utf-8")
    try:
        assert "Nothing to be done" in checkout.snakemake("-n")
        words, where = checkout.command("-n")
        words[words.index("--ignore-incomplete")] = "--rerun-incomplete"
        assert "pretrain" in subprocess.run(words, **where, capture_output=True, encoding="utf-8").stdout
    finally:
        mark.unlink()


def test_an_error_after_the_training_costs_no_training(checkout, tmp_path):
    shutil.copytree(checkout.folder, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    checkout = copy.copy(checkout)
    checkout.folder = tmp_path / "copy"
    run, path = checkout.folder / "outputs" / "tiny" / "random-75" / "seed0" / "pretrain", "notebooks/pretrain.ipynb"
    shutil.rmtree(run)
    whole = (checkout.folder / path).read_text(encoding="utf-8")
    notebook = nbformat.reads(whole, 4)
    notebook.cells.append(nbformat.v4.new_code_cell("1 / 0"))
    nbformat.write(notebook, checkout.folder / path)
    words = ("--until", "pretrain", "--rerun-triggers", "mtime")
    assert "ZeroDivisionError" in checkout.snakemake(*words, check=False)
    assert (run / "checkpoint.safetensors").exists()
    assert not (run / "metrics.json").exists()
    (checkout.folder / path).write_text(whole, encoding="utf-8")
    checkout.snakemake(*words)
    assert "training was complete" in (run / "log.txt").read_text(encoding="utf-8")
    assert not list(run.glob("checkpoint*"))


@pytest.mark.parametrize("remembers", [True, False])
def test_a_change_of_one_case_runs_that_case_again(checkout, tmp_path, remembers):
    """Also where Snakemake knows nothing of the runs, as in a clone with published results."""
    if not remembers:
        shutil.copytree(checkout.folder, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
        checkout = copy.copy(checkout)
        checkout.folder = tmp_path / "copy"
    cases = STUDY["cases"] | {"block-50": {"mask_strategy": "block", "mask_ratio": 0.6}}
    checkout.write(STUDY | {"cases": cases})
    told, plan = checkout.snakemake("-n"), checkout.planned()
    checkout.write(STUDY)
    assert "block-50/seed0/pretrain is out of date: its mask_ratio was 0.5, and the study asks for 0.6" in told
    assert not {"pretrain", "finetune"} & set(checkout.planned())
    assert plan == {
        "pretrain": {"block-50"},
        "finetune": {"block-50"},
        "table": {""},
        "ablations": {""},
        "report": {""},
        "render": {""},
        "all": {""},
    }


DENIED = """
import os
utime = os.utime
def only_own(path, *words, **more):
    if str(path).endswith("metrics.json"):
        raise PermissionError(1, "Operation not permitted", str(path))
    utime(path, *words, **more)
os.utime = only_own
"""


def test_results_of_another_user_are_told_in_one_sentence(checkout):
    """Only a file's owner may date it."""
    deny = checkout.folder / "sitecustomize.py"  # which Python imports when it starts
    deny.write_text(DENIED, encoding="utf-8")
    checkout.write(STUDY | {"cases": STUDY["cases"] | {"block-50": {"mask_strategy": "block", "mask_ratio": 0.6}}})
    told = checkout.snakemake("-n", check=False)
    checkout.write(STUDY)
    deny.unlink()
    assert "block-50/seed0/pretrain/metrics.json is another user's, and cannot be dated: run this in a clone" in told
    assert "Traceback" not in told


def test_a_change_of_how_to_compute_runs_nothing_again(checkout):
    """Nor does a data set of torchvision that is elsewhere."""
    checkout.write(STUDY | {"shared": SHARED | {"threads": 7, "checkpoint_seconds": 9, "data_dir": "data"}})
    plan = checkout.planned()
    checkout.write(STUDY)
    assert plan == {}


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("report/markup", {"render", "all"}),
        ("report/figures", {"ablations", "report", "render", "all"}),
        ("training/live", set()),  # draws the curve beside a training
        ("report/text/words", {"ablations", "report", "render", "all"}),
        ("model/masking", {"pretrain", "finetune", "table", "ablations", "report", "render", "all"}),
    ],
)
def test_a_change_of_the_package_runs_what_imports_it(checkout, module, rules):
    path = checkout.folder / "mae_core" / f"{module}.py"
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n# changed\n", encoding="utf-8")
    plan = checkout.planned()
    path.write_text(before, encoding="utf-8")
    assert set(plan) == rules
    assert checkout.planned() == {}


def test_after_a_pull_committed_results_are_printed_as_they_are(checkout, tmp_path):
    """A clone that knows nothing of the runs gets newer code: only results that differ from the commit are made again."""
    folder = tmp_path / "clone"
    shutil.copytree(checkout.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("*.safetensors", ".snakemake"))
    clone = copy.copy(checkout)
    clone.folder = folder
    (folder / ".gitignore").write_text("__pycache__/\n.snakemake/\n*.ipynb\n.compared\n.reported\n", encoding="utf-8")
    for words in ("init --quiet", "add .", "commit --quiet --message published"):
        git(folder, *words.split())
    os.utime(folder / "mae_core" / "model" / "masking.py")
    assert not {"pretrain", "finetune"} & set(clone.planned())
    assert clone.planned("--forceall")["finetune"] == {"random-75", "block-50", "scratch"}
    changed = folder / "outputs" / "tiny" / "scratch" / "seed0" / "finetune" / "metrics.json"
    changed.write_text(changed.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    future = time.time() + 60
    os.utime(folder / "mae_core" / "model" / "masking.py", (future, future))
    plan = clone.planned()
    assert plan["finetune"] == {"scratch"}
    assert "pretrain" not in plan


def test_a_notebook_that_was_only_run_or_saved_runs_nothing_again(checkout):
    path = checkout.folder / "notebooks" / "pretrain.ipynb"
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs, code.execution_count = [nbformat.v4.new_output("stream", text="printed")], 1
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    saved = checkout.planned()
    code.source += "\nprint(1)"
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    edited = checkout.planned()
    path.write_text(before, encoding="utf-8")
    assert saved == {}
    assert edited["pretrain"] == {"random-75", "block-50"}


def test_a_change_of_printed_text_or_of_the_figures_style_prints_again_and_trains_nothing(checkout):
    path = checkout.folder / "notebooks" / "report.ipynb"
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    next(cell for cell in notebook.cells if cell.cell_type == "markdown").source += "\n\nMore."
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    edited = checkout.planned()
    path.write_text(before, encoding="utf-8")
    assert set(edited) == {"report", "render", "all"}
    style = checkout.folder / "mae_core" / "report" / "templates" / "mae" / "figures.mplstyle"
    before = style.read_text(encoding="utf-8")
    style.write_text(before + "# changed\n", encoding="utf-8")
    restyled = checkout.planned()
    style.write_text(before, encoding="utf-8")
    assert set(restyled) == {"ablations", "report", "render", "all"}
    assert checkout.planned() == {}


def test_sweep_and_more_seeds_run_on_request_only(checkout):
    checkout.write(STUDY | {"sweep": {"random-50": {"mask_ratio": 0.5}}, "more_seeds": [1]})
    usual, sweep, seeds = checkout.planned(), checkout.planned("sweep"), checkout.planned("seeds")
    checkout.write(STUDY)
    assert set(usual) == {"table", "ablations", "report", "render", "all"}  # they show the runs that exist
    assert sweep == {"pretrain": {"random-50"}, "finetune": {"random-50"}, "sweep": {""}}
    assert seeds["pretrain"] == {"random-75", "block-50"}
    assert seeds["finetune"] == {"random-75", "block-50", "scratch"}
    assert "No rule to produce sweep" in checkout.snakemake("sweep", "-n", check=False)  # a study without one


def test_lengths_run_on_request_only_and_with_their_own_seeds(checkout):
    lengths = {"random-75-2epochs": {"epochs": 2}}
    checkout.write(STUDY | {"lengths": lengths, "more_seeds": [1, 2], "sweep_seeds": [0, 1]})
    usual, lengths = checkout.planned(), checkout.snakemake("lengths", "-n")
    checkout.write(STUDY)
    assert set(usual) == {"table", "ablations", "report", "render", "all"}
    planned = re.findall(r"wildcards: case=([\w-]+), seed=(\d)", lengths)
    assert set(planned) == {("random-75-2epochs", "0"), ("random-75-2epochs", "1")}
    assert "No rule to produce lengths" in checkout.snakemake("lengths", "-n", check=False)  # a study without them


def test_the_report_follows_the_results_of_the_study_beside_it(checkout):
    other = checkout.folder / "outputs" / "other"
    folder = other / "random-75" / "seed0" / "finetune"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}", encoding="utf-8")
    plan = checkout.planned()
    shutil.rmtree(other)
    assert set(plan) == {"table", "ablations", "report", "render", "all"}
    assert checkout.planned() == {}


def test_a_missing_data_set_stops_before_any_job_but_not_where_nothing_trains(checkout, tmp_path, monkeypatch):
    """As in a fresh clone on a machine without a network: results are there, the data are not."""
    copied = copy.copy(checkout)
    copied.folder = tmp_path / "clone"
    shutil.copytree(checkout.folder, copied.folder, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    place = {"dataset": "cifar10", "data_dir": "missing"}
    copied.write(STUDY | {"shared": SHARED | place})
    results = copied.folder / "outputs" / "tiny"
    for path in results.glob("*/seed0/*/parameters.json"):
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | place), encoding="utf-8")
    now = time.time()
    for path in results.rglob("*"):  # newer than the modules that other tests have changed, and changed back
        os.utime(path, (now, now))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (results / "results.csv").unlink()
    copied.snakemake("outputs/tiny/results.csv")
    assert (results / "results.csv").exists()
    assert not (copied.folder / "missing").exists()
    (results / "scratch" / "seed0" / "finetune" / "metrics.json").unlink()
    told = copied.snakemake("train", check=False)
    assert told.count("CIFAR-10 is not in data_dir (missing) and could not be downloaded") == 1
    assert "rule finetune" not in told
    assert "Traceback" not in told


def test_a_study_that_cannot_run_stops_before_any_job(checkout):
    checkout.write(STUDY | {"pretrain": {"epocs": 1}})
    told = checkout.snakemake("-n", check=False)
    checkout.write(STUDY)
    assert "epocs is not a parameter of pretrain; did you mean epochs?" in told
    assert "Traceback" not in told
