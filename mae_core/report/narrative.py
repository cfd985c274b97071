"""The report's sentences that hold a number, a verdict or a date: each is made from results, none is typed by hand."""

import datetime
from pathlib import Path
from typing import Any

from mae_core.report import published
from mae_core.report.claims import claims, measured
from mae_core.report.statistics import signed
from mae_core.report.summary import Case, Summary
from mae_core.report.tables import number
from mae_core.study.results import read_json

DATASETS = {"cifar10": "CIFAR-10", "shapes": "the package's own drawn shapes"}


def newest(summary: Summary) -> dict[str, Any]:
    """The provenance of the run that finished last; empty if nothing has run."""
    told = [p for case in summary.all_cases.values() for p in case.read("finetune", "provenance").values()]
    return max(told, key=lambda p: p["finished"], default={})


def byline(summary: Summary) -> str:
    """Study, seeds, date of the last run, commit."""
    told = newest(summary)
    if not told:
        return f"Study *{summary.name}*: nothing has run yet."
    finished = datetime.datetime.fromisoformat(told["finished"])
    commit = (told["commit"] or "none")[:9]
    return f"Study *{summary.name}*, {seeds(summary)}. Last run: {finished.day} {finished:%B %Y}, commit {commit}."


def seeds(summary: Summary) -> str:
    """How many seeds, in words."""
    return count(len(summary.seeds), "seed")


