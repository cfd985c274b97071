"""The five notebooks as files, and as a user runs them: top to bottom, with their defaults."""

import ast
import json
import re
import shutil
import time
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("explore", "pretrain", "finetune", "ablations", "report")


def cells(name, kind):
    return [c for c in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells if c.cell_type == kind]


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_with_held_out_images_no_measurement_is_called_a_test(name, tmp_path, few_shapes_dir):
    (tmp_path / "data").symlink_to(few_shapes_dir)
    done = papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        tmp_path / "out.ipynb",
        parameters={"holdout": 300, "train_images": 256, "epochs": 1, "width": 24, "decoder_width": 24, "threads": 1},
        kernel_name="python3",
        cwd=tmp_path,
        progress_bar=False,
    )
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    words = [{k: v for k, v in o.get("data", {}).items() if k.startswith("text")} | o.get("metadata", {}) for o in outputs]
    words += [output.get("text", "") for output in outputs]
    assert "validation" in json.dumps(words)
    assert not re.search(r"\btest\b", json.dumps(words), re.IGNORECASE)


def test_there_are_five():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_thin_and_committed_without_outputs(name):
    for cell in cells(name, "code"):
        assert not cell.outputs
        assert cell.execution_count is None
        assert not [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 20
    assert cells(name, "markdown")[0].source.startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_with_its_defaults_within_a_minute(name, tmp_path, monkeypatch, shapes_dir):
    if (ROOT / "outputs" / "laptop").exists():
        shutil.copytree(ROOT / "outputs" / "laptop", tmp_path / "outputs" / "laptop")
    (tmp_path / "data").symlink_to(shapes_dir)
    published = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}
    began = time.monotonic()
    done = papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        tmp_path / "out.ipynb",
        kernel_name="python3",
        cwd=tmp_path,
        progress_bar=False,
    )
    assert time.monotonic() - began < 60
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if o.get("metadata", {}).get("report", {}).get("kind") == "figure"]
    assert pictures
    assert {path: path.read_bytes() for path in published} == published  # looking changes nothing
    printed = "".join(output.get("text", "") for output in outputs)
    if name in ("ablations", "report"):  # by default, they show every case and seed that is there
        shown, folder = json.dumps(outputs), ROOT / "outputs" / "laptop"
        seeds = {
            case: sorted(
                int(path.parts[-3].removeprefix("seed")) for path in (folder / case).glob("*/finetune/metrics.json")
            )
            for case in ("random-75", "block-50", "random-90")
        }
        assert len(seeds["random-75"]) > 2
        assert all(text in shown for text in ("block-50", "random-90"))
        if name == "report":
            assert f"{len(seeds['random-75'])} seeds" in shown
        else:
            assert {f"{case:<16} seeds finished: {of_case}" for case, of_case in seeds.items()} <= set(printed.splitlines())
    live = [o for o in outputs if o.get("metadata", {}).get("report", {}).get("kind") == "live"]
    assert [o["data"]["text/plain"] for o in live] == {"pretrain": ["epoch 3 of 3"], "finetune": ["epoch 2 of 2"]}.get(
        name, []
    )
    assert not re.search(r"\b[A-Z]\w+\(\w+=", printed)  # words, not ModelConfig(width=48, ...)
    if name == "explore":
        assert [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
        state = done.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
        kinds = {widget["model_name"] for widget in state.values()}
        assert "AnyModel" in kinds
        assert "OutputModel" not in kinds  # nbclient can wait forever: https://github.com/jupyter/nbclient/issues/312
        assert [o for o in outputs if "mae-still" in o.get("data", {}).get("text/html", "")]


@pytest.mark.parametrize("name", ["pretrain", "report", "explore"])
def test_an_unknown_parameter_ends_it_with_one_sentence(name, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb", {"sead": 1}, kernel_name="python3",
            cwd=tmp_path, progress_bar=False,
        )  # fmt: skip
    last = str(caught.value).strip().splitlines()[-1]
    assert last.startswith("ParameterError: sead is not a parameter of")
    assert not (tmp_path / "outputs").exists()


def test_what_the_report_takes_from_ablations_is_there():
    def labels(name, words=""):
        cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
        shows = [
            show for cell in cells for show in re.split(r"^ *show_(?=figure|table)", cell.source, flags=re.MULTILINE)[1:]
        ]
        return {re.search(r'label="([\w-]+)"', show)[1] for show in shows if words in show}

    taken = labels("report", 'sources=["ablations"]')
    assert {"tab-main", "fig-ratio", "tab-sensitivity", "tab-lengths"} <= taken <= labels("ablations")
    assert not {label for label in labels("report") if label not in labels("report", "sources=")}
