"""The project's files agree with each other."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from checkout import git, needs_git

from mae_core.cli import COMMANDS
from mae_core.explore.trained import KEPT
from mae_core.study import checkout

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_conda_defers_to_pyproject():
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert content["name"]
    assert content["channels"] == ["conda-forge"]
    (python,) = [d for d in content["dependencies"] if isinstance(d, str) and d.startswith("python=")]
    assert tuple(map(int, python.split("=")[1].split("."))) >= (3, 11)
    assert PROJECT["requires-python"] == ">=3.11"
    (pip,) = [d["pip"] for d in content["dependencies"] if isinstance(d, dict)]
    assert pip == ["-c constraints.txt", "-e .[dev]"]  # only pyproject.toml lists the dependencies


def test_every_dependency_has_exact_versions():
    lines = [x for x in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if x and not x.startswith("#")]
    assert all(re.match(r"[\w.\[\]-]+==[\w.+!]+( ;.*)?$", line) for line in lines)
    extras = PROJECT["optional-dependencies"]
    assert names(extras["bench"]) <= names(extras["dev"])
    assert names(PROJECT["dependencies"]) | names(extras["dev"]) <= names(lines)
    assert "://" not in "".join(lines)


def test_what_starts_often_builds_no_grammar():
    """From 4.25 on, jsonschema imports rfc3987_syntax where installed; its grammar takes seconds to build."""
    told = "import sys, papermill, nbconvert; sys.exit('rfc3987_syntax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told]).returncode == 0


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_the_docs_leads_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*\]\([^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_docs_exists(page):
    text, makefile = page.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {word for head in re.findall(r"^([\w ]+):(?!=)", makefile, re.M) for word in head.split()}
    code = "\n".join(block or inline for block, inline in re.findall(r"```\n(.*?)```|`([^`\n]+)`", text, re.S))
    assert set(re.findall(r"^make (?!PYTHON)(\w+)", code, re.M)) <= targets
    assert set(re.findall(r"\bmae-core (\w+)", code)) <= {command.__name__ for command in COMMANDS}


def test_the_readmes_first_screen_has_the_picture_and_both_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:40])
    assert {"make report", "make test"} <= {line.split("  ")[0] for line in lines[:40]}
    assert re.search(r"!\[[^]]{40,}\]\(report/night/figures/\S+\)", first)
    assert "| case |" in first


def test_the_readmes_examples_write_different_files_that_git_ignores_and_need_no_gpu(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    written = re.findall(r"^papermill \S+ (\S+)", text, re.M) + re.findall(r"^mae-core .*> (\S+)", text, re.M)
    assert len(written) == len(set(written)) == 4
    (study,) = re.findall(r"^mae-core parameters (\S+)", text, re.M)
    assert study == "params/smoke.yaml"  # a copied line must not train a published study anew
    shutil.copy(ROOT / ".gitignore", tmp_path)
    git(tmp_path, "init", "--quiet")
    assert git(tmp_path, "check-ignore", *written).split() == written


def test_no_data_are_committed_and_only_small_weights():
    try:
        files = checkout.git("ls-files").split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or git is not installed")
    weights = [f for f in files if f.endswith((".safetensors", ".pt", ".pth", ".pkl", ".tar.gz"))]
    assert {Path(f).name for f in weights} <= {KEPT}
    assert all((ROOT / f).stat().st_size < 1.5e6 for f in weights if (ROOT / f).exists())
    assert not [f for f in files if "batches-py" in f]


def pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ;")[0].split("==") for line in lines if line and not line.startswith("#"))


def test_pre_commit_has_the_versions_of_the_environment():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    revisions = {repo["repo"].rsplit("/", 1)[1]: repo["rev"].removeprefix("v") for repo in repos}
    assert revisions["ruff-pre-commit"] == pinned()["ruff"]
    assert revisions["nbstripout"] == pinned()["nbstripout"]


def test_the_workflow_runs_what_ci_runs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (loop,) = re.findall(r"for target in ([\w ]+); do", script)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make env", *(f"make {t}" for t in loop.split())]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert workflow["permissions"] == {"contents": "read"}


def test_the_profile_of_slurm_gives_every_job_a_limit_memory_and_time_for_a_checkpoint():
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    given = dict(entry.split("=", 1) for entry in profile["default-resources"])
    assert {"slurm_partition", "runtime", "mem_mb"} <= set(given)
    assert given["slurm_extra"] == "\"'--signal=TERM@60'\""
    assert "set-resources" not in profile  # the Snakefile asks for as many GPUs as a run has processes


@needs_git
def test_git_sees_no_outputs_that_jupyter_saved(tmp_path):
    """With the filter that ``make env`` sets up."""
    words = ["make", "--dry-run", "--what-if", "pyproject.toml", "env", f"VENV={sys.prefix}"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    (command,) = [line for line in told.splitlines() if line.startswith("git config")]
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / ".gitattributes", tmp_path)

    def git(*words):
        words = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True).stdout

    git("init", "--quiet")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    git("add", ".")
    git("commit", "--quiet", "--message", "as they are")
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        assert git("show", f"HEAD:notebooks/{path.name}") == path.read_text(encoding="utf-8")  # the filter changes nothing
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.language_info.version = "3.14.1"
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs, code.execution_count = [nbformat.v4.new_output("stream", text="printed")], 7
    nbformat.write(notebook, path)
    assert git("diff") == ""
    git("add", ".")
    assert git("status", "--porcelain") == ""
    code.source += "\n# changed"
    nbformat.write(notebook, path)
    assert '+    "# changed"' in git("diff")


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"## {PROJECT['version']} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("uid", "options"), [("0", " --allow-root"), ("1000", "")])
def test_make_lab_opens_explore_also_as_root(tmp_path, uid, options):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {uid}\n", encoding="utf-8")
    (tmp_path / "id").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "lab"], cwd=ROOT, env=env, capture_output=True, encoding="utf-8"
    )
    words = done.stdout.splitlines()[-1].split()
    assert " ".join(words).endswith(f"bin/jupyter lab{options} notebooks/explore.ipynb")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "STUDY=nowhere"], r"there is no params/nowhere\.yaml: choose among .*laptop .*smoke .*, or write it"),
        (["sweep", "STUDY=nowhere"], r"there is no params/nowhere\.yaml: choose among .*"),
        (["lengths", "STUDY=smoke"], r"params/smoke\.yaml has no lengths: add it, or choose a study that has it: laptop"),
        (["sweep", "STUDY=paper"], r"params/paper\.yaml has no sweep: .*: laptop night"),
        (["seeds", "STUDY=paper"], r"params/paper\.yaml has no more_seeds: .*: laptop night"),
    ],
)
def test_make_tells_what_a_study_lacks_before_anything_is_set_up(tmp_path, words, told):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    words = ["make", "--no-print-directory", *words, "PYTHON=false"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert re.fullmatch(told, done.stderr.splitlines()[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / ".venv").exists()


class Installed:
    """A copy of the Makefile whose python and uv only write down what they are asked to do."""

    def __init__(self, folder, uv="exit 0", pip="exit 0"):
        self.folder, self.calls = folder, folder / "calls.txt"
        folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        # `python3 -m venv` makes an environment with a python and a uv that are scripts, too.
        fake = '#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\n'
        got = uv.split("|")[0]
        tool = f'{fake}case "$*" in *"--quiet -c constraints.txt uv") {got};; *install*) {pip};; esac\n'
        self.write("fakes/python", tool)
        self.write("fakes/uv", fake + uv.split("|")[-1] + "\n")
        place = f'"{folder}/fakes/python" "{folder}/fakes/uv" "$place/bin/"'
        venv = f'{fake}for place; do :; done; test "$2" = venv && mkdir -p "$place/bin" && cp {place}\nexit 0\n'
        self.write("python3", venv)

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def make(self, *words, target="env"):
        kept = {name: value for name, value in os.environ.items() if name not in ("VENV", "TORCH", "MAKEFLAGS")}
        env = kept | {"CALLS": str(self.calls)}
        words = ["make", target, "PYTHON=./python3", *words]
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, encoding="utf-8")
        return done, self.calls.read_text(encoding="utf-8").splitlines()


def test_uv_installs_what_the_constraints_say(tmp_path):
    done, calls = Installed(tmp_path / "a path with spaces").make()
    assert done.returncode == 0, done.stderr
    uv = "uv pip install --quiet --python .venv/bin/python --compile-bytecode -c constraints.txt -e"
    pip = "python -m pip install --quiet -c constraints.txt uv"
    assert calls[-4:] == [pip, f"{uv} .", pip, f"{uv} .[dev]"]  # what the report needs, then what the tests need
    assert (tmp_path / "a path with spaces" / ".venv" / ".ready-dev").exists()


def test_the_web_page_needs_no_more_than_a_server(tmp_path):
    project = Installed(tmp_path / "project")
    done, calls = project.make(target=".venv/.ready-web")
    assert done.returncode == 0, done.stderr
    assert [call.split()[-1] for call in calls if call.startswith("uv ")] == [".", ".[web]"]
    project.make()
    (tmp_path / "project" / ".venv" / ".ready-web").unlink()
    done, _ = project.make("-n", target="explore")
    assert "install" not in done.stdout  # what the tests need has it
    assert "voila" in done.stdout


@pytest.mark.parametrize("uv", ["exit 1", "exit 0|exit 1"], ids=["uv cannot be had", "uv fails"])
@pytest.mark.parametrize("torch", ["", "cpu"])
def test_pip_installs_where_uv_cannot(tmp_path, uv, torch):
    done, calls = Installed(tmp_path / "project", uv=uv).make(*([f"TORCH={torch}"] if torch else []))
    assert done.returncode == 0, done.stderr
    assert "uv could not install the environment; trying pip" in done.stderr
    index = f"--extra-index-url https://download.pytorch.org/whl/{torch} " if torch else ""
    assert calls[-1] == f"python -m pip install --quiet {index}-c constraints.txt -e .[dev]"


def test_without_a_gpu_uv_gets_torchs_backend(tmp_path):
    done, calls = Installed(tmp_path / "project").make("TORCH=cpu")
    assert done.returncode == 0, done.stderr
    assert calls[-1].startswith("uv pip install --quiet --python .venv/bin/python --compile-bytecode --torch-backend cpu")


def test_an_environment_that_could_not_be_installed_is_tried_again(tmp_path):
    done, _ = Installed(tmp_path / "project", uv="exit 1", pip="exit 1").make()
    assert done.returncode != 0
    assert not (tmp_path / "project" / ".venv" / ".ready").exists()


def venvs(calls):
    """The options of each call that makes an environment."""
    return [call.split()[3:] for call in calls if " -m venv " in call]


def test_an_environment_that_moved_with_its_folder_is_made_anew(tmp_path):
    project = Installed(tmp_path / "project")
    assert venvs(project.make()[1]) == [[".venv"]]
    (tmp_path / "project").rename(tmp_path / "moved")
    project.folder, project.calls = tmp_path / "moved", tmp_path / "moved" / "calls.txt"
    project.write("python3", project.folder.joinpath("python3").read_text(encoding="utf-8").replace("/project/", "/moved/"))
    assert venvs(project.make()[1]) == [[".venv"], ["--clear", ".venv"]]
    assert venvs(project.make()[1]) == [[".venv"], ["--clear", ".venv"]]  # once is enough


def test_an_environment_whose_installation_was_killed_is_made_anew(tmp_path):
    project = Installed(tmp_path / "project")
    with subprocess.Popen(["true"]) as ended:
        pass
    (project.folder / ".venv").mkdir()
    begun = project.folder / ".venv" / ".begun"
    project.calls.touch()
    for pid, cleared in ((os.getpid(), False), (ended.pid, True)):  # of another make at work, and of one that was killed
        begun.write_text(f"{pid}\n", encoding="utf-8")
        assert ("--clear" in project.make("-n")[0].stdout) == cleared
    assert venvs(project.make()[1]) == [["--clear", ".venv"]]
    assert not (project.folder / ".venv" / ".begun").exists()


def test_packages_on_the_pythonpath_do_not_reach_the_environment(tmp_path):
    project = Installed(tmp_path / "project")
    project.write("python3", project.folder.joinpath("python3").read_text(encoding="utf-8").replace(
        "exit 0\n", 'echo "path $PYTHONPATH" >> "$CALLS"\nexit 0\n'
    ))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "/somewhere")
        assert {call for call in project.make()[1] if call.startswith("path")} == {"path "}


def test_an_environment_that_a_failed_update_left_is_kept(tmp_path):
    project = Installed(tmp_path / "project")
    project.make()
    for name in ("python", "uv"):
        project.write(f"fakes/{name}", "#!/bin/sh\nexit 1\n")  # offline
    later = time.time() + 10
    os.utime(project.folder / "pyproject.toml", (later, later))
    assert project.make()[0].returncode != 0
    assert "--clear" not in project.make("-n")[0].stdout


def test_a_folder_may_have_an_apostrophe_in_its_name(tmp_path):
    project = Installed(tmp_path / "o'brien")
    assert project.make()[0].returncode == 0
    assert venvs(project.make()[1]) == [[".venv"]]  # made where it is


def test_an_environment_outside_the_project_is_never_emptied(tmp_path):
    project, shared = Installed(tmp_path / "project"), tmp_path / "shared"
    project.make(f"VENV={shared}")
    (shared / ".ready").write_text("/another/clone\n", encoding="utf-8")
    done, calls = project.make(f"VENV={shared}")
    assert done.returncode != 0
    assert f"{shared} was made elsewhere or not to its end: delete it or name another VENV" in done.stderr
    assert venvs(calls) == [[str(shared)]]
