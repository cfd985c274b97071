"""The study's figures, drawn from saved results only. Each function returns a new matplotlib Figure, without pyplot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import withStroke

from mae_core.model.config import count_kept
from mae_core.report.statistics import Estimate
from mae_core.study.parameters import PretrainParameters
from mae_core.study.results import load_predictions, load_sheet, read_json

INK, GREY, ACCENT = "#222222", "#8a8a8a", "#7a1f1f"
COLOURS = ("#7a1f1f", "#00635a", "#94541b", "#3b528b", "#8a4f9e", "#5b6b1f", "#2f7fb5", "#b05a7a")
PUBLISHED_MARKS = {  # source -> its name in the legend, marker, colour
    "student": ("student's report (CIFAR-10)", "s", COLOURS[1]),
    "paper": ("MAE paper (ImageNet)", "^", COLOURS[3]),
}
STYLE_FILE = Path(__file__).parent / "templates" / "mae" / "figures.mplstyle"
STYLE: Any = matplotlib.rc_params_from_file(STYLE_FILE, use_default_template=False)

TILE = 128 / 220  # inches: each of the 32 pixels of an image is then 4 dots of a PNG wide, which keeps the file small
MOST_CLASSES = 20  # in a confusion matrix; of more, the most confused pairs are drawn
styled = matplotlib.rc_context(STYLE)  # decorator: draws in the report's style, whatever the notebook has set


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


@styled
def curves(series: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], quantity: str, label: str) -> Figure:
    """One curve of the histories against the epoch.

    Args:
        series: histories of all seeds, by name; the line is their mean, the band their range.
        quantity: name of the curve.
        label: label of the vertical axis, with unit.
    """
    series = {name: histories for name, histories in series.items() if histories}
    if not series:
        return not_run(2.8)
    figure = new_figure(2.8, 2.3)
    axes = figure.add_subplot(xlabel="epoch", ylabel=label)
    for (name, histories), colour in zip(series.items(), COLOURS * 9, strict=False):
        epochs = histories[0]["epoch"]
        values = np.array([history[quantity] for history in histories])
        axes.plot(epochs, values.mean(0), color=colour, label=name, marker="o" if len(epochs) < 12 else "", markersize=3)
        if len(values) > 1:
            axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
    locator: Any = axes.xaxis.get_major_locator()
    locator.set_params(integer=True)
    if len(series) > 1:
        axes.legend(handlelength=1.2)
    return figure


@styled
def progress(
    history: Mapping[str, Sequence[float]],
    losses_S: np.ndarray,
    step: int,
    n_epochs: int,
    rows: Sequence[tuple[str, Any]],
    evaluated: str = "test",
) -> Figure:
    """A run in progress: its training loss, and beside it pictures or the accuracy.

    Args:
        history: curves of the complete epochs; may be empty.
        losses_S: loss of each step of the current epoch.
        step: number of complete steps in the current epoch.
        n_epochs: number of epochs of the whole run.
        rows: as in :func:`image_rows`; if empty, the accuracy is drawn.
        evaluated: which images the accuracy is of, ``test`` or ``validation``.
    """
    figure, epochs = new_figure(7.4, 2.4), history.get("epoch", ())
    grid = figure.add_gridspec(max(1, len(rows)), 12)
    axes = figure.add_subplot(grid[:, :5], xlabel="epoch", ylabel="training loss", xlim=(0, 1.02 * n_epochs))
    axes.plot(len(epochs) + np.arange(1, step + 1) / len(losses_S), losses_S[:step], color=GREY, linewidth=0.8)
    axes.plot(epochs, history.get("train_loss", ()), color=ACCENT, marker="o", markersize=3)
    if not rows:
        axes = figure.add_subplot(
            grid[:, 6:], xlabel="epoch", ylabel=f"{evaluated} accuracy (%)", xlim=(0, 1.02 * n_epochs)
        )
        axes.plot(epochs, history.get("test_accuracy", ()), color=ACCENT, marker="o", markersize=3)
    for i, (name, images) in enumerate(rows):
        for j, image in enumerate(images):
            axes = figure.add_subplot(grid[i, 7 + j])  # the columns before have the loss and the rows' names
            bare_image(axes, image)
            if j == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=5)
    return figure


@styled
def image_rows(
    rows: Sequence[tuple[str, Any]], titles: Sequence[str] = (), notes: Mapping[int, Sequence[str]] = MappingProxyType({})
) -> Figure:
    """Rows of small images, each with its name on the left.

    Args:
        rows: name and images (each HWC, uint8) of each row.
        titles: title of each column.
        notes: short texts for the corners of a row's images, by row number.
    """
    n_columns = len(rows[0][1])
    figure = Figure(figsize=(1.25 + 0.72 * n_columns, 0.74 * len(rows) + (0.25 if len(titles) else 0)))
    grid = figure.add_gridspec(
        len(rows), n_columns, wspace=0.06, hspace=0.06, left=1.25 / figure.get_figwidth(), right=0.998, bottom=0.004,
        top=1 - (0.25 / figure.get_figheight() if len(titles) else 0.004),
    )  # fmt: skip
    for i, (name, images) in enumerate(rows):
        for j, image in enumerate(images):
            axes = figure.add_subplot(grid[i, j])
            bare_image(axes, image)
            if j == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=5)
            if i == 0 and len(titles):
                axes.set_title(titles[j], fontsize=9, pad=3)
            if i in notes:
                outlined = [withStroke(linewidth=1.8, foreground=INK)]
                axes.text(
                    0.97, 0.04, notes[i][j], transform=axes.transAxes, ha="right", va="bottom", color="white",
                    fontsize=7.5, path_effects=outlined,
                )  # fmt: skip
    return figure


@styled
def strips(rows: Sequence[tuple[str, np.ndarray]], notes: Mapping[int, Sequence[str]] = MappingProxyType({})) -> Figure:
    """Rows of images without gaps, each with its name on the left: drawn faster than :func:`image_rows`, in a smaller file.

    Args:
        rows: name and images_nHWC (uint8) of each row.
        notes: short texts below a row's images, by row number.
    """
    side, n = 1.0, max(len(images) for _, images in rows)  # inches for the names, images in a row
    below = {i: 0.03 + 0.13 * max(1 + note.count("\n") for note in row) for i, row in notes.items()}  # inches for the notes
    width, height = side + n * TILE, len(rows) * TILE + sum(below.values())
    figure, top = Figure(figsize=(width, height)), height
    for i, (name, images) in enumerate(rows):
        top -= TILE
        axes = figure.add_axes((side / width, top / height, len(images) * TILE / width, TILE / height))
        bare_image(axes, np.concatenate(images, axis=1), "auto")
        axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=5)
        for j, note in enumerate(notes.get(i, ())):
            place: Any = {"ha": "center", "va": "top", "linespacing": 1.0}
            axes.text((j + 0.5) / len(images), -0.03, note, transform=axes.transAxes, fontsize=8, color=INK, **place)
        top -= below.get(i, 0)
    return figure


@styled
def mask_overview(masks: Mapping[str, np.ndarray]) -> Figure:
    """Masks as dark (masked) and light (visible) squares, from booleans masked_BGG on the grid of patches, by name."""
    rows = [(name, np.repeat(np.where(m, 60, 245)[..., None].astype(np.uint8), 3, -1)) for name, m in masks.items()]
    return image_rows(rows)


def reconstructions(folder: Path | None, n_images: int = 8) -> Figure:
    """The first test images of a pre-training run: masked, reconstructed, original."""
    if folder is None:
        return not_run(7.0)
    original, masked, painted = load_sheet(folder / "pictures.png", 3)[:, :n_images]
    return image_rows([("masked", masked), ("reconstructed", painted), ("original", original)])


def samplings(folders: Mapping[str, Path], n_images: int = 8) -> Figure:
    """The same test images with several kinds of masks, their reconstructions with PSNR (dB), and the originals."""
    if not folders:
        return not_run(7.0)
    rows: list[tuple[str, np.ndarray]] = []
    notes = {}
    for name, folder in folders.items():
        original, masked, painted = load_sheet(folder / "pictures.png", 3)[:, :n_images]
        run = PretrainParameters.check(read_json(folder / "parameters.json"))
        hidden = 1 - count_kept(run.model.n_patches, run.mask_ratio) / run.model.n_patches
        notes[len(rows) + 1] = [f"{value:.1f}" for value in psnr(painted, original, hidden)]
        rows += [(name, masked), ("", painted)]
    return image_rows([*rows, ("original", original)], notes=notes)


def psnr(painted_nHWC: np.ndarray, original_nHWC: np.ndarray, hidden_share: float) -> np.ndarray:
    """Peak signal-to-noise ratio of each uint8 picture over its masked pixels, in decibels: psnr_n.

    Args:
        painted_nHWC: equal to ``original_nHWC`` in visible patches.
        hidden_share: fraction of masked pixels, in (0, 1).
    """
    difference = painted_nHWC.astype(float) - original_nHWC
    mse_n = (difference**2).mean(axis=(1, 2, 3)) / hidden_share
    return 10 * np.log10(255**2 / np.maximum(mse_n, 1e-6))


def attention(folder: Path | None, n_images: int = 8) -> Figure:
    """Test images and the attention in the last block of a fine-tuned encoder, see class_attention."""
    if folder is None:
        return not_run(7.0, "not recorded")
    images, maps = load_sheet(folder / "attention.png", 2)[:, :n_images]
    return image_rows([("image", images), ("attention", maps)])


def neighbours(folder: Path | None, n_images: int = 8) -> Figure:
    """Test images, and below each its nearest training images by features of the frozen encoder."""
    if folder is None:
        return not_run(7.0, "not recorded")
    n_rows = 1 + len(read_json(folder / "metrics.json")["neighbours"]["labels"][0])
    query, *found = load_sheet(folder / "neighbours.png", n_rows)[:, :n_images]
    return image_rows([("test image", query), *((f"neighbour {k}", row) for k, row in enumerate(found, 1))])


@styled
def predictions(folder: Path | None) -> Figure:
    """Test images with the predicted class and its probability; mistakes are red and show the true class."""
    if folder is None:
        return not_run(6.2)
    metrics = read_json(folder / "metrics.json")
    return named_images(load_sheet(folder / "pictures.png", 1)[0], metrics["predictions"], metrics)


@styled
def mistakes(folder: Path | None) -> Figure:
    """The misclassified test images with the highest confidence, drawn as in :func:`predictions`."""
    if folder is None:
        return not_run(6.2, "not recorded")
    metrics = read_json(folder / "metrics.json")
    return named_images(load_sheet(folder / "mistakes.png", 1)[0], metrics["mistakes"], metrics)


def named_images(images: Sequence[np.ndarray], told: Mapping[str, Any], metrics: Mapping[str, Any]) -> Figure:
    """Up to ten images with their predicted class; ``told`` lists true class, predicted class and confidence."""
    figure, names = new_figure(6.2, 3.1), [short(name) for name in metrics["predictions"]["classes"]]
    places = figure.subplots(2, 5).flat
    for axes in places[len(told["true"]) :]:
        axes.axis("off")
    for axes, image, true, predicted, confidence in zip(
        places, images, told["true"], told["predicted"], told["confidence"], strict=False
    ):
        bare_image(axes, image)
        right = true == predicted
        axes.set_title(f"{names[predicted]}, {100 * confidence:.0f} %", color=INK if right else ACCENT, fontsize=9, pad=2)
        axes.set_xlabel("" if right else f"is: {names[true]}", color=ACCENT, fontsize=8, labelpad=1)
    return figure


@styled
def confusion(folder: Path | None) -> Figure:
    """Confusion matrix of a fine-tuning run: per cent of each true class (row) that is predicted as each class (column)."""
    if folder is None:
        return not_run(4.2)
    told = read_json(folder / "metrics.json")["predictions"]
    classes = told["classes"]
    if "confusion" not in told:
        predicted_n, true_n = load_predictions(folder / "predictions.png")
        return confused_pairs(*np.unique(np.stack([true_n, predicted_n], 1), axis=0, return_counts=True), classes)
    counts = np.array(told["confusion"])
    if len(classes) > MOST_CLASSES:
        return confused_pairs(np.argwhere(counts), counts[counts > 0], classes)
    share = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    classes = [short(name) for name in classes]
    figure = new_figure(4.2, 3.6)
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    axes.imshow(share, cmap="Greys", vmin=0, vmax=100)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.grid(visible=False)
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.5:
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 50 else INK)
    return figure


def confused_pairs(pairs_m2: np.ndarray, counts_m: np.ndarray, classes: Sequence[str], n_pairs: int = 15) -> Figure:
    """The pairs of classes that are confused most often, as per cent of the true class's images.

    Args:
        pairs_m2: true and predicted class of each pair that occurs, in order.
        counts_m: how often it occurs.
    """
    of_class_C = np.bincount(pairs_m2[:, 0], weights=counts_m, minlength=len(classes))
    share_m = np.where(pairs_m2[:, 0] == pairs_m2[:, 1], 0, 100 * counts_m / of_class_C[pairs_m2[:, 0]])
    most = [k for k in np.argsort(-share_m, kind="stable")[:n_pairs] if share_m[k] > 0]
    pairs = pairs_m2[most].tolist()
    figure = new_figure(5.4, 0.24 * max(1, len(pairs)) + 0.7)
    axes = figure.add_subplot(xlabel="predicted so (% of the true class)")
    axes.barh(range(len(pairs)), share_m[most], color=ACCENT, height=0.6)
    names = [f"{short(classes[true])} → {short(classes[predicted])}" for true, predicted in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return figure


def short(name: str, most: int = 18) -> str:
    """A class's name, shortened to fit beside or above a picture."""
    return plain(name if len(name) <= most else f"{name[: most - 1]}…")


