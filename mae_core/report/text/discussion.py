"""The discussion, and the comparison with other studies."""

from collections.abc import Sequence

from mae_core.report import published
from mae_core.report.case import label_of, shared_seeds
from mae_core.report.claims import claims, measured
from mae_core.report.statistics import signed
from mae_core.report.summary import Summary
from mae_core.report.tables import number
from mae_core.report.text.words import dataset, either, listed, order, seeds_of


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
