"""The section on the method: data, masks, model, fine-tuning."""

from pathlib import Path

from mae_core.report.parts import parts
from mae_core.report.summary import Summary
from mae_core.report.text.words import count, dataset, escaped, evaluated, finetuned, listed
from mae_core.study.parameters import FinetuneParameters, RunParameters

MOST_NAMES = 12  # classes named in a sentence


def data(summary: Summary) -> str:
    """The images of a study: their number, size and classes."""
    metrics = summary.records("metrics")
    run = next((case.pretrained for case in summary.all_cases.values() if case.pretrained), None) or finetuned(summary)
    counts = [max((m[name] for m in metrics if name in m), default=0) for name in ("n_train", "n_test")]
    if not all(counts):  # nothing has run, or all ran before this was recorded
        return ""
    size = f"{run.image_size}×{run.image_size}"
    names = [escaped(name) for name in summary.classes]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    classes = f"{len(names)} classes: {', '.join(names[:MOST_NAMES])}{more}" if names else "classes are not used"
    known = dataset(summary)
    named = f"{known[0].upper()}{known[1:]}: " if summary.compared else ""
    n_train, n_test = counts
    return f"**Data.** {named}{n_train:,} training and {n_test:,} test images of {size} pixels; {classes}.\n\n"


# What fine-tuning can have beyond the student's recipe: parameter -> words for its value
PARTS = {
    "layer_decay": "layer-wise decay of the learning rate ({}; [Clark et al. 2020](https://arxiv.org/abs/2003.10555))",
    "drop_path": "drop path (up to {}; [Huang et al. 2016](https://arxiv.org/abs/1603.09382))",
    "label_smoothing": "label smoothing ({}; [Szegedy et al. 2016](https://arxiv.org/abs/1512.00567))",
    "mixup": "mixup (alpha {}; [Zhang et al. 2018](https://arxiv.org/abs/1710.09412))",
    "cutmix": "cutmix (alpha {}; [Yun et al. 2019](https://arxiv.org/abs/1905.04899))",
    "ema_decay": "an exponential moving average of the weights, which is evaluated in their place (decay {})",
}


def finetuning(summary: Summary) -> str:
    """How the models are fine-tuned and evaluated, with the parts of the recipe in use; empty if they are not."""
    if not summary.fine_tuned:
        return ""
    alone = "curves-scratch" not in parts(summary)
    scratch = "" if alone or not same_recipe(summary) else "*From scratch* is the same recipe with random initial weights. "
    run, off, images = finetuned(summary), FinetuneParameters(), evaluated(summary)
    case = summary.default if summary.default.folder("finetune") else summary.scratch
    counts = {metrics["n_train"] for metrics in case.read("finetune", "metrics").values() if "n_train" in metrics}
    number_of = f"{min(counts or {run.train_images}):,}"
    labelled = f" It uses the labels of {number_of} training images." if run.train_images else ""
    read = "the mean of its patch tokens" if run.pooling == "mean" else "its class token"
    values = {name: getattr(run, name) for name in PARTS if getattr(run, name) != getattr(off, name)}
    added = listed([PARTS[name].format(value) for name, value in values.items()] or [""])
    return (
        f"**Fine-tuning.** The encoder sees all patches, and a linear head reads {read}. All weights are trained.{labelled}"
        f"{f' The recipe has {added}.' if added else ''} {scratch}"
        f"We report the {images} accuracy of the last epoch. The best epoch is chosen on the same {images} images, "
        "which can only raise the accuracy; we list it separately. [Table 9](#tab-recipe) lists the main "
        "parameters; each run's `parameters.json` has all of them."
    )


def same_recipe(summary: Summary) -> str:
    """That training from scratch has the default case's recipe; empty if it has another."""
    others = {label for label, _, _ in summary.other_recipes()}
    return "" if summary.scratch.label in others else " with the same recipe"


