"""The claims, with measured differences and verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mae_core.report import published
from mae_core.report.case import Case
from mae_core.report.statistics import LEVEL, Estimate, detectable, estimate, holm, p_value, same, signed_estimate
from mae_core.report.summary import Summary

# Points of accuracy. Every difference of the student's and the paper's that is repeated here is 0.7 points or more, so one
# below half a point would change none of these conclusions; it is also 50 of 10,000 test images, about the standard error
# of an accuracy.
MATTERS = 0.5

SMALLER = "smaller than matters"
RANK = (  # the lowest of several verdicts is the verdict on all of them
    "contradicted", f"contradicted ({SMALLER})", "no difference that matters", "undecided", f"supported ({SMALLER})",
    "supported",
)  # fmt: skip
UNITS = {"loss": ("", 4, 1.0), "memory": (" MiB", 0, 2.0**-20), "psnr": (" dB", 2, 1.0)}  # unit, digits, scale
POINTS = (" points", 2, 1.0)  # of all other quantities, which are accuracies


@dataclass(frozen=True)
class Claim:
    """A claim, who makes it, the measured difference with interval and unit, and the verdict.

    Attributes:
        verdict: ``supported``, ``contradicted``, ``no difference that matters``, ``undecided`` (with the reason) or
            ``not run``.
        detectable: the smallest difference that these seeds could have found, in the unit of ``measured``; of several
            comparisons the largest, or that of the one that contradicts the claim.
        p: of the paired t test; None if it was not run, has one seed, or is counted.
        adjusted: ``p`` after Holm's correction for all claims that have one.
        key: the name by which the discussion finds it; empty for others.
    """

    statement: str
    source: str
    measured: str
    verdict: str
    detectable: str = "–"
    p: float | None = None
    adjusted: float | None = None
    key: str = ""

    @property
    def directional(self) -> bool:
        """Whether the verdict says on which side of zero the difference lies, and a test says so too."""
        return self.p is not None and self.verdict.startswith(("supported", "contradicted"))

    @property
    def survives(self) -> bool:
        """Whether such a verdict stands after Holm's correction."""
        return self.directional and self.adjusted is not None and self.adjusted < LEVEL


