"""Which figures and tables a study's report has, and the passages that lead to them."""

from pathlib import Path

from mae_core.report.claims import claims
from mae_core.report.summary import KINDS, Case, Summary, label_of
from mae_core.report.tables import mask_token_rows, sampling_rows
from mae_core.study.parameters import FinetuneParameters

TUNED = ("predictions", "confusion", "mistakes", "attention", "neighbours")  # figures of a classifier
ON_REQUEST = {"tab-ratio": "Masking ratio", "tab-work": "Equal compute"}  # what `make sweep` adds, and the headings
TOGETHER = (("random", 0.75), ("block", 0.5), ("block", 0.75), ("grid", 0.75))  # kinds of masks in one figure


def parts(summary: Summary) -> set[str]:
    """The labels of the figures and tables that depend on which runs there are.

    A fine-tuned study on the student's images has all of them: what is missing there has yet to run. Any other study has
    what its own runs can fill. Of the runs on request, a report has what has run.
    """
    default, scratch = summary.default, summary.scratch
    n_tuned = sum(bool(case.values("accuracy")) for case in summary.all_cases.values())
    paired = any(case is not default and case.beats(default, "accuracy") for case in summary.cases.values())
    held = {
        **{f"fig-{name}": summary.fine_tuned for name in TUNED},
        "curves-tuned": summary.fine_tuned,
        "curves-scratch": bool(scratch.values("accuracy")),
        "fig-samplings": len(summary.kinds) > 1,
        "tab-tokens": summary.fine_tuned and len(mask_token_rows(summary)) > 2,  # a header and two rows
        "tab-sampling": summary.fine_tuned and len(sampling_rows(summary)) > 2,
        "fig-accuracy": n_tuned > 1,
        "tab-ratio": len(summary.ratios()) > 1,
        "tab-work": bool(summary.equal_work().pretrained),
        "tab-claims": any(claim.verdict != "not run" for claim in claims(summary)),
        "tab-sensitivity": paired,
        "tab-chance": summary.fine_tuned,
    }
    shown = {label for label, there in held.items() if there or (summary.whole and label not in ON_REQUEST)}
    return shown - {"fig-mistakes"} if faultless(default) else shown


def faultless(case: Case) -> bool:
    """Whether all its classifiers are right about every test image, so that there are no mistakes to show."""
    told = case.read("finetune", "metrics").values()
    return bool(told) and all(metrics.get("mistakes", {}).get("images") == [] for metrics in told)


PREDICTIONS = """\
### Predictions

[Figure 4](#fig-predictions) shows the predictions of the fine-tuned default case for the first ten test images."""

CONFUSION = """\
### Mistakes

[Figure 7](#fig-confusion) shows which classes the fine-tuned default case confuses."""

MISTAKES = "[Figure 8](#fig-mistakes) shows the misclassified test images with the highest confidence."

CLAIMS = """\
A claim about several cases, or about every epoch, needs all its comparisons, and one can contradict it;
[Table 8](#tab-claims) shows the comparison that decides. FLOPs are counted, so they need no interval.

**Smallest detectable difference.** *Detectable* is the smallest true difference that the paired t test at 5 % finds with
a probability of 80 %, if the seeds scatter as these do, in the unit of the measured difference (noncentral t
distribution, [Cohen](#ref-cohen1988), [Faul et al.](#ref-faul2007)); of several comparisons, the largest, or that of the
one that contradicts the claim. An undecided claim says nothing about smaller differences.

**Correction for the number of claims.** *p* is the p-value of the paired t test. For a claim that needs several
comparisons, it is the largest of their p-values (intersection–union rule, [Berger](#ref-berger1982)). For a claim that a
comparison contradicts, it is the smallest p-value of those that point against it, times the number of comparisons, and
must be below 5 %. *Holm* is p corrected for the number of claims ([Holm](#ref-holm1979)): among all verdicts with a
corrected p below 5 %, the probability of any error is at most 5 %. This holds for one look at the results. Whoever adds
seeds and judges again has more chances of an error, so verdicts are final only with the last planned seed."""

MASKS = {
    "random": "*Random* masks are drawn uniformly without replacement.",
    "block": "*Block* masks are unions of rectangles as in BEiT ([Bao et al.](#ref-bao2022)); the last rectangle is "
    "trimmed so that the count is exact.",
    "grid": "*Grid* masks keep the same one of every 2 × 2 patches.",
}