def model(summary: Summary) -> str:
    """A description of the model."""
    run = summary.default.pretrained
    if not run:
        return tuned_model(summary)
    metrics = summary.default.read("pretrain", "metrics").values()
    counted = {
        f" Encoder and decoder together have {m['n_parameters']:,} parameters." for m in metrics if "n_parameters" in m
    }
    sees = "the visible patches only"
    predicted = "normalized pixels: those of each patch with mean 0 and variance 1" if run.norm_pix else "pixels"
    if run.mask_tokens_in_encoder:
        sees = "all patches, with a mask token in place of each masked one"
    return (
        f"{data(summary)}{encoder(run)}; the decoder has "
        f"{count(run.decoder_depth, 'block')} of width {run.decoder_width}.{''.join(counted)} The encoder sees "
        f"{sees}; the decoder gets its output, with a learned mask token in place of each masked "
        f"patch, and predicts {predicted}.{resized(summary)}"
    )


def tuned_model(summary: Summary) -> str:
    """A description of a model that was fine-tuned only, and of where its weights come from."""
    recipe = summary.default.recipe("finetune")
    if not recipe:
        return "The default case has not been pre-trained."
    run = FinetuneParameters.check(recipe)
    start = "The results of its pre-training are not there."
    if not run.from_own:
        name = run.others_weights or "/".join(Path(run.weights).parts[-5:])  # of a run: study, case, seed, stage, file
        start = (
            f"This study did not pre-train it: its weights are those of {escaped(name)}, and each run's `provenance.json` "
            f"has their checksum."
        )
    return f"{data(summary)}{encoder(run)}. {start}{resized(summary)}"


def encoder(run: RunParameters) -> str:
    """A description of the encoder, without a full stop."""
    position = "learned" if run.model.learned_positions else "fixed sine-cosine"
    return (
        f"**Model.** Images of {run.image_size}×{run.image_size} pixels are cut into patches of "
        f"{run.patch_size}×{run.patch_size}, which gives {run.model.n_patches} patches. The encoder has "
        f"{count(run.depth, 'pre-norm block')} of width {run.width} with {count(run.heads, 'head')}, a class token and "
        f"{position} positions"
    )


def resized(summary: Summary) -> str:
    """Both sizes and what became of the positions where fine-tuning had images of another size; empty if it had not."""
    case = summary.default
    changes = [m["positions"] for m in case.read("finetune", "metrics").values() if "positions" in m]
    positions = f" Before fine-tuning, positions were {changes[0]}." if changes else ""
    first, tuned = (case.pretrained and case.pretrained.image_size), finetuned(summary).image_size
    if not case.values("accuracy") or first in (None, tuned):
        return positions
    return (
        f" This is the size in pre-training, {first}×{first} pixels; in fine-tuning, and for all accuracies after it, "
        f"images have {tuned}×{tuned} pixels.{positions}"
    )


STUDENTS = {"random", "block", "grid"}  # kinds of masks, which a report beside the student's always explains
MASKS = {
    "random": "*Random* masks are drawn uniformly without replacement.",
    "block": "*Block* masks are unions of rectangles as in BEiT ([Bao et al.](#ref-bao2022)); the last rectangle is "
    "trimmed so that the count is exact.",
    "grid": "*Grid* masks keep one patch of every 2 × 2, the same one all over an image; which one is drawn for each "
    "image.",
}


def masks(summary: Summary) -> str:
    """The kinds of masks; empty in a report on a study that pre-trained nothing."""
    runs = [case.pretrained for case in summary.all_cases.values() if case.pretrained]
    if not runs and not summary.whole:
        return ""
    used = {run.mask_strategy for run in runs} | (STUDENTS if summary.whole else set())
    sentences = [text for kind, text in MASKS.items() if kind in used]
    sentences.append("Every mask of a kind hides the same number of patches.")
    if summary.whole or any(run.mask_tokens_in_encoder for run in runs):
        sentences.append(
            "In the ablation *mask tokens in the encoder*, mask tokens replace the masked patches in the encoder, too, and "
            "not only in the decoder."
        )
    return f"**Masks.** {' '.join(sentences)}"
