"""The page of a run that has no executed notebook, as a notebook made from the run's saved files.

``mae-core train`` makes no notebook, and a clone or a copy of the results may lack those of other runs.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from mae_core.report import figures
from mae_core.report.case import DEFAULTS
from mae_core.report.display import collected, show_figure, show_table
from mae_core.report.tables import DASH
from mae_core.study.results import load_sheet, metric_rows, read_json

FILES = ("parameters", "history", "metrics", "provenance")
STAGES = {"pretrain": "pre-training", "finetune": "fine-tuning"}
MADE = "this page was made from the files that the run saved"  # tells it from the page of a notebook
ORIGIN = f"The run was trained by `mae-core train`, or its notebook was not kept: {MADE}, in `outputs/{{}}`."
SIZES = {
    "n_parameters": "parameters of the model",
    "n_train": "training images",
    "n_test": "images that it was evaluated on",
}
PROVENANCE = {  # what provenance.json may hold, in words
    "finished": "finished (UTC)",
    "commit": "commit of the code",
    "clean": "code as in the commit",
    "commit_missing": "why there is no commit",
    "device": "device",
    "precision": "precision of matrix products",
    "platform": "system",
    "versions": "versions",
    "machines": "machines, one after the other",
    "data_md5": "MD5 of the data",
    "weights_sha256": "SHA-256 of the weights",
    "images": "checksum of the names and sizes of the images",
    "initial_weights_sha256": "SHA-256 of the weights at the start",
    "initial_settings_sha256": "SHA-256 of the settings beside the weights at the start",
}
PICTURES = {  # what fine-tuning may record beside its predictions, in words
    "attention": "the attention of the class token in the last block",
    "neighbours": "the nearest training image by the features of the frozen encoder",
    "mistakes": "the mistakes with the highest confidence",
}
TOLD = {"pictures": "predictions", "mistakes": "mistakes"}  # where metrics.json lists the classes of these images
N_IMAGES, N_COLOURS = 6, 256  # of pictures; more would make the page's file large


def is_made(page: Path) -> bool:
    """Whether a page was made from a run's files, and not from its executed notebook."""
    return MADE in page.read_text(encoding="utf-8")


def run_notebook(folder: Path) -> NotebookNode:
    """A notebook of what a finished run saved; the same files give the same page.

    Args:
        folder: of one stage of the run, such as ``outputs/laptop/random-75/seed0/finetune``.

    Raises:
        ParameterError: if one of the files is damaged.
    """
    run, history, metrics, provenance = (read_json(folder / f"{name}.json") for name in FILES)
    stage = folder.name
    used = "validation" if run.get("holdout") else "test"  # images held out from training, or the test images
    curves, pictures = (show_loss, show_reconstructions) if stage == "pretrain" else (show_accuracy, show_predictions)
    cells = [
        new_markdown_cell(f"# {run['case']}, seed\N{NO-BREAK SPACE}{run['seed']}: {STAGES[stage]}"),
        new_markdown_cell(ORIGIN.format(f"{run['study']}/{run['case']}/seed{run['seed']}/{stage}")),
        new_markdown_cell("## Results"),
        cell(show_metrics, metrics, run.get("holdout", 0)),
        cell(curves, history, used),
        cell(pictures, folder, metrics, used),
        new_markdown_cell("## Provenance"),
        cell(show_provenance, provenance),
        new_markdown_cell("## Parameters"),
        cell(show_parameters, run, stage),
    ]
    return new_notebook(cells=cells)


def cell(show: Callable[..., None], *what: Any) -> NotebookNode:
    """A cell with the outputs of a function that shows something."""
    with collected() as outputs:
        show(*what)
    for data, _ in outputs:
        if "image/png" in data:
            data["image/png"] = with_palette(data["image/png"])
    return new_code_cell(outputs=[new_output("display_data", data, metadata=about) for data, about in outputs])


