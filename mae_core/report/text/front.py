"""The title page: byline, abstract and introduction."""

import datetime
from collections.abc import Sequence

from mae_core.report import published
from mae_core.report.case import label_of
from mae_core.report.claims import Claim, shown
from mae_core.report.parts import parts
from mae_core.report.summary import Summary
from mae_core.report.tables import number
from mae_core.report.text.method import same_recipe
from mae_core.report.text.words import (
    DATASETS,
    dataset,
    either,
    evaluated,
    intervals,
    listed,
    n_validation,
    newest,
    seeds,
    tuned_only,
)

VERDICTS = ("supported", "contradicted", "no difference that matters", "undecided", "not run")


def byline(summary: Summary) -> str:
    """Study, seeds, date of the last run, commit."""
    provenance = newest(summary)
    if not provenance:
        return f"Study *{summary.name}*: nothing has run yet."
    finished, commit = datetime.datetime.fromisoformat(provenance["finished"]), provenance["commit"]
    commit = commit[:9] if commit else f"none ({provenance.get('commit_missing', 'no git checkout')})"
    return f"Study *{summary.name}*, {seeds(summary)}. Last run: {finished.day} {finished:%B %Y}, commit {commit}."


def introduction(summary: Summary) -> str:
    """The introduction."""
    compared = (
        "A student's report tested them on CIFAR-10 ([Krizhevsky](#ref-krizhevsky2009)) with a tiny model and trained each "
        "case once. We repeat its cases with the model and the recipe of [Table 9](#tab-recipe)."
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


def abstract(summary: Summary) -> str:
    """The abstract; a study of drawn images says that it is a test, one of validation images that it is a choice."""
    if not newest(summary):
        return "Nothing has run yet."
    drawn = dataset(summary) == DATASETS["shapes"]
    notice = "**This report shows that the pipeline works, and nothing more:** a tiny model trained on drawings. "
    repeated = (
        "A student's report tested the masked autoencoder (MAE) of [He et al.](#ref-he2021) at small scale, with a tiny "
        "vision transformer. We repeat its cases, with the model and the recipe of [Table 9](#tab-recipe), so that every "
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
        counted, missing = (
            f"We judge {len(judged)} claims, most of them from the student's report and the MAE paper",
            not_run(summary),
        )
        n_kept = sum(claim.survives for claim in tested)
        if tested and sum(claim.p is not None for claim in judged) > 1:
            rest, survive = "rests" if len(tested) == 1 else "rest", "survives" if n_kept == 1 else "survive"
            corrected = (
                f"Of the supported or contradicted ones, {len(tested)} {rest} on a statistical test, and {n_kept} of these "
                f"{survive} a correction for the number of claims. "
            )
    verdicts = f"{counted}: {tally(judged)} ([Table 6](#tab-claims)). {corrected}{interim(summary)}"
    return (
        f"{notice if drawn else ''}{choosing(summary)}{either(summary, repeated, alone)} On {dataset(summary)}, "
        f"{reached(summary)}. {verdicts if 'tab-claims' in parts(summary) else ''}{missing}{intervals(summary)}"
    )


def interim(summary: Summary) -> str:
    """That more seeds are planned than have run, in the whole study or in some of its cases; empty otherwise."""
    n, planned = len(summary.seeds), summary.planned
    numbers = [len(case.values(summary.last_quantity)) for case in summary.cases.values()]
    if n < planned:
        most = "at most " if any(0 < number < n for number in numbers) else ""
        return f"The verdicts are interim: {most}{n} of {planned} planned seeds {'has' if n == 1 else 'have'} run. "
    behind = sum(0 < number < planned for number in numbers)
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
    reconstructed = f"masked pixels of {images} images are reconstructed with {number(quality)} dB (PSNR)"
    tuned = "no classifier was fine-tuned"
    if other := next((case for case in (default, *summary.all_cases.values()) if case.estimate("accuracy")), None):
        first = "training from scratch" if other.from_scratch else f"fine-tuning of the case *{other.label}*"
        against = f", against {number(theirs)} % from scratch{same_recipe(summary)}" if theirs and ours else ""
        tuned = f"{first} reaches {number(other.estimate('accuracy'))} % {images} accuracy{against}"
    return f"{reconstructed if quality else 'no case of this study has been pre-trained'}; {tuned}"


def tally(judged: Sequence[Claim]) -> str:
    """How many claims have each verdict, within a sentence."""
    verdicts = [claim.verdict.split(" (")[0] for claim in judged]
    return ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS if word in verdicts)


def not_run(summary: Summary) -> str:
    """The student's cases that have no accuracy, or without fine-tuning no loss; empty if all have one."""
    last = summary.last_quantity
    missing = [label_of(*masks) for masks in published.STUDENT if not summary.find(*masks).values(last)]
    missing += ["training from scratch"] if summary.fine_tuned and not summary.scratch.values(last) else []
    return (
        f"Of the student's cases, {listed(missing)} {'has' if len(missing) == 1 else 'have'} not run. " if missing else ""
    )


def choosing(summary: Summary) -> str:
    """A sentence if the study evaluates validation images; empty if it evaluates test images."""
    n_images = n_validation(summary)
    return (
        f"**This report chooses a recipe:** where it says test images, it means {n_images:,} validation images, held out "
        "from the training images. "
        if n_images
        else ""
    )