def plain(name: str) -> str:
    """A name in which a dollar sign begins no formula."""
    return name.replace("$", r"\$")


@styled
def accuracies(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of every case: ours with all seeds and the interval, the student's and the paper's.

    Args:
        rows: in per cent ``ours`` (an Estimate or None), ``student`` and ``paper`` (numbers or None) of each case ``name``.
    """
    figure = new_figure(6.4, 0.42 * len(rows) + 0.9)
    axes = figure.add_subplot(xlabel="test accuracy after fine-tuning (%)")
    for y, row in enumerate(rows):
        if ours := row["ours"]:
            axes.errorbar(ours.mean, y, xerr=ours.half_width, fmt="o", color=ACCENT, capsize=3, markersize=6, zorder=3)
            if len(ours.values) > 1:
                axes.plot(ours.values, [y] * len(ours.values), "|", color=ACCENT, markersize=9, alpha=0.6)
        for source, (_, marker, colour) in PUBLISHED_MARKS.items():
            if row[source] is not None:
                axes.plot(row[source], y, marker, color=colour, markersize=5, markerfacecolor="none")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", visible=False)
    axes.plot([], [], "o", color=ACCENT, label="this study", markersize=5)
    for source, (label, marker, colour) in PUBLISHED_MARKS.items():
        if any(row[source] is not None for row in rows):
            axes.plot([], [], marker, color=colour, markerfacecolor="none", label=label, markersize=5)
    figure.legend(loc="outside upper center", ncols=3, handletextpad=0.2, columnspacing=1.2)
    return figure


@styled
def ratios(rows: Mapping[float, Mapping[str, Estimate | None]], quantity: str, label: str) -> Figure:
    """One accuracy against the masking ratio, with intervals.

    Args:
        rows: estimates in per cent, by ratio and quantity.
        quantity: the quantity to draw.
        label: label of the vertical axis.
    """
    points = {ratio: point for ratio, values in rows.items() if (point := values[quantity])}
    if len(points) < 2:
        return not_run(3.3)
    figure = new_figure(3.3, 2.4)
    axes = figure.add_subplot(xlabel="masking ratio (%)", ylabel=label)
    x, y = [100 * ratio for ratio in points], [point.mean for point in points.values()]
    axes.plot(x, y, color=ACCENT, marker="o", markersize=5)
    for ratio, point in points.items():
        axes.plot([100 * ratio] * len(point.values), point.values, "_", color=ACCENT, alpha=0.5, markersize=9)
        axes.errorbar(100 * ratio, point.mean, yerr=point.half_width, color=ACCENT, capsize=3)
    axes.set_xticks(x)
    axes.margins(x=0.12, y=0.2)
    return figure


@styled
def lengths(rows: Mapping[int, Mapping[str, Estimate]]) -> Figure:
    """Accuracy against the length of pre-training, with intervals.

    Args:
        rows: estimates in per cent, by epochs and kind of masks.
    """
    figure = new_figure(4.6, 2.8)
    axes = figure.add_subplot(xlabel="epochs of pre-training", ylabel="test accuracy (%)", xscale="log")
    names = dict.fromkeys(name for row in rows.values() for name in row)
    for place, (name, colour) in enumerate(zip(names, COLOURS * 9, strict=False)):
        points = {epochs: row[name] for epochs, row in rows.items() if name in row}
        x = [epochs * 1.02 ** (place - 1) for epochs in points]  # side by side, so that intervals do not cover each other
        axes.plot(x, [point.mean for point in points.values()], color=colour, marker="o", markersize=4, label=name)
        for at, point in zip(x, points.values(), strict=True):
            axes.plot([at] * len(point.values), point.values, "_", color=colour, alpha=0.5, markersize=7)
            axes.errorbar(at, point.mean, yerr=point.half_width, color=colour, capsize=3)
    axes.set_xticks(list(rows), [str(epochs) for epochs in rows])
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.legend(handlelength=1.2)
    return figure


@styled
def environment(provenance: Mapping[str, Any], dataset: str) -> Figure:
    """The steps from a study's parameters to its report, with versions and machine."""
    if not provenance:
        return not_run(7.2)
    versions = provenance["versions"]
    steps = [
        ("params/", "one YAML file"),
        ("Snakemake", versions.get("snakemake", "")),
        ("papermill", versions.get("papermill", "")),
        ("mae_core", f"torch {versions.get('torch', '')}"),
        ("outputs/", "curves, metrics"),
        ("nbconvert", versions.get("nbconvert", "")),
        ("report/", "HTML and PDF"),
    ]
    figure = Figure(figsize=(7.2, 1.55))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, len(steps)), ylim=(0, 1.5))
    axes.axis("off")
    for x, (name, detail) in enumerate(steps):
        code = name in ("Snakemake", "papermill", "mae_core", "nbconvert")
        box = FancyBboxPatch(
            (x + 0.09, 0.72), 0.82, 0.62, boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="#f6f4ee" if code else "white", edgecolor=ACCENT if code else GREY, linewidth=0.9,
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(x + 0.5, 1.12, name, ha="center", va="center", fontsize=10.5, color=INK)
        axes.text(x + 0.5, 0.89, detail, ha="center", va="center", fontsize=8.5, color="#555555")
        if x:
            axes.annotate("", (x + 0.08, 1.03), (x - 0.08, 1.03), arrowprops={"arrowstyle": "->", "color": INK, "lw": 0.9})
    axes.text(len(steps) / 2, 0.42, provenance["device"], ha="center", va="center", fontsize=10, color=INK)
    detail = f"{provenance['platform']}; {provenance['precision']} matrix products; data: {plain(dataset)}"
    axes.text(len(steps) / 2, 0.16, detail, ha="center", va="center", fontsize=9, color="#555555")
    return figure


@styled
def not_run(width: float, why: str = "not run") -> Figure:
    """A placeholder for a figure whose runs are missing."""
    figure = Figure(figsize=(width, 0.6))
    figure.text(0.5, 0.5, why, ha="center", va="center", color=GREY, fontsize=12)
    return figure


def bare_image(axes: Axes, image: np.ndarray, interpolation: str = "nearest") -> None:
    """Show an image without ticks, grid or frame."""
    axes.imshow(image, interpolation=interpolation)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