def with_palette(png: str) -> str:
    """A PNG file with the colours that represent its own best: a third of the size. Both in base64."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        few = picture.convert("RGB").quantize(N_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def show_metrics(metrics: Mapping[str, Any], holdout: int) -> None:
    """The numbers of ``metrics.json``."""
    sizes = [[words, f"{metrics[name]:,}"] for name, words in SIZES.items() if name in metrics]
    rows = metric_rows(metrics, holdout) + sizes
    show_table("tab-metrics", "This run's measurements.", ["measurement", "value"], rows)


def show_loss(history: Mapping[str, Sequence[float]], used: str) -> None:
    """The loss of pre-training by epoch."""
    panel = figures.curves({"run": [history]}, "train_loss", "loss on masked patches")
    first, last = history["train_loss"][0], history["train_loss"][-1]
    alt = f"The loss: {first:.3f} in the first epoch, {last:.3f} in the last."
    show_figure(panel, "fig-loss", "Loss by epoch.", alt)


def show_accuracy(history: Mapping[str, Sequence[float]], used: str) -> None:
    """The losses and the accuracy of fine-tuning by epoch; ``used`` says which images were evaluated."""
    losses = {"training": history["train_loss"], used: history["test_loss"]}
    series = {name: [{"epoch": history["epoch"], "loss": values}] for name, values in losses.items()}
    panels = [
        figures.curves(series, "loss", "cross-entropy"),
        figures.curves({"run": [history]}, "test_accuracy", f"{used} accuracy (%)"),
    ]
    last = f"{used.capitalize()} accuracy, at last {history['test_accuracy'][-1]:.1f} %."
    alts = [f"Training and {used} loss by epoch.", last]
    show_figure(panels, "fig-curves", f"Loss and {used} accuracy by epoch.", alts, columns=2)


def show_reconstructions(folder: Path, metrics: Mapping[str, Any], used: str) -> None:
    """The first images: with their masks, reconstructed, and as they are."""
    if not (folder / "pictures.png").exists():
        return
    original, masked, painted = load_sheet(folder / "pictures.png", 3)[:, :N_IMAGES]
    show_figure(
        figures.strips([("masked", masked), ("reconstructed", painted), ("original", original)]),
        label="fig-reconstructions",
        caption=f"Masked, reconstructed and original {used} images; {metrics['test_psnr']:.1f} dB over the masked pixels "
        f"of all {used} images.",
        alt="Three rows of small images: with masked patches grey, with reconstructed patches, and originals.",
    )


def show_predictions(folder: Path, metrics: Mapping[str, Any], used: str) -> None:
    """The first images with the predicted class, and what the run recorded besides: attention, neighbours and mistakes."""
    rows = picture_rows(folder, metrics)
    if not rows:
        return
    notes = {i: guesses(metrics[TOLD[kind]], metrics) for i, kind in enumerate(rows) if kind in TOLD}
    names = [f"{used} images" if kind == "pictures" else kind for kind in rows]
    more = "".join(f"; {PICTURES[name]}" for name in rows if name in PICTURES)
    show_figure(
        figures.strips(list(zip(names, rows.values(), strict=True)), notes),
        label="fig-predictions",
        caption=f"The first {used} images with the predicted class, and the true one where it is another{more}.",
        alt=f"Rows of small images: {', '.join(names)}.",
    )


def picture_rows(folder: Path, metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The first images of each kind that fine-tuning recorded, images_nHWC, by kind."""
    n_rows = {"pictures": 1, "attention": 2, "neighbours": 1, "mistakes": 1}
    if "neighbours" in metrics:
        n_rows["neighbours"] += len(metrics["neighbours"]["labels"][0])
    there = {name: folder / f"{name}.png" for name in n_rows}
    sheets = {name: load_sheet(path, n_rows[name]) for name, path in there.items() if path.exists()}
    # The first of several rows has the same images as the pictures.
    return {name: sheet[0 if len(sheet) == 1 else 1, :N_IMAGES] for name, sheet in sheets.items()}


def guesses(told: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """The predicted class of the first images and, of mistakes, the true one below; ``told`` lists both by image."""
    names = [figures.short(name, 12) for name in metrics["predictions"]["classes"]]
    pairs = list(zip(told["predicted"], told["true"], strict=True))[:N_IMAGES]
    return [names[said] + (f"\nis: {names[true]}" if said != true else "") for said, true in pairs]


def show_provenance(provenance: dict[str, Any]) -> None:
    """All that ``provenance.json`` holds."""
    clean = {True: "yes", False: "no, changed"}.get(provenance["clean"])
    told = provenance | {"clean": clean, "finished": provenance["finished"].replace("T", " ").removesuffix("+00:00")}
    told.pop("wall_seconds", None)  # it is among the results
    rows = [[PROVENANCE.get(name, name), in_words(value)] for name, value in told.items()]
    show_table("tab-provenance", "Where this run's numbers come from.", ["what", "value"], rows, align="ll")


def show_parameters(run: Mapping[str, Any], stage: str) -> None:
    """All parameters in ``parameters.json``, and below them those that came later."""
    later = [f"`{name}`: {in_words(value)}" for name, value in DEFAULTS[stage].items() if name not in run]
    notes = f"Of parameters that did not exist yet, the run had today's defaults: {', '.join(later)}." if later else ""
    rows = [[name, in_words(value)] for name, value in run.items()]
    show_table("tab-parameters", "All parameters of this run.", ["parameter", "value"], rows, notes, align="ll")


def in_words(value: Any) -> str:
    """A value of a JSON file as a cell shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if value in ("", None):
        return DASH
    return str(value) if isinstance(value, str) else json.dumps(value)