def masks(summary: Summary) -> str:
    """The kinds of masks."""
    runs = [case.pretrained for case in summary.all_cases.values() if case.pretrained]
    told = [text for kind, text in MASKS.items() if summary.whole or any(run.mask_strategy == kind for run in runs)]
    told.append("Every mask of a kind hides the same number of patches.")
    if summary.whole or any(run.mask_tokens_in_encoder for run in runs):
        told.append(
            "In the ablation *mask tokens in the encoder*, mask tokens replace the masked patches in the encoder, too, and "
            "not only in the decoder."
        )
    return f"**Masks.** {' '.join(told)}"


def tuned_only(summary: Summary) -> bool:
    """Whether the default case was fine-tuned from weights that this study did not train."""
    recipe = summary.default.recipe("finetune")
    return summary.default.pretrained is None and bool(recipe) and not FinetuneParameters.check(recipe).from_own


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
    told = {label: text for label, text in said.items() if label in parts(summary)}
    heading = "Accuracy" if told.keys() == {"fig-accuracy"} else "Mask sampling"
    return f"### {heading}\n\n{' '.join(told.values())}" if told else ""


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


def every_case(summary: Summary) -> str:
    """What the tables of cases hold: without those of the sweep, if it has run."""
    swept = any(case.values("loss") for case in summary.sweep.values())
    return "the main cases" if swept else "every case"


def features_caption(summary: Summary) -> str:
    """The caption of the table of frozen features."""
    told = "error on masked pixels of test images."
    if any(case.pretrained and case.pretrained.norm_pix for case in summary.cases.values()):
        told += " The PSNR of normalized pixels uses the mean and the deviation of each original patch, which helps it."
    if not summary.fine_tuned:
        return f"Every case: {told}"
    return f"{every_case(summary).capitalize()} before fine-tuning: probes of the frozen encoder (%), and {told}"


def ratio_and_work(summary: Summary) -> str:
    """The passage on the masking ratio and on equal compute, or that the runs for them are still to come."""
    there = parts(summary)
    ratio = (
        "[Table 5](#tab-ratio) and [Figure 11](#fig-ratio) vary the ratio of random masks, as figure 5 of "
        "[He et al.](#ref-he2021) does."
        if "tab-ratio" in there
        else "No second ratio of random masks has run yet."
    )
    work = "Block-wise masks\nof 50 % leave twice as many patches visible as random masks of 75 %, so an epoch costs more. "
    work += (
        "[Table 6](#tab-work) compares the two at\nequal compute: random 75 % is trained for more epochs, until both have "
        "used about the same number of FLOPs (within 5 %)."
        if "tab-work" in there
        else "A comparison at equal\ncompute, with more epochs of random 75 %, has not run yet."
    )
    told = {"tab-ratio": ratio, "tab-work": work}
    shown = [label for label in told if summary.whole or label in there]
    heading = "Masking ratio and equal compute" if len(shown) > 1 else "".join(map(ON_REQUEST.__getitem__, shown))
    return f"### {heading}\n\n{' '.join(map(told.__getitem__, shown))}" if shown else ""


def chance(summary: Summary) -> str:
    """The passage on other seeds and other test images."""
    there = parts(summary)
    sensitivity = (
        f"[Table 9](#tab-sensitivity) lists the difference from {summary.default.label} for each seed, and the standard "
        "deviation over seeds. A single difference that is small compared with this deviation could have had the other "
        "sign with another seed. The verdicts use the interval of the mean."
    )
    images = "[Table 10](#tab-chance) compares the two kinds of chance: other seeds, and other test images."
    said = {"tab-sensitivity": sensitivity, "tab-chance": images}
    told = " ".join(text for label, text in said.items() if label in there)
    return f"## Sensitivity to the seed and to the test images\n\n{told}" if told else ""


def references_left_out(summary: Summary) -> set[str]:
    """The labels of the references that this report does not cite."""
    there = parts(summary)
    cited = {
        "ref-krizhevsky2009": summary.compared,
        "ref-bao2022": "ref-bao2022" in masks(summary),
        "ref-wu2018": summary.fine_tuned,
        **dict.fromkeys(("ref-cohen1988", "ref-faul2007", "ref-holm1979", "ref-berger1982"), "tab-claims" in there),
        **dict.fromkeys(("ref-wilson1927", "ref-efron1993"), "tab-chance" in there),
    }
    return {label for label, is_cited in cited.items() if not is_cited}
