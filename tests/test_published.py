"""The published reports are, byte for byte, what today's code prints from the committed results."""

import importlib.metadata
import shutil
import sys
import tomllib
from pathlib import Path

import papermill
import pytest
from checkout import published, tracked
from packaging.requirements import Requirement

from mae_core.report.export import write_report
from mae_core.study.study import Study

ROOT = Path(__file__).parents[1]
PRINTERS = {"jinja2", "pygments"}  # and what the package itself asks for


def other_than_printed_with():
    """What may draw or print other bytes here than where the reports were published, in words."""
    if (sys.platform, *sys.version_info[:2]) != ("linux", 3, 11):
        yield f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sys.platform}, not 3.11 on linux"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    printers = PRINTERS | {Requirement(line).name for line in project["dependencies"]}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#") or (wanted := Requirement(line)).name not in printers:
            continue
        here = importlib.metadata.version(wanted.name)
        if (wanted.marker is None or wanted.marker.evaluate()) and here not in wanted.specifier:
            yield f"{wanted.name} {here}, not {wanted.specifier}"


@pytest.mark.parametrize("name", published())
def test_a_fresh_print_gives_the_published_report(name, tmp_path):
    """As the rules ``report`` and ``render`` of the Snakefile make it; pages of runs stay where there is no notebook."""
    if others := list(other_than_printed_with()):
        pytest.skip("; ".join(others))
    for path in tracked("outputs"):
        if path.suffix not in (".ipynb", ".safetensors"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tmp_path / path)
    public, report = ROOT / "report" / name, tmp_path / "report" / name
    shutil.copytree(public / "notebooks", report / "notebooks")
    study = Study.read(ROOT / "params" / f"{name}.yaml")
    chosen = {
        "study": name, "cases": list(study.cases), "sweep": [*study.sweep, *study.lengths],
        "seeds": list(study.all_seeds), "beside": list(study.beside),
    }  # fmt: skip
    notebook = tmp_path / "outputs" / name / "report.ipynb"
    papermill.execute_notebook(
        ROOT / "notebooks" / "report.ipynb", notebook, chosen, kernel_name="python3", cwd=tmp_path, progress_bar=False
    )
    write_report(notebook, report)
    before, after = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (public, report)
    )
    assert before.keys() == after.keys()
    different = [str(path) for path in before if before[path] != after[path]]
    assert not different, f"make report STUDY={name} prints it again"
