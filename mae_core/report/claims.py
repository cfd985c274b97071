"""The claims, with measured differences and verdicts."""

from dataclasses import dataclass, replace

from mae_core.report import published
from mae_core.report.statistics import Estimate, estimate, signed
from mae_core.report.summary import Case, Summary


@dataclass(frozen=True)
class Claim:
    """A claim, who makes it, the measured difference with interval and unit, and the verdict.

    The verdict is ``supported``, ``contradicted``, ``undecided`` (with the reason) or ``not run``.
    """

    statement: str
    source: str
    measured: str
    verdict: str


RANK = {"contradicted": 0, "undecided": 1, "supported": 2}  # the lowest of several verdicts is the verdict on all of them


def claims(summary: Summary) -> list[Claim]:
    """All claims of the student's report, the paper's claims that it builds on, and one of our own."""
    default, scratch = summary.find("random", 0.75), summary.find(None)
    tokens = summary.find("random", 0.75, mask_tokens=True)
    block50, block75, grid = summary.find("block", 0.5), summary.find("block", 0.75), summary.find("grid", 0.75)
    longer, ratios = summary.equal_work(), [(default, summary.find("random", ratio)) for ratio in (0.25, 0.5, 0.9)]

    def above(statement: str, source: str, quantity: str, *pairs: tuple[Case, Case]) -> Claim:
        """The claim that the first case of each pair exceeds the second; shows the pair that decides the verdict."""
        one_below = pairs[0][1] is pairs[-1][1]
        found = [(a.beats(b, quantity), f"{(a if one_below else b).label}: ") for a, b in pairs]
        differences = [(difference, against) for difference, against in found if difference]
        if len(differences) < len(pairs):
            return Claim(statement, source, "–", "not run")
        decisive, against = min(differences, key=lambda pair: (RANK[judge(pair[0]).split(" (")[0]], pair[0].mean))
        told = measured(decisive, quantity)
        return Claim(statement, source, against + told if len(pairs) > 1 else told, judge(decisive))

    return [
        above("Pre-training beats training from scratch", "both", "accuracy", (default, scratch)),
        throughout(default, scratch),
        above("Mask tokens in the encoder lower the accuracy", "both", "accuracy", (default, tokens)),
        flops_ratio(tokens, default, summary.compared),
        above("Skipping mask tokens saves memory", "paper", "memory", (tokens, default)),
        above(
            "75 % masking can be learned: its frozen features beat a random encoder's (linear probe)", "student",
            "linear", (default, scratch),
        ),
        above("Block-wise 50 % beats random 75 %", "student", "accuracy", (block50, default)),
        above("It does so at equal work, against a longer random 75 %", "here", "accuracy", (block50, longer)),
        above("Random 75 % beats block-wise 75 %", "both", "accuracy", (default, block75)),
        above("Random 75 % beats grid-wise 75 %", "both", "accuracy", (default, grid)),
        above("Grid-wise masking is the easier task: random's loss is higher", "both", "loss", (default, grid)),
        above(
            "Grid-wise masking gives the worst features: every other masking's linear probe is higher", "student",
            "linear", (default, grid), (block50, grid), (block75, grid),
        ),
        above("Block-wise masking is harder: its loss at 75 % is higher than random's", "both", "loss", (block75, default)),
        above("Its reconstructions are less exact: random's PSNR at 75 % is higher", "both", "psnr", (default, block75)),
        above("A lower ratio is an easier task: block-wise loss at 75 % is above 50 %", "both", "loss", (block75, block50)),
        above("75 % is the best ratio of random masking: it beats 25, 50 and 90 %", "paper", "accuracy", *ratios),
        above("It is so for frozen features, too (linear probe)", "paper", "linear", *ratios),
    ]  # fmt: skip


def shown(summary: Summary) -> list[Claim]:
    """The claims to report: all of them beside published numbers; on other images those that ran, without "student"."""
    found = claims(summary)
    if summary.compared:
        return found
    by = {"both": "paper", "student": "here"}
    ran = [replace(claim, source=by.get(claim.source, claim.source)) for claim in found if claim.verdict != "not run"]
    return ran or [Claim("No two cases have run that a claim compares", "–", "–", "not run")]


def measured(difference: Estimate | None, quantity: str) -> str:
    """A difference with sign, interval and unit."""
    if difference is None:
        return "–"
    special = {"loss": ("", 4, 1.0), "memory": (" MiB", 0, 2.0**-20), "psnr": (" dB", 2, 1.0)}
    unit, digits, scale = special.get(quantity, (" points", 2, 1.0))
    interval = "" if difference.interval is None else f" ± {difference.interval * scale:.{digits}f}"
    return signed(difference.mean * scale, digits) + interval + unit


def throughout(default: Case, scratch: Case) -> Claim:
    """The claim that pre-training is ahead after every epoch of fine-tuning; each epoch's difference is judged."""
    statement, histories = "It does so after every epoch", [c.read("finetune", "history") for c in (default, scratch)]
    seeds = sorted(histories[0].keys() & histories[1].keys())
    if not seeds:
        return Claim(statement, "student", "–", "not run")
    curves = [[history[seed]["test_accuracy"] for seed in seeds] for history in histories]
    epochs = [
        estimate([a - b for a, b in zip(*both, strict=True)])
        for both in zip(*(zip(*curve, strict=True) for curve in curves), strict=True)
    ]
    differences = [difference for epoch in epochs for difference in epoch.values]
    ahead = f"in {sum(difference > 0 for difference in differences)} of {len(differences)}"
    verdict = min((judge(epoch) for epoch in epochs), key=lambda verdict: RANK[verdict.split(" (")[0]])
    return Claim(statement, "student", ahead, "undecided (one seed)" if len(seeds) == 1 else verdict)


def flops_ratio(tokens: Case, default: Case, compared: bool = True) -> Claim:
    """The claim on the cost of mask tokens in the encoder; FLOPs are counted, so one run is enough."""
    student, paper = published.STUDENT_FLOPS_RATIO, published.PAPER_FLOPS_RATIO
    theirs = f" (student's model: {student:g}×; paper's: {paper:g}×)" if compared else ""
    statement = f"They cost more FLOPs{theirs}"
    ratio = tokens.ratio(default, "flops")
    if not ratio:
        return Claim(statement, "both", "–", "not run")
    return Claim(statement, "both", f"{ratio:.2f}×", "supported" if ratio > 1 else "contradicted")


def judge(difference: Estimate | None) -> str:
    """The verdict on the claim that a difference over seeds is positive."""
    if difference is None:
        return "not run"
    if difference.interval is None:
        points = "for it" if difference.mean > 0 else "against it" if difference.mean < 0 else "neither way"
        return f"undecided (one seed; points {points})"
    if not difference.excludes_zero:
        return f"undecided ({len(difference.values)} seeds)"
    return "supported" if difference.mean > 0 else "contradicted"
