"""The package's folders are floors: a module may import from lower floors, but not from higher ones."""

import ast
from pathlib import Path

import pytest

from mae_core import HOMES

PACKAGE = Path(__file__).parents[1] / "mae_core"
FLOORS = (
    {"errors", "locks"},
    {"devices", "gpus"},
    {"model", "data"},
    {"study"},
    {"evaluation", "report"},
    {"training"},
    {"explore"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(module: str) -> str:
    """``model`` for ``mae_core.model.mae``, ``errors`` for ``mae_core.errors``."""
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            homes = HOMES if node.module == PACKAGE.name else {}  # `from mae_core import pretrain` loads training.runs
            found |= {f"{node.module}.{homes.get(alias.name, alias.name)}" for alias in node.names}
    return {module for module in found if module.startswith("mae_core.") and room(module) in HEIGHT}


def test_every_file_has_a_floor():
    assert {room(f"mae_core.{path.relative_to(PACKAGE).with_suffix('').parts[0]}") for path in MODULES} == set(HEIGHT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_only(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imported(path):
        there = room(module)
        assert there == here or HEIGHT[there] < HEIGHT[here], (
            f"{path.relative_to(PACKAGE)} imports {module}, which is not on a lower floor: move what both need to a "
            f"lower one (the floors are in {Path(__file__).name})"
        )


def test_no_module_imports_itself_through_others():
    edges = {}
    for path in MODULES:
        name = ".".join(("mae_core", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        edges[name] = imported(path)
    known = set(edges)
    edges = {
        name: {m if m in known else m.rpartition(".")[0] for m in modules} & known - {name}
        for name, modules in edges.items()
    }
    while leaves := {name for name, modules in edges.items() if not modules}:
        edges = {name: modules - leaves for name, modules in edges.items() if name not in leaves}
    assert not edges, f"these modules have circular imports: {', '.join(sorted(edges))}"


def test_a_report_is_made_of_saved_results_and_never_of_a_model():
    for path in (PACKAGE / "report").rglob("*.py"):
        modules = {module for module in imported(path) if room(module) in ("model", "data")}
        assert {module.split(".")[2] for module in modules} <= {"config"}, f"{path.relative_to(PACKAGE)} imports {modules}"
