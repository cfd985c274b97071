"""The commit in a run's provenance, or the reason why it is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import git

from mae_core.study import provenance

NOBODY = 65534
ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a package of two files."""
    (tmp_path / "mae_core").mkdir()
    for name in ("__init__.py", "code.py"):
        (tmp_path / "mae_core" / name).write_text("1\n", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr("mae_core.study.checkout.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return tmp_path


def give_away(folder):
    """Make another user the owner of a folder."""
    if os.getuid():
        pytest.skip("only root can give files to another user")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def test_the_commit_and_whether_the_code_is_that_of_the_commit(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance.commit() == {"commit": head, "clean": True}
    (checkout / "mae_core" / "code.py").write_text("2\n", encoding="utf-8")
    assert provenance.commit() == {"commit": head, "clean": False}


def test_a_checkout_of_another_user_has_its_commit(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    give_away(checkout)
    refused = subprocess.run(["git", "-C", checkout, "status"], capture_output=True, encoding="utf-8")
    assert "dubious ownership" in refused.stderr  # the test would not test anything otherwise
    assert provenance.commit() == {"commit": head, "clean": True}


def test_another_users_repository_around_the_project_is_not_trusted(checkout, monkeypatch):
    """Its configuration could start programs, and none of its code runs here. The provenance has git's reason."""
    (checkout / "inside" / "mae_core").mkdir(parents=True)
    give_away(checkout)
    monkeypatch.setattr("mae_core.study.checkout.ROOT", checkout / "inside")
    told = provenance.commit()
    assert told["commit"] is None
    assert told["commit_missing"] == f"detected dubious ownership in repository at '{checkout}'"


def test_a_repository_around_the_package_that_does_not_hold_it_is_not_its_commit(checkout, monkeypatch):
    """As around a virtual environment in somebody's own project."""
    installed = checkout / ".venv" / "site-packages"
    shutil.copytree(checkout / "mae_core", installed / "mae_core")
    monkeypatch.setattr("mae_core.study.checkout.ROOT", installed)
    reason = "the git repository around the package does not hold it"
    assert provenance.commit() == {"commit": None, "clean": None, "commit_missing": reason}


def test_a_project_in_a_subfolder_of_a_repository_is_compared_with_its_commit(checkout, monkeypatch):
    shutil.copytree(checkout / "mae_core", checkout / "inside" / "mae_core")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "second")
    monkeypatch.setattr("mae_core.study.checkout.ROOT", checkout / "inside")
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "mae_core" / "code.py").write_text("2\n", encoding="utf-8")  # not the code that runs
    assert provenance.commit() == {"commit": head, "clean": True}
    (checkout / "inside" / "mae_core" / "code.py").write_text("2\n", encoding="utf-8")
    assert provenance.commit() == {"commit": head, "clean": False}


def test_outside_a_checkout_nothing_is_missing(checkout):
    shutil.rmtree(checkout / ".git")
    if any((parent / ".git").exists() for parent in checkout.parents):
        pytest.skip("the temporary folder is inside a checkout")
    assert provenance.commit() == {"commit": None, "clean": None}


def test_a_missing_git_is_named(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(Path("/nonexistent")))
    assert provenance.commit() == {"commit": None, "clean": None, "commit_missing": "git is not installed"}


def test_the_modules_of_a_run_are_found_through_a_link_to_the_package(tmp_path):
    (tmp_path / "linked").symlink_to(ROOT)
    script = "from mae_core.study.sources import PACKAGE, sources; print(sources(PACKAGE / 'training' / 'runs.py'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "linked")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert "'mae_core/training/loop.py'" in done.stdout, done.stderr
