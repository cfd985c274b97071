"""Runs without an executed notebook: their pages are made of their files, say so, and are linked."""

import re

import fake_study
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mae_core.errors import ExportError, ParameterError
from mae_core.report.display import collected, show_table, show_text
from mae_core.report.export import write_html, write_page, write_report
from mae_core.report.runpage import MADE, in_words, run_notebook
from mae_core.study.results import read_json, write_json

CASES = {"random-75": {}, "scratch": None}


@pytest.fixture
def results(elsewhere, tmp_path):
    """The results of two cases, without notebooks."""
    fake_study.write(cases=CASES)
    return tmp_path / "outputs" / "fake"


def printed(results, run, target):
    """The text of a run's page, printed as the report does it."""
    stage = run.rsplit("/", 1)[1]
    write_page(results / run / f"{stage}.ipynb", target)
    return target.read_text(encoding="utf-8")


def notebook_of(outputs):
    """A notebook with collected outputs."""
    shown = [new_output("display_data", data, metadata=about) for data, about in outputs]
    return new_notebook(cells=[new_markdown_cell("# A title"), new_code_cell(outputs=shown)])


def rows_of(page):
    """The rows of all tables of a page: the second cell by the first."""
    return dict(re.findall(r'<th [^>]*scope="row"[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>', page))


def test_a_page_has_the_numbers_the_origin_and_the_parameters_of_its_run(results, tmp_path):
    page = printed(results, "random-75/seed0/finetune", tmp_path / "page.html")
    assert "<h1>random-75, seed\N{NO-BREAK SPACE}0: fine-tuning</h1>" in page
    assert MADE in page
    assert '<a href="../index.html">Back to the report</a>' in page
    rows = rows_of(page)
    assert rows["test accuracy, last epoch (%)"] == "84.00"
    assert rows["commit of the code"] == "0123456789abcdef"
    assert rows["code as in the commit"] == "yes"
    assert rows["versions"] == "torch 2.14.1"
    parameters = read_json(results / "random-75" / "seed0" / "finetune" / "parameters.json")
    assert {name: rows.get(name) for name in parameters} == {name: in_words(value) for name, value in parameters.items()}
    alts = re.findall(r'<img alt="(.*?)"', page)
    assert alts[1:] == [
        "Test accuracy, at last 84.0 %.", "Rows of small images: test images, attention, neighbours, mistakes.",
    ]  # fmt: skip
    assert len(page) < 260_000  # the pictures of this study are noise, and real ones take less


def test_a_page_of_pre_training_has_its_loss_and_reconstructions(results, tmp_path):
    page = printed(results, "random-75/seed0/pretrain", tmp_path / "page.html")
    assert "<h1>random-75, seed\N{NO-BREAK SPACE}0: pre-training</h1>" in page
    assert rows_of(page)["parameters of the model"] == "7,212,684"
    assert "The loss: 1.000 in the first epoch, 0.500 in the last." in page
    assert "Masked, reconstructed and original test images; 19.5 dB over the masked pixels" in page


@pytest.mark.parametrize("copied", [False, True], ids=["its own results", "a copy of results"])
def test_the_report_links_every_run(results, tmp_path, copied):
    runs = ["random-75/seed0/pretrain", "random-75/seed0/finetune", "scratch/seed0/finetune"]
    with collected() as outputs:
        show_table("tab-runs", "Runs.", ["run"], [[run] for run in runs], sources=runs)
        show_table("tab-all", "All.", ["n"], [["3"]], sources=["report"])
    report = (tmp_path if copied else results) / "report.ipynb"
    nbformat.write(notebook_of(outputs), report)
    write_report(report, tmp_path / "printed", results if copied else None)
    index = (tmp_path / "printed" / "index.html").read_text(encoding="utf-8")
    pages = re.findall(r'href="(notebooks/.*?)"', index)
    assert len(pages) == 3 + (not copied)
    assert all((tmp_path / "printed" / page).is_file() for page in pages)
    assert '<a href="notebooks/scratch-seed0-finetune.html">scratch/seed0/finetune</a>' in index
    in_pdf = re.findall(rb"/URI/URI\((.*?)\)", (tmp_path / "printed" / "report.pdf").read_bytes())
    assert [link.decode() for link in in_pdf] == pages  # relative to the PDF


def test_the_same_files_give_the_same_bytes_and_other_results_another_page(results, tmp_path):
    run, target = "scratch/seed0/finetune", tmp_path / "page.html"
    first = printed(results, run, target)
    target.unlink()
    assert printed(results, run, target) == first
    metrics = read_json(results / run / "metrics.json")
    write_json(results / run / "metrics.json", metrics | {"last_epoch_accuracy": 12.34})
    assert rows_of(printed(results, run, target))["test accuracy, last epoch (%)"] == "12.34"


def test_the_page_of_a_notebook_stays_where_the_notebook_is_gone(results, tmp_path):
    run, target = "scratch/seed0/finetune", tmp_path / "page.html"
    notebook = results / run / "finetune.ipynb"
    cells = [new_markdown_cell("# Its notebook"), new_code_cell("1 + 1")]
    nbformat.write(new_notebook(cells=cells), notebook)
    page = printed(results, run, target)
    notebook.unlink()
    assert "<h1>Its notebook</h1>" in page
    assert printed(results, run, target) == page


def test_what_a_run_did_not_record_is_left_out(results, tmp_path):
    folder = results / "random-75" / "seed0" / "finetune"
    for name in ("attention", "neighbours", "mistakes"):
        (folder / f"{name}.png").unlink()
    assert 'alt="Rows of small images: test images."' in printed(results, "random-75/seed0/finetune", tmp_path / "a.html")
    (folder / "pictures.png").unlink()
    assert "Rows of small images" not in printed(results, "random-75/seed0/finetune", tmp_path / "b.html")
    parameters = read_json(folder / "parameters.json")
    del parameters["mixup"]
    write_json(folder / "parameters.json", parameters | {"holdout": 500})
    page = printed(results, "random-75/seed0/finetune", tmp_path / "c.html")
    assert "the run had today's defaults: <code>mixup</code>: 0.0." in page.replace("&#x27;", "'")
    assert "validation accuracy, last epoch (%)" in page


def test_a_damaged_or_missing_run_is_told(results, tmp_path):
    folder = results / "random-75" / "seed0" / "pretrain"
    (folder / "history.json").write_text("{")
    with pytest.raises(ParameterError, match=r"history\.json is damaged"):
        run_notebook(folder)
    with pytest.raises(ExportError, match=r"nowhere/seed0/pretrain/pretrain\.ipynb"):
        printed(results, "nowhere/seed0/pretrain", tmp_path / "page.html")


def test_no_name_of_a_class_becomes_markup(elsewhere, tmp_path):
    fake_study.write(cases={"scratch": None}, classes=("$<b>x$", "*b*", *"cdefghij"))
    page = printed(tmp_path / "outputs" / "fake", "scratch/seed0/finetune", tmp_path / "page.html")
    assert "<b>" not in page


def test_outputs_are_collected_as_a_kernel_would_show_them(tmp_path):
    with collected() as outputs:
        show_text("A *text*.")
    write_html(notebook_of(outputs), tmp_path / "page.html")
    assert "<p>A <em>text</em>.</p>" in (tmp_path / "page.html").read_text(encoding="utf-8")
