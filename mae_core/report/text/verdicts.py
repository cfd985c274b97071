"""The sections on claims and on chance: how a claim is judged, and what other seeds and other images would change."""

from mae_core.report.claims import MATTERS, SMALLER, claims
from mae_core.report.over_images import of_difference
from mae_core.report.parts import parts
from mae_core.report.summary import Summary
from mae_core.report.text.words import either, listed, t_distribution

CLAIMS = """\
A claim about several cases, or about every epoch, needs all its comparisons, and one can contradict it;
[Table 6](#tab-claims) shows the weakest one: of equal verdicts, the smallest difference. A *measured* difference is
positive if it supports the claim. Memory is compared between runs with the same machine, threads and precision. FLOPs are
counted, so they need no interval.

**Smallest detectable difference.** *Detectable* is the smallest true difference that the paired t test at 5 % finds with
a probability of 80 %, if the seeds scatter as these do, in the unit of the measured difference (noncentral t
distribution, [Cohen](#ref-cohen1988), [Faul et al.](#ref-faul2007)); of several comparisons, the largest, or that of the
one that contradicts the claim. An undecided claim says nothing about smaller differences.

**Correction for the number of claims.** *p* is the p-value of the paired t test. For a claim that needs several
comparisons, it is the largest of their p-values (intersection–union rule, [Berger](#ref-berger1982)), which may belong to
another comparison than the one shown. If a comparison by
itself contradicts the claim, it is the smallest p-value of those that speak against it, times the number of comparisons:
below 5 %, the claim is contradicted, and otherwise undecided. *Holm* is p corrected for the number of claims
([Holm](#ref-holm1979)): if we accept every verdict with a corrected p below 5 %, the probability that at least one of them
is wrong is at most 5 %. *No difference that matters* rests on its interval alone: p and Holm ask there, too, whether the
difference is zero. Intervals and p-values assume that differences are normally distributed over seeds. They hold for one
look at the results. Whoever adds seeds and judges again has more chances of an error, so verdicts are final only with the
last planned seed."""


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
        "bounds. Accuracies that differ by the same amount with every seed decide nothing. "
        f"{either(summary, published_ones, 'Losses, PSNR and memory have no such bounds.')} A verdict says what "
        "holds for the model and the recipe of [Table 9](#tab-recipe); a larger model may give another."
    )


def correction(summary: Summary) -> str:
    """What is left of the verdicts after a correction for their number; with one seed, that nothing can be said."""
    found = claims(summary)
    tested = [claim for claim in found if claim.p is not None]
    if not tested:
        why = "There is one seed" if len(summary.seeds) == 1 else "No claim has several seeds with different results"
        return (
            f"{why}, so we can give no p-value, no correction for the number of claims, and no smallest detectable "
            "difference."
        )
    if len(tested) == 1:
        return "One claim has a p-value, so there is no number of claims to correct for."
    decided = [claim for claim in tested if claim.directional]
    if not decided:
        return f"None of the {len(tested)} claims with a p-value is supported or contradicted."
    lost = [f"“{claim.statement}”" for claim in decided if not claim.survives]
    n_kept = len(decided) - len(lost)
    n_decided = f"all {len(tested)}" if len(decided) == len(tested) else f"{len(decided)} of the {len(tested)}"
    text = (
        f"Judged one by one, {n_decided} claims with a p-value {'is' if len(decided) == 1 else 'are'} supported or "
        f"contradicted. With Holm's correction for all {len(tested)}, "
    )
    if len(decided) == 1:
        return f"{text}this verdict {'does not survive' if lost else 'survives'}."
    if not lost:
        return f"{text}all of these verdicts survive."
    text += f"{n_kept} of these verdicts {'survives' if n_kept == 1 else 'survive'}"
    return f"{text}; {'this one does' if len(lost) == 1 else 'these do'} not: {', '.join(lost)}."


def unlike(summary: Summary) -> str:
    """What differs, beside the masks, between cases that are compared by seed; empty if nothing does."""
    others = summary.other_recipes()
    which = "One case differs" if len({name for name, *_ in others}) == 1 else "Some cases differ"
    recipes = "; ".join(f"{name}, {stage} ({words})" for name, stage, words in others)
    more = f" {which} from {summary.default.label} in more than the masks: {recipes}." if others else ""
    stages = {"pre-training": precisions(summary, "pretrain"), "fine-tuning": precisions(summary, "finetune")}
    if stages["pre-training"] == stages["fine-tuning"]:
        stages = {"training": stages["fine-tuning"]}
    kinds = [
        f"in {stage}, {words} ({'seeds' if len(numbers) > 1 else 'seed'} {' and '.join(numbers)})"
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
            found.setdefault(f"{those}, the others in {most}", []).append(str(seed))
    return found


def over_images(summary: Summary) -> str:
    """What the intervals over test images mean, and where they are missing."""
    default, n = summary.default, summary.default.n_test
    shown_n = f", for {n:,} images" if n else ""
    several = (
        " With several seeds we assume that all are right about the same images, which gives the widest interval."
        if len(summary.seeds) > 1
        else ""
    )
    text = (
        f"*Seeds*: half the 95 % interval over seeds ({t_distribution(summary)}). *Images*: half the 95 % interval over "
        f"test images. For an accuracy it is Wilson's ([Wilson](#ref-wilson1927)){shown_n}.{several} For a difference it "
        "comes from a paired bootstrap ([Efron and Tibshirani](#ref-efron1993)): both cases are evaluated "
        "on the same images, drawn with replacement. A difference uses only the seeds that both cases finished, so it need "
        "not be that of the two means."
    )
    compared = [case for case in summary.cases.values() if case is not default and case.beats(default, "accuracy")]
    missing = [case.label for case in compared if of_difference(case, default) is None]
    if not missing:
        return text
    only = "difference of {} has" if len(missing) == 1 else "differences of {} have"
    which = "no difference has an" if len(missing) == len(compared) else f"the {only.format(listed(missing))} no"
    return (
        f"{text} Some runs were evaluated on other images, or did not record which images they classify correctly, so "
        f"{which} interval over images."
    )


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
    n = len(repeated)
    which = "the other case that has several seeds" if n == 1 else "each of the other cases that have several seeds"
    return f"{named}The difference from {default.label} has the same sign with every seed in {which}."


def chance(summary: Summary) -> str:
    """The passage on other seeds and other test images."""
    there = parts(summary)
    of_seeds = (
        f"[Table 7](#tab-sensitivity) lists the difference from {summary.default.label} for each seed, and the standard "
        "deviation over seeds. A single difference that is small compared with this deviation could have had the other "
        f"sign with another seed.{' The verdicts use the interval of the mean.' if 'tab-claims' in there else ''}"
    )
    of_images = "[Table 8](#tab-chance) compares the two kinds of chance: other seeds, and other test images."
    passages = {"tab-sensitivity": of_seeds, "tab-chance": of_images}
    text = " ".join(passage for label, passage in passages.items() if label in there)
    return f"## Sensitivity to the seed and to the test images\n\n{text}" if text else ""
