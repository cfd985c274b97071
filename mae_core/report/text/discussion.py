"""The discussion, and the comparison with other studies."""

from collections.abc import Mapping, Sequence

from mae_core.report import published
from mae_core.report.case import best_first, label_of, shared_seeds
from mae_core.report.claims import claims, measured
from mae_core.report.statistics import signed
from mae_core.report.summary import Summary
from mae_core.report.tables import number
from mae_core.report.text.words import dataset, either, listed, seeds_of


def discussion(summary: Summary) -> str:
    """The discussion, in the order of the student's report.

    Without two cases to compare, it is a sentence that says so, or empty in a report that has only what there is.
    """
    verdicts = verdicts_in_words(summary)
    passages = [passage(summary, verdicts) for passage in (gain, mask_tokens, mask_sampling, cost, ratio, difficulty)]
    if not any(passages):
        return "There is nothing to discuss yet: no two cases can be compared." if summary.whole else ""
    return "\n\n".join(filter(None, passages))


def verdicts_in_words(summary: Summary) -> dict[str, str]:
    """The verdicts on the claims that have a key, within a sentence."""
    judged = claims(summary)
    several = sum(claim.p is not None for claim in judged) > 1
    return {
        claim.key: claim.verdict.replace(" (", ", ").replace(")", "")
        + ", but not after the correction" * (several and claim.directional and not claim.survives)
        for claim in judged
    }


def gain(summary: Summary, verdicts: Mapping[str, str]) -> str:
    """What pre-training gains; empty without a case from scratch."""
    change, probe = (summary.default.beats(summary.scratch, quantity) for quantity in ("accuracy", "linear"))
    if not change:
        return ""
    also = f", and a linear probe of the frozen encoder by {measured(probe, 'linear')}" if probe else ""
    throughout = verdicts["every epoch"]
    return (
        f"**Pre-training** changes the accuracy by {measured(change, 'accuracy')} compared with training from "
        f"scratch{also}. Verdict on the claim that it helps: {verdicts['gain']}"
        f"{'' if throughout == 'not run' else f'; that it helps after every epoch of fine-tuning: {throughout}'}."
    )


def mask_tokens(summary: Summary, verdicts: Mapping[str, str]) -> str:
    """What mask tokens in the encoder change; empty if they have not run."""
    default, tokens = summary.find("random", 0.75), summary.find("random", 0.75, mask_tokens=True)
    change, flops = tokens.beats(default, "accuracy"), tokens.ratio(default, "flops")
    if not change or not flops:
        return ""
    theirs = published.STUDENT["random", 0.75, True] - published.STUDENT["random", 0.75, False]
    student = f"The student found {signed(theirs, 1)} points at {published.STUDENT_FLOPS_RATIO:g}×. "
    return (
        f"**Mask tokens in the encoder** change the accuracy by {measured(change, 'accuracy')} and multiply the FLOPs "
        f"of a forward pass by {flops:.2f}. {either(summary, student)}Verdict on the claim that they lower the accuracy: "
        f"{verdicts['mask tokens']}."
    )


def mask_sampling(summary: Summary, verdicts: Mapping[str, str]) -> str:
    """How other kinds of masks compare with random ones; empty if none has run."""
    default = summary.find("random", 0.75)
    sampled = {"block 50": ("block", 0.5), "block 75": ("block", 0.75), "grid 75": ("grid", 0.75)}
    statements = {claim.key: claim.statement for claim in claims(summary)}
    changes, found_by_student = [], []
    for key, (strategy, masked) in sampled.items():
        case = summary.find(strategy, masked)
        if change := case.beats(default, "accuracy"):
            verdict = f"“{statements[key]}”: {verdicts[key]}"
            changes.append(f"{measured(change, 'accuracy')} with {case.label} ({verdict})")
            theirs = published.STUDENT[strategy, masked, False] - published.STUDENT["random", 0.75, False]
            found_by_student.append(signed(theirs, 1))
    if not changes:
        return ""
    student = either(summary, f" The student found {listed(found_by_student)} points.")
    return f"**Mask sampling.** Compared with random 75 %, the accuracy changes by {listed(changes)}.{student}"


def cost(summary: Summary, verdicts: Mapping[str, str]) -> str:
    """What an epoch of block 50 % costs, and what equal compute gives; empty if it has not run."""
    if not (flops := summary.find("block", 0.5).ratio(summary.find("random", 0.75), "flops")):
        return ""
    return (
        f"An epoch of block 50 % costs {flops:.2f} times the FLOPs of an epoch of random 75 %, because its encoder "
        f"sees twice as many patches. Equal epochs are therefore not equal compute. {equal_work(summary)}"
    )