def claims(summary: Summary) -> list[Claim]:
    """All claims of the student's report, the paper's claims that it builds on, and two of our own."""
    default, scratch = summary.find("random", 0.75), summary.scratch
    tokens = summary.find("random", 0.75, mask_tokens=True)
    block50, block75, grid = summary.find("block", 0.5), summary.find("block", 0.75), summary.find("grid", 0.75)
    longer, ratios = summary.equal_work(), [(default, summary.find("random", ratio)) for ratio in (0.25, 0.5, 0.9)]

    def above(statement: str, source: str, quantity: str, *pairs: tuple[Case, Case], key: str = "") -> Claim:
        """The claim that the first case of each pair exceeds the second; shows the pair that decides the verdict."""
        one_below = pairs[0][1] is pairs[-1][1]
        found = {f"{(a if one_below else b).label}: ": a.beats(b, quantity) for a, b in pairs}
        differences = [difference for difference in found.values() if difference]
        if len(differences) < len(pairs):
            ran = all(case.values(quantity) for pair in pairs for case in pair)
            shared = all(a.values(quantity).keys() & b.values(quantity).keys() for a, b in pairs)
            why = "not on one machine" if shared else "no shared seed"
            return Claim(statement, source, "–", f"undecided ({why})" if ran else "not run", key=key)
        decisive, verdict, p = decide(differences, matters(quantity))
        against = next(name for name, difference in found.items() if difference is decisive) if len(pairs) > 1 else ""
        least = amount(findable(differences, decisive, verdict), quantity)
        return Claim(statement, source, against + measured(decisive, quantity), verdict, least, p, key=key)

    judged = [
        above("Pre-training beats training from scratch", "both", "accuracy", (summary.default, scratch), key="gain"),
        throughout(summary.default, scratch),
        above("Mask tokens in the encoder lower the accuracy", "both", "accuracy", (default, tokens), key="mask tokens"),
        flops_ratio(tokens, default, summary.compared),
        above("Skipping mask tokens saves memory", "paper", "memory", (tokens, default)),
        above(
            "75 % masking can be learned: its frozen features beat a random encoder's (linear probe)", "student",
            "linear", (default, scratch),
        ),
        above("Block-wise 50 % beats random 75 %", "student", "accuracy", (block50, default), key="block 50"),
        above("Block-wise 50 % beats random 75 % at equal compute", "this study", "accuracy", (block50, longer)),
        above("Random 75 % beats block-wise 75 %", "both", "accuracy", (default, block75), key="block 75"),
        above("Random 75 % beats grid-wise 75 %", "both", "accuracy", (default, grid), key="grid 75"),
        above("Grid-wise masking is the easier task: random's loss is higher", "both", "loss", (default, grid)),
        above(
            "Grid-wise masking gives the worst features: every other masking's linear probe is higher", "student",
            "linear", (default, grid), (block50, grid), (block75, grid),
        ),
        above("Block-wise masking is harder: its loss at 75 % is higher than random's", "both", "loss", (block75, default)),
        above(
            "Block-wise reconstructions are less exact: random's PSNR at 75 % is higher", "both", "psnr", (default, block75)
        ),
        above("A lower ratio is an easier task: block-wise loss at 75 % is above 50 %", "both", "loss", (block75, block50)),
        above(
            "75 % is the best ratio of random masking: it beats 25, 50 and 90 %", "this study",
            "accuracy", *ratios, key="ratio",
        ),
        above("75 % is the best ratio for the linear probe", "paper", "linear", *ratios, key="linear ratio"),
    ]  # fmt: skip
    tested = [claim.p for claim in judged if claim.p is not None]
    adjusted = iter(holm(tested))
    return [claim if claim.p is None else replace(claim, adjusted=next(adjusted)) for claim in judged]


def shown(summary: Summary) -> list[Claim]:
    """The claims to report: all of them beside published numbers; on other images those that ran, without "student"."""
    found = claims(summary)
    if summary.compared:
        return found
    by = {"both": "paper", "student": "this study"}
    ran = [replace(claim, source=by.get(claim.source, claim.source)) for claim in found if claim.verdict != "not run"]
    return ran or [Claim("No two cases have run that a claim compares", "–", "–", "not run")]


def measured(difference: Estimate, quantity: str) -> str:
    """A difference with sign, interval and unit."""
    unit, digits, scale = UNITS.get(quantity, POINTS)
    return signed_estimate(difference, digits, scale) + unit


def amount(value: float | None, quantity: str) -> str:
    """A difference without sign, in the unit of :func:`measured`."""
    _, digits, scale = UNITS.get(quantity, POINTS)
    return "–" if value is None else f"{value * scale:.{digits}f}"


def matters(quantity: str) -> float | None:
    """The difference from which on this quantity matters; None if it is not an accuracy, for want of a yardstick."""
    return None if quantity in UNITS else MATTERS


def throughout(default: Case, scratch: Case) -> Claim:
    """The claim that pre-training is ahead after every epoch of fine-tuning; each epoch's difference is judged.

    Cases that were fine-tuned for different numbers of epochs are not compared.
    """
    claim = Claim("Pre-training is ahead after every epoch", "student", "–", "not run", key="every epoch")
    histories = [case.read("finetune", "history") for case in (default, scratch)]
    seeds = sorted(histories[0].keys() & histories[1].keys())
    curves = [[history[seed]["test_accuracy"] for seed in seeds] for history in histories]
    if not all(histories):
        return claim
    if not seeds:
        return replace(claim, verdict="undecided (no shared seed)")
    if len({len(curve) for case in curves for curve in case}) > 1:
        return replace(claim, verdict="undecided (different numbers of epochs)")
    epochs = [
        estimate([a - b for a, b in zip(*both, strict=True)])
        for both in zip(*(zip(*curve, strict=True) for curve in curves), strict=True)
    ]
    decisive, verdict, p = decide(epochs, MATTERS)
    least = amount(findable(epochs, decisive, verdict), "accuracy")
    verdict = "undecided (one seed)" if len(seeds) == 1 else verdict
    of_epoch = f"epoch {1 + epochs.index(decisive)}: {measured(decisive, 'accuracy')}"
    return replace(claim, measured=of_epoch, verdict=verdict, detectable=least, p=p)


