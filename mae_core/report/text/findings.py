"""The section on results: passages, captions, notes and alternative texts of its figures and tables."""

from pathlib import Path

from mae_core.report.case import Case, best_first, label_of
from mae_core.report.claims import measured
from mae_core.report.figures import MOST_CLASSES
from mae_core.report.parts import ON_REQUEST, parts
from mae_core.report.statistics import estimate
from mae_core.report.summary import KINDS, LENGTHENED, Summary
from mae_core.report.tables import number
from mae_core.report.text.words import either, every_case, finetuned, listed, plus_minus, tuned_only
from mae_core.study.results import read_json
from mae_core.study.study import STAGES


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
    several = "Times, speeds and memory come from several machines ([Table 5](#tab-cost)). "
    on_machines = several if several_machines(summary) else ""
    of_pretraining = "images a second and peak memory: pre-training (all three: medians over the seeds). "
    if not summary.fine_tuned:
        flops = f"FLOPs: one image's forward pass, relative to {summary.default.label}; minutes: with data and evaluation; "
        return f"{flops}{of_pretraining}{on_machines}{plus_minus(summary)}"
    random = "; from scratch, that is a random encoder" if "curves-scratch" in parts(summary) else ""
    models = "Student: ViT-T/2 on CIFAR-10. Paper: ViT-L on ImageNet-1k, [He et al.](#ref-he2021). "
    return (
        f"{either(summary, models)}*Best epoch* is chosen on the test images, so it can be too high. The probes "
        f"(linear, and k nearest neighbours) read the mean patch token of the encoder before fine-tuning{random}. FLOPs: "
        "one image's forward pass in pre-training (floating-point operations); minutes: both stages, with data and "
        f"evaluation; {of_pretraining}{on_machines}{plus_minus(summary)}"
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
    by_machine = "; ".join(f"{' and '.join(devices)} ({', '.join(cases)})" for devices, cases in groups.items())
    return f"Times, speeds and memory come from different machines: {by_machine}. "


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


def attention(summary: Summary) -> str:
    """What the figures of attention and of nearest neighbours show."""
    reader = ("patch tokens", "attend") if finetuned(summary).pooling == "mean" else ("class token", "attends")
    unlabelled = "" if tuned_only(summary) else ", which was trained without labels"
    return (
        f"[Figure 9](#fig-attention) shows what the {reader[0]} of the fine-tuned encoder {reader[1]} to. "
        f"[Figure 10](#fig-neighbours) shows nearest neighbours in the feature space of the frozen encoder{unlabelled}."
    )


def attention_caption(summary: Summary) -> str:
    """The caption of the attention maps."""
    mean = finetuned(summary).pooling == "mean"
    tokens, over = ("patch tokens", "these and over heads") if mean else ("class token", "heads")
    return (
        f"Attention of the {tokens} to the patches in the last block after fine-tuning, averaged over {over}; each map is "
        "scaled from its lowest (black) to its highest value (white)."
    )


def reconstruction_caption(case: Case) -> str:
    """The caption of the reconstructions, with the mean PSNR."""
    psnr = case.estimate("psnr")
    more = (
        f" The mean peak signal-to-noise ratio (PSNR) of masked pixels, over all test images, is {number(psnr)} dB."
        if psnr
        else ""
    )
    if case.pretrained and case.pretrained.norm_pix:
        more += " The model predicts normalized patches, so each has the mean and the deviation of the original."
    return f"Test images with masked patches, their reconstructions, and the originals ({case.label}).{more}"


def neighbours_caption(folder: Path | None, n_images: int = 8) -> str:
    """The caption of the nearest neighbours, with the number that have the class of their test image."""
    text = "Test images, and below each the training images with the most similar features in the frozen encoder."
    if folder is None:
        return text
    neighbours = read_json(folder / "metrics.json")["neighbours"]
    pairs = zip(neighbours["true"][:n_images], neighbours["labels"][:n_images], strict=True)
    same = [label == true for true, labels in pairs for label in labels]
    return f"{text} Of the {len(same)} neighbours, {sum(same)} have the class of their test image."


RECONSTRUCTIONS = """\
### Reconstructions

[Figure 2](#fig-reconstructions) shows reconstructions of test images by the default case. The masks of test images have a
fixed seed, so all runs with this kind of mask reconstruct the same patches."""

PREDICTIONS = """\
### Predictions

[Figure 4](#fig-predictions) shows the predictions of the fine-tuned default case for the first ten test images."""
CONFUSION = """\
### Mistakes

[Figure 7](#fig-confusion) shows which classes the fine-tuned default case confuses."""
MISTAKES = "[Figure 8](#fig-mistakes) shows the misclassified test images with the highest confidence."


def curves(summary: Summary) -> str:
    """The passage on the learning curves."""
    there = parts(summary)
    shown = "the loss of the default case in pre-training"
    if "curves-tuned" in there:
        shown += ", and its loss and accuracy in fine-tuning"
    if tuned_only(summary):
        shown = "the loss and accuracy of the default case in fine-tuning"
    scratch = " compared with\ntraining from scratch" if "curves-scratch" in there else ""
    return (
        f"### Learning curves\n\n[Figure 3](#fig-curves) shows {shown}{scratch}. "
        "With several seeds, a line is their mean and the band is their range."
    )


def curves_caption(summary: Summary) -> str:
    """The caption of the learning curves."""
    there = parts(summary)
    if "curves-tuned" not in there:
        return f"Pre-training loss, {summary.default.masking}."
    scratch = ", from pre-trained weights and from scratch" if "curves-scratch" in there else ""
    left = "no pre-training ran here" if tuned_only(summary) else f"pre-training loss, {summary.default.masking}"
    return f"Left: {left}. Middle and right: training loss and test accuracy of fine-tuning{scratch}."


def curves_alt(summary: Summary) -> list[str]:
    """The alternative text of each panel of the learning curves."""
    there = parts(summary)
    which = ", pre-trained and from scratch" if "curves-scratch" in there else ""
    tuned = [f"Fine-tuning loss by epoch{which}.", f"Test accuracy by epoch{which}."]
    first = "No pre-training ran here." if tuned_only(summary) else "Pre-training loss by epoch."
    return [first, *(tuned if "curves-tuned" in there else [])]


TOGETHER = (("random", 0.75), ("block", 0.5), ("block", 0.75), ("grid", 0.75))  # kinds of masks in one figure


def sampling(summary: Summary) -> str:
    """The passage on the kinds of masks, or on the accuracies alone where there is one kind."""
    if summary.whole:
        return (
            "### Mask sampling\n\n[Figure 5](#fig-samplings) shows the same test images under each kind of mask. We "
            "compare two choices: mask tokens in the encoder ([Table 2](#tab-tokens)), and the kind of mask "
            "([Table 3](#tab-sampling), [Figure 6](#fig-accuracy))."
        )
    said = {
        "fig-samplings": "[Figure 5](#fig-samplings) shows the same test images under each kind of mask.",
        "tab-tokens": "[Table 2](#tab-tokens) compares an encoder with mask tokens to one without.",
        "tab-sampling": "[Table 3](#tab-sampling) compares the kinds of masks.",
        "fig-accuracy": "[Figure 6](#fig-accuracy) shows the accuracy of every case.",
    }
    shown = {label: text for label, text in said.items() if label in parts(summary)}
    heading = "Accuracy" if shown.keys() == {"fig-accuracy"} else "Mask sampling"
    return f"### {heading}\n\n{' '.join(shown.values())}" if shown else ""


def samplings(summary: Summary) -> dict[str, dict[str, Path]]:
    """What the figure of the kinds of masks lets a reader choose: folders of runs by kind; first several kinds together."""
    kinds = summary.kinds
    together = {label: kinds[label] for label in (label_of(*masks) for masks in TOGETHER) if label in kinds}
    if len(together) < 2 and not summary.whole:
        together = kinds
    return {"kinds of masks": together, **{label: {label: folder} for label, folder in kinds.items()}}


def sampling_sources(summary: Summary) -> list[str]:
    """The runs that the figure of the kinds of masks shows, one of each kind."""
    found = [summary.find(*masks) for masks in dict.fromkeys([*TOGETHER, *KINDS])]
    return [case.sources("pretrain")[0] for case in found if case.label in summary.kinds]


def features(summary: Summary) -> str:
    """The passage on frozen features and the reconstruction error."""
    if not summary.fine_tuned:
        return "### Reconstruction error\n\n[Table 4](#tab-features) lists the error on masked pixels of test images."
    return (
        "### Frozen features and reconstruction error\n\nFine-tuning can compensate for poor features. "
        "[Table 4](#tab-features) therefore measures the encoder before fine-tuning: with a\nlinear probe (multinomial "
        "logistic regression) and k nearest neighbours (k = 20, [Wu et al.](#ref-wu2018)) on its frozen features, and by "
        "its reconstruction error."
    )


def features_caption(summary: Summary) -> str:
    """The caption of the table of frozen features."""
    what = "error on masked pixels of test images."
    if any(case.pretrained and case.pretrained.norm_pix for case in summary.cases.values()):
        what += " The PSNR of normalized pixels uses the mean and the deviation of each original patch, which helps it."
    before = " before fine-tuning: probes of the frozen encoder (%), and" if summary.fine_tuned else ":"
    return f"{every_case(summary).capitalize()}{before} {what}"


def ratio_and_work(summary: Summary) -> str:
    """The passage on the masking ratio and on equal compute, or that the runs for them are still to come."""
    there = parts(summary)
    ratio = (
        "[Table 11](#tab-ratio) and [Figure 11](#fig-ratio) vary the ratio of random masks, as figure 5 of "
        "[He et al.](#ref-he2021) does."
        if "tab-ratio" in there
        else "No second ratio of random masks has run yet."
    )
    work = "Block-wise masks\nof 50 % leave twice as many patches visible as random masks of 75 %, so an epoch costs more. "
    work += (
        "[Table 12](#tab-work) compares the two at\nequal compute: random 75 % is trained for more epochs, until both have "
        "used about the same number of FLOPs (within 5 %)."
        if "tab-work" in there
        else "A comparison at equal\ncompute, with more epochs of random 75 %, has not run yet."
    )
    passages = {"tab-ratio": ratio, "tab-work": work}
    shown = [label for label in passages if summary.whole or label in there]
    heading = "Masking ratio and equal compute" if len(shown) > 1 else "".join(map(ON_REQUEST.__getitem__, shown))
    return f"## {heading}\n\n{' '.join(map(passages.__getitem__, shown))}" if shown else ""


def lengths(summary: Summary) -> str:
    """Whether more pre-training changes the order of masks, of those that ran at every length."""
    found = summary.lengths()
    kinds = [label_of(*masks) for masks in LENGTHENED]
    labels = [kind for kind in kinds if found and all(kind in cases for cases in found.values())]
    if len(labels) < 2:
        return "No two kinds of masks have run at every length with the same seed, so we cannot compare their order."
    orders = {epochs: best_first({label: cases[label] for label in labels}) for epochs, cases in found.items()}
    ranked = "; ".join(f"after {epochs} epochs, {', '.join(names)}" for epochs, names in orders.items())
    same = len({tuple(names) for names in orders.values()}) == 1
    text = f"Best first: {ranked}. The order of the means is {'the same at every length' if same else 'not the same'}."
    (short, first), *_, (long, last) = found.items()
    base, *others = labels
    if base == label_of(*LENGTHENED[0]):
        changes = []
        for label in others:
            before, after = (cases[label].differences(cases[base], "accuracy") for cases in (first, last))
            change = estimate([after[seed] - before[seed] for seed in before])
            changes.append(f"by {measured(change, 'accuracy')} for {label}")
        text += f" From {short} to {long} epochs, the difference from {base} changes {listed(changes)}."
    seeds = {len(case.values("accuracy")) for cases in found.values() for case in cases.values()}
    return f"{text} With one seed, this may be chance." if seeds == {1} else text