def count(n: int, noun: str) -> str:
    """A number and its noun, in the right form."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def intervals(summary: Summary) -> str:
    """What the numbers after ± are, or why there are none."""
    if len(summary.seeds) < 2:
        return (
            "With one seed no interval can be given: how far another seed would have moved the accuracies, and the order "
            "of the cases, is not known."
        )
    most = max(len(case.values("accuracy")) for case in summary.all_cases.values())
    least = min(len(case.values("accuracy")) for case in summary.all_cases.values() if case.values("accuracy"))
    number_of = f"{most}" if most == least else f"{least} to {most}"
    return (
        f"± is the half-width of the 95 % interval of the mean over the {number_of} seeds that a case finished (Student's "
        "t); differences are paired by seed. It tells how far other seeds would move the mean, not other test images."
    )


def dataset(summary: Summary) -> str:
    """What was learned from."""
    used = {p["dataset"] for case in summary.cases.values() for p in case.read("finetune", "parameters").values()}
    return " and ".join(DATASETS[name] for name in sorted(used)) or "nothing yet"


def abstract(summary: Summary) -> str:
    """The study in one paragraph."""
    text = (
        "A student's report verified the masked autoencoder (MAE) of [He et al.](#ref-he2021) at small scale: a vision "
        "transformer that learns from images of which it sees a quarter. This is the same study, rebuilt so that every "
        f"number in it comes from a run that can be repeated. On {dataset(summary)}"
    )
    ours, scratch = (summary.find(*how).estimate("accuracy") for how in (("random", 0.75), (None,)))
    if not ours or not scratch:
        return text + ", the comparison of pre-training with training from scratch has not run."
    verdicts = [claim.verdict.split(" (")[0] for claim in claims(summary)]
    counts = {word: verdicts.count(word) for word in ("supported", "contradicted", "undecided", "not run")}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return (
        f"{text}, an encoder pre-trained with 75 % random masking reaches {number(ours)} % test accuracy after "
        f"fine-tuning, against {number(scratch)} % from scratch with the same recipe. Of {len(verdicts)} claims, most of "
        f"them of the report and of the paper, these runs leave {told} ([Table](#tab-claims)). {intervals(summary)}"
    )


def model(summary: Summary) -> str:
    """The model that ran, in words."""
    run = summary.find("random", 0.75).pretrained
    if not run:
        return "The default case has not been pre-trained."
    position = "learned" if run.variant == "report" else "fixed sine-cosine"
    told = summary.find("random", 0.75).read("pretrain", "metrics").values()
    counted = {
        f" Encoder and decoder together have {m['n_parameters']:,} parameters." for m in told if "n_parameters" in m
    }
    return (
        f"**Model.** Images of 32×32 pixels are cut into patches of {run.patch_size}×{run.patch_size}, so that there are "
        f"{run.model.n_patches}. The encoder has {count(run.depth, 'pre-norm block')} of width {run.width} with "
        f"{count(run.heads, 'head')}, a class token and {position} positions; the decoder has "
        f"{count(run.decoder_depth, 'block')} of width {run.decoder_width}.{''.join(counted)} The encoder sees the "
        "visible patches only; the decoder gets its output, with one learned mask token in the place of every hidden "
        "patch, and predicts pixels."
    )


def reconstruction_caption(case: Case) -> str:
    """What the reconstructions show, and how good they are on average."""
    psnr = case.estimate("psnr")
    told = f" Over all test images, the hidden pixels have a PSNR of {number(psnr)} dB." if psnr else ""
    return f"Test images as the encoder sees them, as the decoder paints them, and as they are ({case.label}).{told}"


def sensitivity(summary: Summary) -> str:
    """What one seed alone could have made us believe."""
    default = summary.find("random", 0.75)
    others = [case for case in summary.cases.values() if case is not default and case.beats(default, "accuracy")]
    if not others:
        return "No two cases have run with the same seed."
    if len(summary.seeds) < 2:
        return (
            "There is one seed, so that nothing tells how far another would have moved these differences: each of them is "
            "a single draw, and the order of the cases may be chance."
        )
    accuracies = {case.label: case.values("accuracy") for case in (default, *others)}
    complete = sorted(set.intersection(*(set(values) for values in accuracies.values())))
    best = {k: max(accuracies, key=lambda label: accuracies[label][k]) for k in complete}
    named = ""
    if len(best) > 1 and len(set(best.values())) == 1:
        named = f"Each of the {len(best)} seeds alone would have named the same best case, {best[complete[0]]}. "
    elif len(best) > 1:
        told = "; ".join(f"seed {k}: {label}" for k, label in best.items())
        named = f"Each seed alone would have named a best case, and not the same ({told}). "
    differences = {case.label: found.values for case in others if (found := case.beats(default, "accuracy"))}
    repeated = {label: values for label, values in differences.items() if len(values) > 1}
    if not repeated:
        return "No case has run with several seeds of random 75 %, so that no difference's scatter is known."
    turned = [label for label, values in repeated.items() if not (min(values) > 0 or max(values) < 0)]
    if turned:
        return f"{named}Against random 75 %, the sign of the difference depends on the seed for {', '.join(turned)}."
    return (
        f"{named}Against random 75 %, the difference has the same sign with every seed for "
        f"{'the only case' if len(repeated) == 1 else f'all {len(repeated)} cases'} that ran with several."
    )


def neighbours_caption(folder: Path | None, n_images: int = 8) -> str:
    """What the neighbours show, and how many of the pictured ones share the class of their test image."""
    text = (
        "Test images, and below each the training images whose features in the frozen encoder make the smallest angle with "
        "its own."
    )
    if folder is None:
        return text
    told = read_json(folder / "metrics.json")["neighbours"]
    pairs = zip(told["true"][:n_images], told["labels"][:n_images], strict=True)
    same = [label == true for true, labels in pairs for label in labels]
    return f"{text} Of the {len(same)} shown, {sum(same)} share their test image's class."


def discussion(summary: Summary) -> str:
    """What the numbers say, in the order of the student's report."""
    default, scratch = summary.find("random", 0.75), summary.find(None)
    tokens = summary.find("random", 0.75, mask_tokens=True)
    block50, block75, grid = summary.find("block", 0.5), summary.find("block", 0.75), summary.find("grid", 0.75)
    verdicts = [claim.verdict for claim in claims(summary)]
    paragraphs = []
    if gain := default.beats(scratch, "accuracy"):
        probe = default.beats(scratch, "linear")
        also = f", and a linear probe of the frozen encoder by {measured(probe, 'linear')}" if probe else ""
        paragraphs.append(
            f"**Pre-training** changes the accuracy against scratch by {measured(gain, 'accuracy')}{also}. The claim that "
            f"it helps is {verdicts[0]}; that it helps after every epoch of fine-tuning, {verdicts[1]}."
        )
    change, ratio = tokens.beats(default, "accuracy"), tokens.ratio(default, "flops")
    if change and ratio:
        theirs = published.STUDENT["random", 0.75, True] - published.STUDENT["random", 0.75, False]
        paragraphs.append(
            f"**Mask tokens in the encoder** change the accuracy by {measured(change, 'accuracy')} and multiply the FLOPs "
            f"of a forward pass by {ratio:.2f}. The student found {signed(theirs, 1)} points at "
            f"{published.STUDENT_FLOPS_RATIO:g}×. That they hurt is {verdicts[2]}."
        )
    changes = {case.label: case.beats(default, "accuracy") for case in (block50, block75, grid)}
    if told := ", ".join(f"{label} by {measured(change, 'accuracy')}" for label, change in changes.items() if change):
        paragraphs.append(f"**Mask sampling** changes the accuracy against random 75 %: {told}.")
    if ratio := block50.ratio(default, "flops"):
        paragraphs.append(
            f"An epoch of block 50 % costs {ratio:.2f} times the FLOPs of one of random 75 %, for its encoder sees twice "
            f"as many patches: equal epochs are not equal work. {equal_work(summary)}"
        )
    if told := best_ratios(summary):
        paragraphs.append(told)
    losses = [(loss, case.label) for case in (grid, default, block75) if (loss := case.estimate("loss"))]
    if len(losses) > 1:
        told = ", ".join(
            f"{label} {number(value, 4)}" for value, label in sorted(losses, key=lambda pair: pair[0].mean)
        )
        paragraphs.append(
            f"**How hard the task is** shows in the test loss at 75 %, lowest first: {told}. An easy task need not teach "
            "the best representation; the accuracies tell whether it did."
        )
    if not paragraphs:
        return "There is nothing to discuss yet: no two cases have run."
    return "\n\n".join([*paragraphs, intervals(summary)])