def findable(differences: Sequence[Estimate], decisive: Estimate, verdict: str) -> float | None:
    """What a claim of several differences could have found: all of them, or the one that contradicts it; None without."""
    if verdict.startswith("contradicted"):
        return detectable(decisive)
    found = [detectable(difference) for difference in differences]
    known = [least for least in found if least is not None]
    return max(known) if len(known) == len(found) else None


def flops_ratio(tokens: Case, default: Case, compared: bool = True) -> Claim:
    """The claim on the cost of mask tokens in the encoder; FLOPs are counted, so one run is enough."""
    student, paper = published.STUDENT_FLOPS_RATIO, published.PAPER_FLOPS_RATIO
    theirs = f" (student's model: {student:g}×; paper's: {paper:g}×)" if compared else ""
    statement = f"Mask tokens in the encoder cost more FLOPs{theirs}"
    ratio = tokens.ratio(default, "flops")
    if not ratio:
        return Claim(statement, "both", "–", "not run")
    return Claim(statement, "both", f"{ratio:.2f}×", "supported" if ratio > 1 else "contradicted")


def decide(differences: Sequence[Estimate], bound: float | None) -> tuple[Estimate, str, float | None]:
    """Judge the claim that all of these differences are positive.

    Returns:
        The difference that decides, the verdict, and the p-value of the claim. A claim of several differences needs them
        all, so its p-value is the largest of theirs (intersection-union test, Berger 1982). One negative difference
        contradicts it if the smallest p-value of the negative ones, times the number of differences (Bonferroni), is
        below 5 %; that difference then decides. This is the claim's p-value, also if it leaves the claim undecided. None
        if a difference that the p-value needs has no test.
    """
    judged = [(judge(difference, bound), difference) for difference in differences]
    tested = [(p, difference) for difference in differences if (p := p_value(difference)) is not None]
    p = max(p for p, _ in tested) if len(tested) == len(differences) else None
    against = [pair for pair in judged if pair[0].startswith("contradicted")]
    negative = [(p, difference.mean, difference) for p, difference in tested if difference.mean < 0]
    if against and negative:
        least, _, decisive = min(negative, key=lambda found: found[:2])
        p = min(1.0, len(differences) * least)
        if p < LEVEL:
            return decisive, judge(decisive, bound), p
        judged = [(undecided(pair[1]) if pair in against else pair[0], pair[1]) for pair in judged]
    verdict, decisive = min(
        judged, key=lambda pair: (RANK.index(pair[0] if pair[0] in RANK else "undecided"), pair[1].mean)
    )
    return decisive, verdict, p


def judge(difference: Estimate, bound: float | None = None) -> str:
    """The verdict on the claim that a difference over seeds is positive.

    Args:
        bound: the difference from which on it matters, if there is one.
    """
    if difference.half_width is None:
        side = "for" if difference.mean > 0 else "against" if difference.mean < 0 else "neither for nor against"
        return f"undecided (one seed: {side} it)"
    if bound is not None and same(difference.values):
        return "undecided (the seeds do not differ)"
    small = bound is not None and abs(difference.mean) + difference.half_width < bound
    if not difference.excludes_zero:
        return "no difference that matters" if small else undecided(difference)
    return ("supported" if difference.mean > 0 else "contradicted") + (f" ({SMALLER})" if small else "")


def undecided(difference: Estimate) -> str:
    """The verdict that so many seeds do not decide."""
    return f"undecided ({len(difference.values)} seeds)"
