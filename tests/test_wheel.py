"""The installed wheel creates a report from a folder of results, without a checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from checkout import tracked

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the project's tracked files, without any untracked ones."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked("mae_core", "notebooks", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([sys.executable, *words], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment with the wheel, in a path with a space; it uses this environment's dependencies."""
    folder = tmp_path_factory.mktemp("an environment") / "with a space"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    words = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *words], cwd=folder, env=clean(), check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    where = [python, "-c", "import mae_core; print(mae_core.__file__)"]
    told = subprocess.run(where, cwd=folder, capture_output=True, encoding="utf-8", env=clean(), check=True)
    assert Path(told.stdout.strip()).is_relative_to(site)
    return folder


def clean(**more):
    """This process's environment variables without the path to the checkout, and with nbconvert's templates."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"JUPYTER_PATH": f"{sys.prefix}/share/jupyter"} | more


@pytest.fixture
def locale(tmp_path):
    """Environment variables for a locale without UTF-8; for C.UTF-8 if none can be made (Debian: package locales)."""
    words = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / "en_US.ISO-8859-1"]
    if not shutil.which("localedef") or subprocess.run(words, capture_output=True).returncode > 1:
        return {"LC_ALL": "C.UTF-8"}
    return {"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(tmp_path)}


def test_a_wheel_holds_what_it_needs_and_nothing_else(wheel):
    package = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mae_core").rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name and "/." not in name}
    voila = {name for name in ours if name.startswith("mae_core/explore/page/")}  # what make explore serves
    assert package == ours - voila | {"mae_core/notebooks/report.ipynb"}


def test_it_prints_a_report_from_a_copy_of_results(installed, locale, tmp_path):
    results, report = tmp_path / "my results", tmp_path / "my report"
    shutil.copytree(ROOT / "outputs" / "laptop", results, ignore=shutil.ignore_patterns("*.ipynb"))  # what git keeps
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    words = [installed / "bin" / "mae-core", "render", results, report]
    done = subprocess.run(words, cwd=tmp_path, env=clean(**locale), capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before
    page = (report / "index.html").read_text(encoding="utf-8")
    assert (report / "report.pdf").read_bytes().startswith(b"%PDF")
    published = (ROOT / "report" / "laptop" / "index.html").read_text(encoding="utf-8")
    published = re.sub(r'<figure[^>]* id="tab-beside".*?</figure>', "", published, flags=re.DOTALL)  # of other studies
    numbers = re.findall(r"\d+\.\d+ ± \d+\.\d+", published)
    assert numbers
    assert re.findall(r"\d+\.\d+ ± \d+\.\d+", page) == numbers
    assert 'id="tab-beside"' not in page
    assert "font/woff2;base64," in page
    links = set(re.findall(r'href="(notebooks/.*?)"', page))  # there are no notebooks: the pages are made from files
    assert links == {f"notebooks/{path.name}" for path in (report / "notebooks").iterdir()}
    assert len(links) == len(list(results.glob("*/seed*/*/metrics.json")))
    assert "notebooks/random-75-seed0-pretrain.html" in links


def test_a_folder_without_results_is_told(installed, tmp_path):
    words = [installed / "bin" / "mae-core", "render", tmp_path, tmp_path / "report"]
    done = subprocess.run(words, env=clean(), capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert done.stderr == f"ParameterError: {tmp_path} holds no results: give a study's folder, such as outputs/laptop\n"