def equal_work(summary: Summary) -> str:
    """Block 50 % against a random 75 % that was trained until both had done the same work."""
    longer, block50 = summary.equal_work(), summary.find("block", 0.5)
    change, probe = (block50.beats(longer, quantity) for quantity in ("accuracy", "linear"))
    if not change or not longer.pretrained or not longer.work or not block50.work:
        return "Random 75 % at equal work has not run."
    also = f", and the linear probe by {measured(probe, 'linear')}" if probe else ""
    return (
        f"Against random 75 % trained for {longer.pretrained.epochs} epochs, {longer.work / block50.work:.2f} times "
        f"its work, it changes the accuracy by {measured(change, 'accuracy')}{also}."
    )


def best_ratios(summary: Summary) -> str:
    """Which ratio of random masking came out highest, fine-tuned and frozen; empty with fewer than three."""
    told = []
    for quantity, name in (("accuracy", "fine-tuning"), ("linear", "the linear probe")):
        ratios = summary.ratios().items()
        means = {ratio: found.mean for ratio, case in ratios if (found := case.estimate(quantity))}
        if len(means) < 3:
            return ""
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        lowest = f"lowest at {100 * worst:g} % with {number(means[worst])} %"
        told.append(f"{name} at {100 * best:g} % ({number(means[best])} %; {lowest})")
    return f"**The ratio** of random masking, highest in these runs: {', '.join(told)}."


def left_out(summary: Summary) -> str:
    """Which runs are not shown, and why; empty if all are."""
    return f" Left out, being of another recipe: {'; '.join(summary.left_out)}." if summary.left_out else ""


def reproduce(summary: Summary) -> str:
    """How to run it again, and on what it ran."""
    told = newest(summary)
    if not told:
        return "Nothing has run yet."
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    return (
        f"`make report STUDY={summary.name}` runs what has not run yet and prints this report; with `AGAIN=1`, its cases "
        "run anew. The parameters stand in "
        f"`params/{summary.name}.yaml`; those of a single run, its curves, metrics and provenance in "
        f"`outputs/{summary.name}/<case>/seed<k>/`. The last run used {told['device']} ({told['platform']}, "
        f"{told['precision']} matrix products) and {versions}. MD5 of the data: `{told['data_md5']}`.{left_out(summary)}"
    )
