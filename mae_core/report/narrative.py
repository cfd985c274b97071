"""The report's sentences with numbers, verdicts or dates, generated from results."""

import datetime
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_core.report import published
from mae_core.report.claims import MATTERS, SMALLER, Claim, claims, measured, shown
from mae_core.report.figures import MOST_CLASSES
from mae_core.report.over_images import of_difference
from mae_core.report.parts import every_case, parts, references_left_out, tuned_only
from mae_core.report.statistics import estimate, signed
from mae_core.report.summary import LENGTHENED, Case, Summary, label_of, shared_by, shared_seeds
from mae_core.report.tables import number
from mae_core.study.parameters import FinetuneParameters, RunParameters
from mae_core.study.results import read_json
from mae_core.study.study import STAGES

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "shapes": "the package's own drawn shapes"}
MOST_NAMES = 12  # classes named in a sentence
VERDICTS = ("supported", "contradicted", "no difference that matters", "undecided", "not run")


def newest(summary: Summary) -> dict[str, Any]:
    """The provenance of the latest run; empty if nothing has run."""
    return max(summary.records("provenance"), key=lambda provenance: provenance["finished"], default={})


def byline(summary: Summary) -> str:
    """Study, seeds, date of the last run, commit."""
    provenance = newest(summary)
    if not provenance:
        return f"Study *{summary.name}*: nothing has run yet."
    finished, commit = datetime.datetime.fromisoformat(provenance["finished"]), provenance["commit"]
    commit = commit[:9] if commit else f"none ({provenance.get('commit_missing', 'no git checkout')})"
    return f"Study *{summary.name}*, {seeds(summary)}. Last run: {finished.day} {finished:%B %Y}, commit {commit}."


def seeds(summary: Summary) -> str:
    """The number of seeds, in words."""
    return count(len(summary.seeds), "seed")


def count(n: int, noun: str) -> str:
    """A number and its noun, singular or plural."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(words: Sequence[str]) -> str:
    """Words as a list within a sentence: a, b and c."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def seeds_of(cases: list[Case]) -> str:
    """The numbers of the seeds that cases share, in words; empty without one."""
    seeds = [str(seed) for seed in sorted(shared_by(cases))]
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}" if seeds else ""


def same_seeds(cases: list[Case]) -> str:
    """Which seeds all rows of a table use; empty without one."""
    seeds = seeds_of(cases)
    return f"All rows use {seeds}." if seeds else ""


def seed_numbers(summary: Summary) -> list[int]:
    """The number of seeds of each case with an accuracy; of a study that only pre-trains, with a loss."""
    last = "accuracy" if summary.fine_tuned else "loss"
    return [n for case in summary.all_cases.values() if (n := len(case.values(last)))]


def intervals(summary: Summary) -> str:
    """The meaning of ±, or why there are no intervals."""
    numbers = seed_numbers(summary)
    several = [n for n in numbers if n > 1]
    if not several:
        results = "accuracies" if summary.fine_tuned else "results"
        order = " and the order of the cases depend" if len(numbers) > 1 else " depend"
        return (
            f"{'No case has more than' if len(summary.seeds) > 1 else 'There is'} one seed, so there are no intervals over "
            f"seeds: how much the {results}{order} on the seed is unknown."
        )
    least, most = min(several), max(several)
    number_of = f"{most}" if most == least else f"{least} to {most}"
    single = "; a case with one seed has none" if 1 in numbers else ""
    return (
        f"± is the half-width of the 95 % interval of the mean over the {number_of} seeds that a case finished ("
        f"{t_distribution(summary)}{single}); differences are paired by seed. It covers the choice of "
        f"seeds{'; [Table 10](#tab-chance) adds the test images' if 'tab-chance' in parts(summary) else ''}."
    )


def t_distribution(summary: Summary) -> str:
    """The name of the distribution behind the intervals; where no student wrote a report, one without a Student."""
    return either(summary, "Student's t", "t distribution")


def plus_minus(summary: Summary, *beside: Summary) -> str:
    """Where ± is explained, or its meaning if only studies beside this one have intervals; empty without intervals."""
    if max(seed_numbers(summary), default=0) > 1:
        return "± is explained in the [abstract](#abstract)."
    if any(n > 1 for study in beside for n in seed_numbers(study)):
        return f"± is the half-width of the 95 % interval of the mean over the seeds ({t_distribution(summary)})."
    return ""


def dataset(summary: Summary, markdown: bool = True) -> str:
    """The names of the runs' data sets, in Markdown or as plain text."""
    folder = Path(summary.data.get("folder", "")).name
    folder = escaped(folder) if markdown else folder
    own = f"images of one's own{f' ({folder})' if folder else ''}"
    return " and ".join(DATASETS.get(name, own) for name in sorted(summary.data)) or "nothing yet"