def difficulty(summary: Summary, verdicts: Mapping[str, str]) -> str:
    """How hard the kinds of masks at 75 % are, by their losses; empty without two."""
    cases = [summary.find(strategy, 0.75) for strategy in ("grid", "random", "block")]
    losses = [(loss, case.label) for case in cases if (loss := case.estimate("loss"))]
    if len(losses) < 2:
        return ""
    ranked = ", ".join(f"{label} {number(value, 4)}" for value, label in sorted(losses, key=lambda pair: pair[0].mean))
    return (
        f"**The difficulty of the task** shows in the test loss at 75 %, lowest first: {ranked}. The easiest task does "
        f"not have to give the best features{'; the accuracies measure that' if summary.fine_tuned else ''}."
    )


def equal_work(summary: Summary) -> str:
    """Block 50 % compared with random 75 % at equal compute."""
    longer, block50 = summary.equal_work(), summary.find("block", 0.5)
    change, probe = (block50.beats(longer, quantity) for quantity in ("accuracy", "linear"))
    for case, name in ((longer, "Random 75 % at equal compute"), (block50, "Block 50 %")):
        if not case.values("accuracy"):
            return either(summary, f"{name} has not {'run' if case is longer else 'been fine-tuned'}.")
    if not change or not longer.pretrained or not longer.work or not block50.work:
        return either(summary, "Random 75 % at equal compute and block 50 % have no seed in common.")
    also = f", and the linear probe by {measured(probe, 'linear')}" if probe else ""
    return (
        f"Random 75 % trained for {longer.pretrained.epochs} epochs uses {longer.work / block50.work:.2f} times the "
        f"compute of block 50 %. Compared with it, block 50 % changes the accuracy by {measured(change, 'accuracy')}{also} "
        f"({seeds_of([longer, block50])})."
    )


def ratio(summary: Summary, verdicts: Mapping[str, str]) -> str:
    """The best ratio of random masks for fine-tuning and the linear probe; empty with fewer than three ratios."""
    ratios, extremes = summary.ratios(), []
    for quantity, name in (("accuracy", "fine-tuning"), ("linear", "the linear probe")):
        means = {masked: found.mean for masked, case in ratios.items() if (found := case.estimate(quantity))}
        if len(means) < 3:
            return ""
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        extremes.append(
            f"{name} is best at {100 * best:g} % ({number(means[best])} %) and worst at {100 * worst:g} % "
            f"({number(means[worst])} %)"
        )
    text = (
        f"**The masking ratio.** With the seeds that all ratios share ({seeds_of(list(ratios.values()))}), "
        f"{'; '.join(extremes)}."
    )
    if verdicts["ratio"] == "not run":  # it compares other ratios than these
        return text
    return (
        f"{text} Verdict on the claim that 75 % is the best ratio: {verdicts['ratio']}; for the linear probe: "
        f"{verdicts['linear ratio']}."
    )


def orders(studies: Sequence[Summary]) -> str:
    """The order of the kinds of masks in several studies; of the student's images, in his report and in the paper, too."""
    kinds = {label_of(*key): key for key in published.STUDENT if not key[2]}
    ranked = {}
    for study in studies:
        ran = {label: case for label, key in kinds.items() if (case := study.find(*key)).values("accuracy")}
        same = best_first(dict(zip(ran, shared_seeds(list(ran.values())), strict=True)))
        ranked[study.name] = ", ".join(same) if len(same) > 1 else "fewer than two have run with the same seeds"
    theirs = (("the student", published.STUDENT), ("the paper", published.PAPER)) if studies[0].compared else ()
    for name, numbers in theirs:
        ranked[name] = ", ".join(sorted(kinds, key=lambda label: -numbers[kinds[label]]))
    orders_by_name = "; ".join(f"{name}: {labels}" for name, labels in ranked.items())
    images = {study.name: dataset(study) for study in studies}
    others = (
        f"images ({'; '.join(f'{name}: {kind}' for name, kind in images.items())}), "
        if len(set(images.values())) > 1
        else ""
    )
    return (
        f"The same cases in other studies, each with its own {others}model and length of training. The kinds of masks, "
        f"best first: {orders_by_name}."
    )
