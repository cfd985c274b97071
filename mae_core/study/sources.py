"""The files of the package that a notebook or a module depends on."""

import ast
import functools
import json
import re
from pathlib import Path

from mae_core import HOMES
from mae_core.errors import ParameterError

PACKAGE = Path(__file__).resolve().parents[1]


def sources(path: str | Path) -> list[str]:
    """The package's modules that a notebook or module imports, directly or indirectly: a change in one needs a rerun.

    ``from mae_core import name`` counts as an import of the module that defines the name.

    Raises:
        ParameterError: if a cell is no Python; names it.
    """
    path = Path(path)
    if path.suffix == ".ipynb":
        queue = set().union(*(imports_of_cell(cell, f"{path}, cell {n}") for n, cell in code_cells(path)))
    else:
        queue = {path.resolve()}
    found: set[Path] = set()
    while queue:
        found |= queue
        queue = set().union(*(imports(module.read_text(encoding="utf-8")) for module in queue)) - found
    return sorted(str(module.relative_to(PACKAGE.parent)) for module in found)


def code(notebook: str | Path, text: bool = False) -> str:
    """The source of a notebook's code cells, which running or saving does not change; with ``text``, of all cells."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if text or cell["cell_type"] == "code")


def code_cells(notebook: Path) -> list[tuple[int, str]]:
    """The code cells of a notebook, each with its place, from 1, among all cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(n, "".join(cell["source"])) for n, cell in enumerate(cells, 1) if cell["cell_type"] == "code"]


def imports_of_cell(source: str, name: str) -> frozenset[Path]:
    """As :func:`imports`, for a cell that may have what IPython adds to Python, such as ``%time`` or ``run?``."""
    try:
        return imports(source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager  # rarely needed

    try:
        return imports(TransformerManager().transform_cell(source))
    except SyntaxError as error:
        raise ParameterError(f"{name}: {error.msg} in line {error.lineno}: complete that cell, or delete it") from error


@functools.cache  # called repeatedly with the same text
def imports(source: str) -> frozenset[Path]:
    """The package's modules that Python source code imports, or starts by their names, as ``python -m`` does."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and re.fullmatch(rf"{PACKAGE.name}(\.\w+)+", str(node.value)):
            modules.add(str(node.value))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            modules.add(node.module)
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {f"{PACKAGE.name}.{HOMES[alias.name]}" for alias in node.names if alias.name in HOMES}
    paths = {PACKAGE.parent / module.replace(".", "/") for module in modules} - {PACKAGE}
    files = {file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")}
    return frozenset(file for file in files if file.exists())