def either(summary: Summary, compared: str, alone: str = "") -> str:
    """The first text where the study is compared with the student's report and the paper; otherwise the second."""
    return compared if summary.compared else alone


def escaped(name: str) -> str:
    """A name in which nothing is read as Markdown or a formula."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$^=&-])", r"\\\1", name)


def introduction(summary: Summary) -> str:
    """The introduction."""
    compared = (
        "A student's report tested them on CIFAR-10 ([Krizhevsky](#ref-krizhevsky2009)) with a tiny model and trained each "
        "case once. We repeat its cases with the model and the recipe of [Table 11](#tab-recipe)."
    )
    then = (
        "is then fine-tuned to classify images."
        if summary.fine_tuned
        else "can then be fine-tuned to classify images; here, no case has been fine-tuned."
    )
    does = ["report the accuracy of the last epoch"] if summary.fine_tuned else []
    does += ["compare cases by the seeds that they share"]
    does += ["judge every claim by a fixed rule"] if "tab-claims" in parts(summary) else []
    return (
        "A masked autoencoder (MAE) masks most patches of an image, encodes the visible ones, and learns to reconstruct "
        "the masked ones ([He et al.](#ref-he2021)). Its encoder, a vision transformer ([Dosovitskiy et "
        f"al.](#ref-dosovitskiy2021)), {then} Two design choices matter most: masked "
        "patches do not enter the encoder, and 75 % of the patches are masked. The paper established both on ImageNet "
        "with models of hundreds of millions of parameters. "
        f"{either(summary, compared, f'We apply the method to {dataset(summary)}.')} We {listed(does)}."
    )


def data(summary: Summary) -> str:
    """The images of a study of other data than the student's: their number, size and classes."""
    metrics = summary.records("metrics")
    run = next((case.pretrained for case in summary.all_cases.values() if case.pretrained), None) or finetuned(summary)
    if summary.compared or not metrics:
        return ""
    size = f"{run.image_size}×{run.image_size}"
    n_train, n_test = (max(m[name] for m in metrics if name in m) for name in ("n_train", "n_test"))
    names = [escaped(name) for name in summary.classes]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    classes = f"{len(names)} classes: {', '.join(names[:MOST_NAMES])}{more}" if names else "classes are not used"
    return f"**Data.** {n_train:,} training and {n_test:,} test images of {size} pixels; {classes}.\n\n"


def references(summary: Summary) -> dict[str, str]:
    """The references that the report cites."""
    left_out = references_left_out(summary)
    return {label: text for label, text in published.REFERENCES.items() if label not in left_out}


def main_caption(summary: Summary) -> str:
    """The caption of the main table."""
    if not summary.fine_tuned:
        return f"Results of {every_case(summary)}: error on masked pixels of test images, and cost."
    theirs = either(summary, ", with the student's and the paper's")
    return (
        f"Results of {every_case(summary)}: test accuracy (%) after fine-tuning in the last epoch{theirs}; in the best "
        "epoch; probes of the frozen encoder (%); and cost."
    )


def main_notes(summary: Summary) -> str:
    """The notes below the main table."""
    of_pretraining = "images a second and peak memory: pre-training (all three: medians over the seeds). "
    if not summary.fine_tuned:
        flops = f"FLOPs: one image's forward pass, relative to {summary.default.label}; minutes: with data and evaluation; "
        return f"{flops}{of_pretraining}{several_machines(summary)}{plus_minus(summary)}"
    models = "Student: ViT-T/2 on CIFAR-10. Paper: ViT-L on ImageNet-1k, [He et al.](#ref-he2021). "
    return (
        f"{either(summary, models)}*Best epoch* is chosen on the test images, so it can be too high. The probes "
        "read the mean patch token of the encoder before fine-tuning; from scratch, that is a random encoder. FLOPs: one "
        "image's forward pass in pre-training; minutes: both stages, with data and evaluation; "
        f"{of_pretraining}{several_machines(summary)}{plus_minus(summary)}"
    )


