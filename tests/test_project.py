"""The project's files agree with each other."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

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
    lines = [
        x for x in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if x and not x.startswith("#")
    ]
    assert all(re.match(r"[\w.\[\]-]+==[\w.+!]+( ;.*)?$", line) for line in lines)
    extras = PROJECT["optional-dependencies"]
    assert names(extras["bench"]) <= names(extras["dev"])
    assert names(PROJECT["dependencies"]) | names(extras["dev"]) <= names(lines)
    assert "://" not in "".join(lines)


def test_what_starts_often_builds_no_grammar():
    """From 4.25 on, jsonschema imports rfc3987_syntax where installed; its grammar takes seconds to build."""
    told = "import sys, papermill, nbconvert; sys.exit('rfc3987_syntax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told]).returncode == 0


def test_the_makefile_has_what_the_readme_names():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    targets = {word for head in re.findall(r"^([\w ]+):(?!=)", makefile, re.M) for word in head.split()}
    named = set(re.findall(r"\bmake (\w+)", readme))
    assert {"report", "test"} <= named <= targets


def test_the_readmes_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", readme)
    assert links
    for pair in links:
        assert (ROOT / (pair[0] or pair[1])).exists(), pair


def test_no_data_and_no_weights_are_committed():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip("not a git checkout")
    files = done.stdout.split()
    assert not [f for f in files if f.endswith((".safetensors", ".pt", ".pth", ".pkl", ".tar.gz"))]
    assert not [f for f in files if "batches-py" in f]