def several_machines(summary: Summary) -> str:
    """Which cases ran on which machines, if not all ran on the same: speeds do not compare then; else empty."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for case in summary.cases.values():
        if devices := {p["device"] for stage in STAGES for p in case.read(stage, "provenance").values()}:
            groups.setdefault(tuple(sorted(devices)), []).append(case.label)
    if len({device for devices in groups for device in devices}) < 2:
        return ""
    if len(groups) == 1:
        return f"Times, speeds and memory come from several machines, on which every case ran: {' and '.join(*groups)}. "
    told = "; ".join(f"{' and '.join(devices)} ({', '.join(cases)})" for devices, cases in groups.items())
    return f"Times, speeds and memory come from different machines: {told}. "


def confusion_caption(summary: Summary) -> str:
    """The caption of the confusion matrix, or of the most confused pairs where there are many classes."""
    if len(summary.classes) > MOST_CLASSES:
        return "The pairs of classes that the fine-tuned model confuses most, in per cent of the true class's test images."
    return "Confusion matrix of the fine-tuned model over all test images, in per cent of each true class (row)."


def confusion_alt(summary: Summary) -> str:
    """The alternative text of the confusion matrix."""
    if len(summary.classes) > MOST_CLASSES:
        return "A bar for each of the most confused pairs of classes, the longest at the top."
    n = {10: "ten"}.get(len(summary.classes) or 10, str(len(summary.classes)))
    return f"A matrix of {n} by {n} classes, darkest on its diagonal."


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
    counts = {told["n_train"] for told in case.read("finetune", "metrics").values() if "n_train" in told}
    number_of = f"{min(counts or {run.train_images}):,}"
    labelled = f" It uses the labels of {number_of} training images." if run.train_images else ""
    read = "the mean of its patch tokens" if run.pooling == "mean" else "its class token"
    values = {name: getattr(run, name) for name in PARTS if getattr(run, name) != getattr(off, name)}
    added = listed([PARTS[name].format(value) for name, value in values.items()] or [""])
    return (
        f"**Fine-tuning.** The encoder sees all patches, and a linear head reads {read}. All weights are trained.{labelled}"
        f"{f' The recipe has {added}.' if added else ''} {scratch}"
        f"We report the {images} accuracy of the last epoch. The best epoch is chosen on the same {images} images, "
        "which can only raise the accuracy; we list it separately. [Table 11](#tab-recipe) lists the main "
        "parameters; each run's `parameters.json` has all of them."
    )


def finetuned(summary: Summary) -> FinetuneParameters:
    """The parameters of the default case's fine-tuning, or else of the first; the defaults if there is none."""
    recipes = [case.recipe("finetune") for case in (summary.default, *summary.all_cases.values())]
    return FinetuneParameters.check(next(filter(None, recipes), {}))


def n_validation(summary: Summary) -> int:
    """The number of validation images that classifiers, or without any autoencoders, evaluate instead of test images."""
    stage = "finetune" if summary.fine_tuned else "pretrain"
    recipes = [case.recipe(stage) for case in summary.all_cases.values()]
    return next((recipe["holdout"] for recipe in recipes if recipe), 0)


def evaluated(summary: Summary) -> str:
    """What kind of images are evaluated: test or validation."""
    return "validation" if n_validation(summary) else "test"


def attention(summary: Summary) -> str:
    """What the figures of attention and of nearest neighbours show."""
    told = ("patch tokens", "attend") if finetuned(summary).pooling == "mean" else ("class token", "attends")
    return (
        f"[Figure 9](#fig-attention) shows what the {told[0]} of the fine-tuned encoder {told[1]} to. "
        "[Figure 10](#fig-neighbours) shows nearest neighbours in the feature space of the frozen encoder, which was "
        "trained without labels."
    )


def attention_caption(summary: Summary) -> str:
    """The caption of the attention maps."""
    mean = finetuned(summary).pooling == "mean"
    tokens, over = ("patch tokens", "these and over heads") if mean else ("class token", "heads")
    return (
        f"Attention of the {tokens} to the patches in the last block after fine-tuning, averaged over {over}; each map is "
        "scaled from its lowest (black) to its highest value (white)."
    )


def choosing(summary: Summary) -> str:
    """A sentence if the study evaluates validation images; empty if it evaluates test images."""
    number = n_validation(summary)
    return (
        f"**This report chooses a recipe:** where it says test images, it means {number:,} validation images, held out "
        "from the training images. "
        if number
        else ""
    )


def abstract(summary: Summary) -> str:
    """The abstract; a study of drawn images says that it is a test, one of validation images that it is a choice."""
    if not newest(summary):
        return "Nothing has run yet."
    drawn = dataset(summary) == DATASETS["shapes"]
    notice = "**This report shows that the pipeline works, and nothing more:** a tiny model trained on drawings. "
    repeated = (
        "A student's report tested the masked autoencoder (MAE) of [He et al.](#ref-he2021) at small scale, with a tiny "
        "vision transformer. We repeat its cases, with the model and the recipe of [Table 11](#tab-recipe), so that every "
        "number comes from a run that anyone can reproduce."
    )
    alone = (
        "We pre-train a masked autoencoder (MAE, [He et al.](#ref-he2021)) at small scale, so that every number comes from "
        "a run that anyone with the images can reproduce."
    )
    if tuned_only(summary):
        alone = (
            "We fine-tune an encoder that was pre-trained elsewhere, as studies of the masked autoencoder (MAE, [He et "
            "al.](#ref-he2021)) do."
        )
    counted = "Claims about the method"
    judged, missing, corrected = shown(summary), "", ""
    tested = [claim for claim in judged if claim.directional]
    if summary.compared:
        counted, missing = f"We judge {len(judged)} claims, most of them from the report and the paper", not_run(summary)
        n_kept = sum(claim.survives for claim in tested)
        if tested and sum(claim.p is not None for claim in judged) > 1:
            rest, survive = "rests" if len(tested) == 1 else "rest", "survives" if n_kept == 1 else "survive"
            corrected = (
                f"Of the supported or contradicted ones, {len(tested)} {rest} on a statistical test, and {n_kept} of these "
                f"{survive} a correction for the number of claims. "
            )
    told = f"{counted}: {tally(judged)} ([Table 8](#tab-claims)). " if "tab-claims" in parts(summary) else ""
    told += f"{corrected}{interim(summary)}" if told else corrected
    return (
        f"{notice if drawn else ''}{choosing(summary)}{either(summary, repeated, alone)} On {dataset(summary)}, "
        f"{reached(summary)}. {told}{missing}{intervals(summary)}"
    )


def interim(summary: Summary) -> str:
    """That more seeds are planned than have run, in the whole study or in some of its cases; empty otherwise."""
    n, planned, last = len(summary.seeds), summary.planned, "accuracy" if summary.fine_tuned else "loss"
    if n < planned:
        return f"The verdicts are interim: {n} of {planned} planned seeds {'has' if n == 1 else 'have'} run. "
    behind = sum(0 < len(case.values(last)) < planned for case in summary.cases.values())
    if not behind:
        return ""
    of_cases = f"{behind} of {len(summary.cases)} cases {'has' if behind == 1 else 'have'}"
    return f"The verdicts are interim: {of_cases} not run with all {planned} planned seeds yet. "


def reached(summary: Summary) -> str:
    """What the default case reaches, within a sentence: its accuracy, or without one another's, or its PSNR."""
    default, images = summary.default, evaluated(summary)
    ours, theirs, quality = default.estimate("accuracy"), summary.scratch.estimate("accuracy"), default.estimate("psnr")
    if ours and default.pretrained:
        against = f", against {number(theirs)} % from scratch{same_recipe(summary)}" if theirs else ""
        top5 = f" (top-5: {number(found)} %)" if (found := default.estimate("top5")) else ""
        return (
            f"an encoder pre-trained with {default.masking} reaches {number(ours)} % {images} accuracy{top5} after "
            f"fine-tuning{against}"
        )
    told = f"masked pixels of {images} images are reconstructed with {number(quality)} dB (PSNR)"
    tuned = "no classifier was fine-tuned"
    if other := next((case for case in (default, *summary.all_cases.values()) if case.estimate("accuracy")), None):
        first = "training from scratch" if other.from_scratch else f"fine-tuning of the case *{other.label}*"
        against = f", against {number(theirs)} % from scratch{same_recipe(summary)}" if theirs and ours else ""
        tuned = f"{first} reaches {number(other.estimate('accuracy'))} % {images} accuracy{against}"
    return f"{told if quality else 'no case of this study has been pre-trained'}; {tuned}"


def tally(judged: Sequence[Claim]) -> str:
    """How many claims have each verdict, within a sentence."""
    verdicts = [claim.verdict.split(" (")[0] for claim in judged]
    return ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS if word in verdicts)


def not_run(summary: Summary) -> str:
    """The student's cases that have no accuracy, or without fine-tuning no loss; empty if all have one."""
    last = "accuracy" if summary.fine_tuned else "loss"
    missing = [label_of(*masks) for masks in published.STUDENT if not summary.find(*masks).values(last)]
    missing += ["training from scratch"] if summary.fine_tuned and not summary.scratch.values(last) else []
    return (
        f"Of the student's cases, {listed(missing)} {'has' if len(missing) == 1 else 'have'} not run. " if missing else ""
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
    told = summary.default.read("pretrain", "metrics").values()
    counted = {f" Encoder and decoder together have {m['n_parameters']:,} parameters." for m in told if "n_parameters" in m}
    sees = "the visible patches only"
    if run.mask_tokens_in_encoder:
        sees = "all patches, with a mask token in place of each masked one"
    return (
        f"{data(summary)}{encoder(run)}; the decoder has "
        f"{count(run.decoder_depth, 'block')} of width {run.decoder_width}.{''.join(counted)} The encoder sees "
        f"{sees}; the decoder gets its output, with a learned mask token in place of each masked "
        f"patch, and predicts {'normalized ' * run.norm_pix}pixels.{resized(summary)}"
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
    told = [m["positions"] for m in case.read("finetune", "metrics").values() if "positions" in m]
    positions = f" Before fine-tuning, positions were {told[0]}." if told else ""
    first, tuned = (case.pretrained and case.pretrained.image_size), finetuned(summary).image_size
    if not case.values("accuracy") or first in (None, tuned):
        return positions
    return (
        f" This is the size in pre-training, {first}×{first} pixels; in fine-tuning, and for all accuracies after it, "
        f"images have {tuned}×{tuned} pixels.{positions}"
    )


def reconstruction_caption(case: Case) -> str:
    """The caption of the reconstructions, with the mean PSNR."""
    psnr = case.estimate("psnr")
    told = f" The mean PSNR of masked pixels, over all test images, is {number(psnr)} dB." if psnr else ""
    if case.pretrained and case.pretrained.norm_pix:
        told += " The model predicts normalized patches, so each has the mean and the deviation of the original."
    return f"Test images with masked patches, their reconstructions, and the originals ({case.label}).{told}"


def rule(summary: Summary) -> str:
    """The rule by which claims are judged."""
    published_ones = (
        f"Every difference of the student's and the paper's that we repeat is larger than {MATTERS:g} points. Losses, PSNR "
        "and memory have no such bound, because neither source says which difference of them would matter."
    )
    return (
        "We judge each claim that one case is better than another by the 95 % interval of their difference, paired by "
        "seed. The claim is *supported* if the interval lies above zero, *contradicted* if it lies below zero, *no "
        f"difference that matters* if it contains zero and lies within ± {MATTERS:g} points of accuracy, and *undecided* "
        f"otherwise; *{SMALLER}* marks a supported or contradicted difference whose interval lies within the same "
        f"bounds. {either(summary, published_ones, 'Losses, PSNR and memory have no such bounds.')} A verdict says what "
        "holds for the model and the recipe of [Table 11](#tab-recipe); a larger model may give another."
    )


def correction(summary: Summary) -> str:
    """What is left of the verdicts after a correction for their number; with one seed, that nothing can be said."""
    found = claims(summary)
    tested = [claim for claim in found if claim.p is not None]
    if not tested:
        why = "There is one seed" if len(summary.seeds) == 1 else "No claim has several seeds with different results"
        return f"{why}, so we can give no p-value, no correction for the number of claims, and no smallest difference."
    if len(tested) == 1:
        return "One claim has a p-value, so there is no number of claims to correct for."
    decided = [claim for claim in tested if claim.directional]
    lost = [f"“{claim.statement}”" for claim in decided if not claim.survives]
    n_kept = len(decided) - len(lost)
    text = (
        f"Judged one by one, {len(decided)} of the {len(tested)} claims with a p-value "
        f"{'is' if len(decided) == 1 else 'are'} supported or contradicted. With Holm's correction for all "
        f"{len(tested)}, {n_kept} of these verdicts {'survives' if n_kept == 1 else 'survive'}"
    )
    return f"{text}; {'this one does' if len(lost) == 1 else 'these do'} not: {', '.join(lost)}." if lost else f"{text}."


def unlike(summary: Summary) -> str:
    """What differs, beside the masks, between cases that are compared by seed; empty if nothing does."""
    told = [f"{name}, {stage} ({words})" for name, stage, words in summary.other_recipes()]
    more = f" These cases differ from the others in more than their masks: {'; '.join(told)}." if told else ""
    stages = {"pre-training": precisions(summary, "pretrain"), "fine-tuning": precisions(summary, "finetune")}
    if stages["pre-training"] == stages["fine-tuning"]:
        stages = {"training": stages["fine-tuning"]}
    kinds = [
        f"{stage} of {words} ({'seeds' if len(numbers) > 1 else 'seed'} {' and '.join(numbers)})"
        for stage, found in stages.items()
        for words, numbers in found.items()
    ]
    if not kinds:
        return more
    return (
        f"{more} Some cases that we compare were trained in different precisions: {'; '.join(kinds)}. Their differences "
        "contain what the precision changes, which this study does not measure."
    )


def precisions(summary: Summary, stage: str) -> dict[str, list[str]]:
    """Which cases were trained in another precision than most with the same seed, in words, and with which seeds."""
    kinds: dict[int, dict[str, list[str]]] = {}  # seed -> precision -> cases
    for case in summary.all_cases.values():
        for seed, provenance in case.read(stage, "provenance").items():
            kinds.setdefault(seed, {}).setdefault(provenance["precision"], []).append(case.label)
    found: dict[str, list[str]] = {}
    for seed, cases in sorted(kinds.items()):
        *fewer, most = sorted(cases, key=lambda name: len(cases[name]))
        if fewer:
            those = ", ".join(f"{' and '.join(cases[name])} in {name}" for name in fewer)
            found.setdefault(f"{those}, of the others in {most}", []).append(str(seed))
    return found


def over_images(summary: Summary) -> str:
    """What the intervals over test images mean, and where they are missing."""
    default, n = summary.default, summary.default.n_test
    shown_n = f", for {n:,} images" if n else ""
    several = " With several seeds it is the widest that their mean allows." if len(summary.seeds) > 1 else ""
    text = (
        f"*Seeds*: half the 95 % interval over seeds ({t_distribution(summary)}). *Images*: half the 95 % interval over "
        f"test images. For an accuracy it is Wilson's ([Wilson](#ref-wilson1927)){shown_n}.{several} For a difference it "
        "comes from a paired bootstrap ([Efron and Tibshirani](#ref-efron1993)): both cases are evaluated "
        "on the same images, drawn with replacement."
    )
    compared = [case for case in summary.cases.values() if case is not default and case.beats(default, "accuracy")]
    missing = [case.label for case in compared if of_difference(case, default) is None]
    if not missing:
        return text
    which = "no difference has" if len(missing) == len(compared) else f"the differences of {', '.join(missing)} do not have"
    return (
        f"{text} Some runs were evaluated on other images, or did not record which images they classify correctly, so "
        f"{which} an interval over images."
    )


def lengths(summary: Summary) -> str:
    """Whether more pre-training changes the order of masks, of those that ran at every length."""
    found = summary.lengths()
    if not found:
        return "No two kinds of masks have run at every length with the same seed, so we cannot compare their order."
    labels = [
        label for label in (label_of(*masks) for masks in LENGTHENED) if all(label in cases for cases in found.values())
    ]
    if len(labels) < 2 or not all(cases[label].values("accuracy") for cases in found.values() for label in labels):
        return "No two kinds of masks have run at every length with the same seed, so we cannot compare their order."
    orders = {epochs: order([cases[label] for label in labels], labels) for epochs, cases in found.items()}
    told = "; ".join(f"after {epochs} epochs, {', '.join(names)}" for epochs, names in orders.items())
    same = len({tuple(names) for names in orders.values()}) == 1
    text = f"Best first: {told}. The order of the means is {'the same at every length' if same else 'not the same'}."
    (short, first), *_, (long, last) = found.items()
    base, *others = labels
    if base == label_of(*LENGTHENED[0]):
        changes = []
        for label in others:
            before, after = (cases[label].beats(cases[base], "accuracy") for cases in (first, last))
            if before and after:
                change = estimate([b - a for a, b in zip(before.values, after.values, strict=True)])
                changes.append(f"of {label} by {measured(change, 'accuracy')}")
        text += f" From {short} to {long} epochs, the difference from {base} changes: {', '.join(changes)}."
    seeds = {len(case.values("accuracy")) for cases in found.values() for case in cases.values()}
    return f"{text} With one seed, this may be chance." if seeds == {1} else text


def orders(studies: Sequence[Summary]) -> str:
    """The order of the kinds of masks in several studies; of the student's images, in his report and in the paper, too."""
    keys = [key for key in published.STUDENT if not key[2]]
    labels, told = [label_of(*key) for key in keys], {}
    for study in studies:
        ran = {
            label: case for label, key in zip(labels, keys, strict=True) if (case := study.find(*key)).values("accuracy")
        }
        same = [case for case in shared_seeds(list(ran.values())) if case.values("accuracy")]
        told[study.name] = (
            ", ".join(order(same, list(ran))) if len(same) > 1 else "fewer than two have run with the same seeds"
        )
    theirs = (("the student", published.STUDENT), ("the paper", published.PAPER)) if studies[0].compared else ()
    for name, numbers in theirs:
        told[name] = ", ".join(sorted(labels, key=lambda label: -numbers[keys[labels.index(label)]]))
    best_first = "; ".join(f"{name}: {labels}" for name, labels in told.items())
    images = {study.name: dataset(study) for study in studies}
    others = (
        f"images ({'; '.join(f'{name}: {kind}' for name, kind in images.items())}), "
        if len(set(images.values())) > 1
        else ""
    )
    return (
        f"The same cases in other studies, each with its own {others}model and length of training. The kinds of masks, "
        f"best first: {best_first}."
    )


def order(cases: Sequence[Case], labels: Sequence[str]) -> list[str]:
    """The labels of cases that have run, highest accuracy first."""
    means = {
        label: sum(v.values()) / len(v) for label, case in zip(labels, cases, strict=True) if (v := case.values("accuracy"))
    }
    return sorted(means, key=lambda label: -means[label])


def sensitivity(summary: Summary) -> str:
    """How much the order of the cases depends on the seed; empty where there is one case to order."""
    if "tab-sensitivity" not in parts(summary):
        return ""
    default = summary.default
    others = [case for case in summary.cases.values() if case is not default and case.beats(default, "accuracy")]
    if not others:
        return f"No case shares a seed with {default.label}."
    if len(summary.seeds) < 2:
        return (
            "There is one seed, so the variation over seeds is unknown: each difference is a single draw, and the order of "
            "the cases may be chance."
        )
    accuracies = {case.label: case.values("accuracy") for case in (default, *others)}
    complete = sorted(set.intersection(*(set(values) for values in accuracies.values())))
    highest = {k: max(values[k] for values in accuracies.values()) for k in complete}
    best = {k: tuple(label for label, values in accuracies.items() if values[k] == highest[k]) for k in complete}
    named = ""
    if len(best) > 1 and len(set(best.values())) == 1 and len(best[complete[0]]) == 1:
        named = (
            f"Of these {len(accuracies)} cases, each of the {len(best)} seeds alone ranks {best[complete[0]][0]} first. "
        )
    elif len(best) > 1 and len(set(best.values())) == 1:
        named = f"With each seed, {listed(best[complete[0]])} are equally good, and the best of {len(accuracies)} cases. "
    elif len(best) > 1:
        told = "; ".join(f"seed {k}: {listed(labels)}" for k, labels in best.items())
        named = f"The seeds disagree on the best of these {len(accuracies)} cases ({told}). "
    differences = {case.label: found.values for case in others if (found := case.beats(default, "accuracy"))}
    repeated = {label: values for label, values in differences.items() if len(values) > 1}
    if not repeated:
        return f"No case shares several seeds with {default.label}, so the variation over seeds is unknown."
    turned = [label for label, values in repeated.items() if min(values) < 0 < max(values)]
    equal = [label for label, values in repeated.items() if 0 in values and label not in turned]
    if turned or equal:
        signs = (
            f"The sign of the difference from {default.label} depends on the seed for {listed(turned)}. " if turned else ""
        )
        have = "has" if len(equal) == 1 else "have"
        zeros = f"With some seed, {listed(equal)} {have} exactly the accuracy of {default.label}." if equal else ""
        return f"{named}{signs}{zeros}".rstrip()
    return (
        f"{named}The difference from {default.label} has the same sign with every seed for "
        f"{'the only case' if len(repeated) == 1 else f'all {len(repeated)} cases'} with several seeds."
    )


def neighbours_caption(folder: Path | None, n_images: int = 8) -> str:
    """The caption of the nearest neighbours, with the number that have the class of their test image."""
    text = "Test images, and below each the training images with the most similar features in the frozen encoder."
    if folder is None:
        return text
    told = read_json(folder / "metrics.json")["neighbours"]
    pairs = zip(told["true"][:n_images], told["labels"][:n_images], strict=True)
    same = [label == true for true, labels in pairs for label in labels]
    return f"{text} Of the {len(same)} neighbours, {sum(same)} have the class of their test image."


def discussion(summary: Summary) -> str:
    """The discussion, in the order of the student's report; empty if there is nothing to say of a report without it."""
    default, scratch = summary.find("random", 0.75), summary.scratch
    tokens = summary.find("random", 0.75, mask_tokens=True)
    block50, block75, grid = summary.find("block", 0.5), summary.find("block", 0.75), summary.find("grid", 0.75)
    judged = claims(summary)
    tested = sum(claim.p is not None for claim in judged)
    verdicts = {
        claim.key: claim.verdict.replace(" (", ", ").replace(")", "")
        + ", but not after the correction" * (tested > 1 and claim.directional and not claim.survives)
        for claim in judged
    }
    paragraphs = []
    if gain := summary.default.beats(scratch, "accuracy"):
        probe = summary.default.beats(scratch, "linear")
        also = f", and a linear probe of the frozen encoder by {measured(probe, 'linear')}" if probe else ""
        throughout = verdicts["every epoch"]
        paragraphs.append(
            f"**Pre-training** changes the accuracy by {measured(gain, 'accuracy')} compared with training from "
            f"scratch{also}. Verdict on the claim that it helps: {verdicts['gain']}"
            f"{'' if throughout == 'not run' else f'; that it helps after every epoch of fine-tuning: {throughout}'}."
        )
    change, ratio = tokens.beats(default, "accuracy"), tokens.ratio(default, "flops")
    if change and ratio:
        theirs = published.STUDENT["random", 0.75, True] - published.STUDENT["random", 0.75, False]
        student = f"The student found {signed(theirs, 1)} points at {published.STUDENT_FLOPS_RATIO:g}×. "
        found = either(summary, student)
        paragraphs.append(
            f"**Mask tokens in the encoder** change the accuracy by {measured(change, 'accuracy')} and multiply the FLOPs "
            f"of a forward pass by {ratio:.2f}. {found}Verdict on the claim that they lower the accuracy: "
            f"{verdicts['mask tokens']}."
        )
    sampled = {"block 50": block50, "block 75": block75, "grid 75": grid}
    statements = {claim.key: claim.statement for claim in judged}
    changes = [
        f"{measured(change, 'accuracy')} with {case.label} (“{statements[key]}”: {verdicts[key]})"
        for key, case in sampled.items()
        if (change := case.beats(default, "accuracy"))
    ]
    if changes:
        found_by_student = [published.STUDENT[case.masks] for case in sampled.values() if case.masks in published.STUDENT]
        student = listed([signed(value - published.STUDENT["random", 0.75, False], 1) for value in found_by_student])
        also = f" The student found {student} points." if len(found_by_student) == len(changes) else ""
        told = f"Compared with random 75 %, the accuracy changes by {listed(changes)}.{either(summary, also)}"
        paragraphs.append(f"**Mask sampling.** {told}")
    if ratio := block50.ratio(default, "flops"):
        paragraphs.append(
            f"An epoch of block 50 % costs {ratio:.2f} times the FLOPs of an epoch of random 75 %, because its encoder "
            f"sees twice as many patches. Equal epochs are therefore not equal compute. {equal_work(summary)}"
        )
    if told := best_ratios(summary):
        paragraphs.append(
            f"{told} Verdict on the claim that 75 % is the best ratio: {verdicts['ratio']}; for the linear probe: "
            f"{verdicts['linear ratio']}."
        )
    losses = [(loss, case.label) for case in (grid, default, block75) if (loss := case.estimate("loss"))]
    if len(losses) > 1:
        told = ", ".join(f"{label} {number(value, 4)}" for value, label in sorted(losses, key=lambda pair: pair[0].mean))
        paragraphs.append(
            f"**The difficulty of the task** shows in the test loss at 75 %, lowest first: {told}. The easiest task does "
            f"not have to give the best features{'; the accuracies measure that' if summary.fine_tuned else ''}."
        )
    if not paragraphs:
        return "There is nothing to discuss yet: no two cases can be compared." if summary.whole else ""
    return "\n\n".join(paragraphs)


def equal_work(summary: Summary) -> str:
    """Block 50 % compared with random 75 % at equal compute."""
    longer, block50 = summary.equal_work(), summary.find("block", 0.5)
    change, probe = (block50.beats(longer, quantity) for quantity in ("accuracy", "linear"))
    if not change or not longer.pretrained or not longer.work or not block50.work:
        return either(summary, "Random 75 % at equal compute has not run.")
    also = f", and the linear probe by {measured(probe, 'linear')}" if probe else ""
    return (
        f"Random 75 % trained for {longer.pretrained.epochs} epochs uses {longer.work / block50.work:.2f} times the "
        f"compute of block 50 %. Compared with it, block 50 % changes the accuracy by {measured(change, 'accuracy')}{also} "
        f"({seeds_of([longer, block50])})."
    )


def best_ratios(summary: Summary) -> str:
    """The best ratio of random masks for fine-tuning and the linear probe; empty with fewer than three ratios."""
    told, same = [], seeds_of(list(summary.ratios().values()))
    for quantity, name in (("accuracy", "fine-tuning"), ("linear", "the linear probe")):
        ratios = summary.ratios().items()
        means = {ratio: found.mean for ratio, case in ratios if (found := case.estimate(quantity))}
        if len(means) < 3:
            return ""
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        told.append(
            f"{name} is best at {100 * best:g} % ({number(means[best])} %) and worst at {100 * worst:g} % "
            f"({number(means[worst])} %)"
        )
    return f"**The masking ratio.** With the seeds that all ratios share ({same}), {'; '.join(told)}."


def recipe_notes(summary: Summary) -> str:
    """What the table of recipes does not say itself."""
    rate = "The highest learning rate is base_lr × batch_size / 256."
    if not any(run["augment"] == "crop-flip" for run in summary.records("parameters")):
        return rate
    return (
        f"{rate} *crop-flip* shifts each image by up to 4 pixels and flips it horizontally with a probability of one half."
    )


def left_out(summary: Summary) -> str:
    """The runs that are not shown, and why; empty if all are shown."""
    return f" Left out because their recipe or images differ: {'; '.join(summary.left_out)}." if summary.left_out else ""


def reproduce(summary: Summary) -> str:
    """How to reproduce the study, and the environment of its last run."""
    last = newest(summary)
    if not last:
        return "Nothing has run yet."
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return (
        f"`make report STUDY={summary.name}` runs what is missing and prints this report; with `AGAIN=1`, it trains "
        f"all cases again. The parameters are in `params/{summary.name}.yaml`; the files of each run are in "
        f"`outputs/{summary.name}/<case>/seed<k>/`. The last run used {last['device']} ({last['platform']}, "
        f"{last['precision']} matrix products) and {versions}. {machines(summary)}MD5 of the data: `{last['data_md5']}`."
        f"{left_out(summary)}"
    )


def machines(summary: Summary) -> str:
    """How many runs each kind of machine trained, by its precision, and how many went on elsewhere; else empty."""
    runs, text = summary.records("provenance"), ""
    if moved := sum("machines" in run for run in runs):
        text = f"{count(moved, 'training')} went on elsewhere after an interruption; the machine is the last one. "
    kinds = Counter((run["device"].split(",")[0], run["precision"]) for run in runs)
    if len(kinds) < 2:
        return text
    told = ", ".join(f"{n} {device} ({precision})" for (device, precision), n in sorted(kinds.items()))
    return f"Trainings by machine and precision of matrix products: {told}. {text}"
