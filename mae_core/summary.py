"""All results of a study, read from its folder, and what they say about each claim."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mae_core import published
from mae_core.parameters import OUTPUTS, PretrainParameters, ReportParameters
from mae_core.results import read_json
from mae_core.statistics import Estimate, estimate, paired_difference

# What can be asked of a run: name -> (stage, path into metrics.json)
QUANTITIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "accuracy": ("finetune", ("last_epoch_accuracy",)),
    "best_accuracy": ("finetune", ("best_epoch_accuracy",)),
    "linear": ("finetune", ("probes", "linear")),
    "knn": ("finetune", ("probes", "knn")),
    "flops": ("pretrain", ("flops_per_image",)),
    "psnr": ("pretrain", ("test_psnr",)),
    "loss": ("pretrain", ("test_loss",)),
    "seconds": ("pretrain", ("train_seconds",)),
    "speed": ("pretrain", ("images_per_second",)),
    "memory": ("pretrain", ("peak_memory_bytes",)),
    "finetune_seconds": ("finetune", ("train_seconds",)),
    "finetune_speed": ("finetune", ("images_per_second",)),
    "finetune_memory": ("finetune", ("peak_memory_bytes",)),
}


@dataclass(frozen=True)
class Case:
    """One case of a study and the folders of its seeds.

    Attributes:
        name: as in the study file.
        pretrained: the pre-training parameters; None from scratch, or where nothing has run.
        from_scratch: whether fine-tuning started without weights; False where nothing has run.
        folders: seed to ``outputs/<study>/<case>/seed<k>``.
    """

    name: str
    pretrained: PretrainParameters | None
    from_scratch: bool
    folders: dict[int, Path]

    def read(self, stage: str, file: str) -> dict[int, Any]:
        """A file of a stage, of every seed that finished it."""
        paths = {seed: folder / stage for seed, folder in self.folders.items()}
        return {
            seed: read_json(path / f"{file}.json")
            for seed, path in sorted(paths.items())
            if (path / "metrics.json").exists()
        }

    def values(self, quantity: str) -> dict[int, float]:
        """One of QUANTITIES, by seed; empty if it was not run or not measured."""
        stage, path = QUANTITIES[quantity]
        found = {}
        for seed, value in self.read(stage, "metrics").items():
            for key in path:
                value = value.get(key) if value else None
            if value is not None:
                found[seed] = value
        return found

    def estimate(self, quantity: str) -> Estimate | None:
        """Mean and interval over the seeds; None if there is no value."""
        values = self.values(quantity)
        return estimate(list(values.values())) if values else None

    @cached_property
    def label(self) -> str:
        """The case in words."""
        run = self.pretrained
        if run is None:
            return "from scratch" if self.from_scratch else self.name
        tokens = ", mask tokens in the encoder" if run.mask_tokens_in_encoder else ""
        return f"{run.mask_strategy} {100 * run.mask_ratio:g} %{tokens}"


@dataclass(frozen=True)
class Summary:
    """The results of a study, as far as they exist."""

    name: str
    cases: dict[str, Case] = field(default_factory=dict)

    @classmethod
    def read(cls, run: ReportParameters) -> "Summary":
        """Read ``outputs/<study>``; a case that has not run is kept, and has no values."""
        found = {}
        for name in run.cases:
            folders = {seed: OUTPUTS / run.study / name / f"seed{seed}" for seed in run.seeds}
            case = Case(name, None, False, folders)
            pretrained = [PretrainParameters.check(p) for p in case.read("pretrain", "parameters").values()]
            scratch = [not p["weights"] for p in case.read("finetune", "parameters").values()]
            found[name] = Case(name, pretrained[0] if pretrained else None, any(scratch), folders)
        return cls(run.study, found)

    def find(self, strategy: str | None, ratio: float = 0.0, mask_tokens: bool = False) -> Case | None:
        """The case that ran with these masks (None for ``strategy``: from scratch), or None."""
        for case in self.cases.values():
            run = case.pretrained
            if run and (run.mask_strategy, run.mask_ratio, run.mask_tokens_in_encoder) == (
                strategy,
                ratio,
                mask_tokens,
            ):
                return case
            if strategy is None and case.from_scratch:
                return case
        return None

    @property
    def seeds(self) -> list[int]:
        """All seeds with a finished fine-tuning run."""
        return sorted({seed for case in self.cases.values() for seed in case.values("accuracy")})


@dataclass(frozen=True)
class Claim:
    """A published statement as a difference that should be above zero.

    Attributes:
        statement: what is claimed.
        source: who claims it.
        measured: the difference in words, with its unit.
        verdict: supported, contradicted, undecided or not run.
    """

    statement: str
    source: str
    measured: str
    verdict: str


def judge(difference: Estimate | None, exact: bool = False) -> str:
    """The verdict on the claim that a difference is above zero.

    Args:
        difference: over the seeds; None if a case is missing.
        exact: the quantity is counted, not sampled: one value decides.
    """
    if difference is None:
        return "not run"
    if exact or difference.excludes_zero:
        return "supported" if difference.mean > 0 else "contradicted"
    if difference.interval is None:
        return "undecided: one seed, points " + ("for it" if difference.mean > 0 else "against it")
    return f"undecided at {len(difference.values)} seeds"


def signed(value: Estimate, unit: str, digits: int) -> str:
    """A difference with its sign, interval if there is one, and unit."""
    interval = "" if value.interval is None else f" ± {value.interval:.{digits}f}"
    return f"{value.mean:+.{digits}f}{interval}{unit}".replace("-", "−")


def claims(summary: Summary) -> list[Claim]:
    """Every claim of the student's report, and the paper's ones that it leans on, with this study's verdict."""
    default = summary.find("random", 0.75)
    tokens = summary.find("random", 0.75, mask_tokens=True)
    block50, block75 = summary.find("block", 0.5), summary.find("block", 0.75)
    grid, scratch = summary.find("grid", 0.75), summary.find(None)
    found = []

    def claim(statement: str, source: str, better: Case | None, worse: Case | None, quantity: str, **how) -> None:
        unit, digits, scale, sign, exact = (
            how.get(key, usual) for key, usual in dict(unit=" points", digits=2, scale=1.0, sign=1, exact=False).items()
        )
        difference = None
        if better and worse:
            a, b = better.values(quantity), worse.values(quantity)
            difference = paired_difference(
                {seed: sign * scale * value for seed, value in a.items()},
                {seed: sign * scale * value for seed, value in b.items()},
            )
        measured = "–" if difference is None else signed(difference, unit, digits)
        found.append(Claim(statement, source, measured, judge(difference, exact)))

    both, student, paper = "both", "student", "paper"
    claim("Pre-training beats training from scratch", both, default, scratch, "accuracy")
    found.append(throughout(default, scratch))
    claim("Mask tokens in the encoder lower the accuracy", both, default, tokens, "accuracy")
    found.append(flops_ratio(tokens, default))
    claim("Skipping mask tokens saves memory", paper, tokens, default, "memory", unit=" MiB", digits=0, scale=2**-20)
    claim("Block-wise 50 % beats random 75 %", student, block50, default, "accuracy")
    claim("Random 75 % beats block-wise 75 %", both, default, block75, "accuracy")
    claim("Random 75 % beats grid-wise 75 %", both, default, grid, "accuracy")
    loss = {"unit": " of loss", "digits": 4}
    claim("Grid-wise masking is the easier task: its loss is below random's", both, default, grid, "loss", **loss)
    claim("Block-wise masking is harder: its loss at 75 % is above random's", both, block75, default, "loss", **loss)
    claim("A lower ratio is an easier task: block-wise 50 % against 75 %", both, block75, block50, "loss", **loss)
    return found


def throughout(default: Case | None, scratch: Case | None) -> Claim:
    """Whether the pre-trained model is ahead after every epoch of fine-tuning, in every seed."""
    statement = "It does so after every epoch of fine-tuning"
    histories = [case.read("finetune", "history") if case else {} for case in (default, scratch)]
    seeds = histories[0].keys() & histories[1].keys()
    pairs = [
        pair for seed in seeds for pair in zip(*(history[seed]["test_accuracy"] for history in histories), strict=False)
    ]
    if not pairs:
        return Claim(statement, "student", "–", "not run")
    ahead = sum(a > b for a, b in pairs)
    verdict = "supported" if ahead == len(pairs) else "contradicted"
    return Claim(statement, "student", f"ahead in {ahead} of {len(pairs)} epochs", verdict)


def flops_ratio(tokens: Case | None, default: Case | None) -> Claim:
    """What mask tokens in the encoder cost."""
    statement = f"They cost more: {published.STUDENT_FLOPS_RATIO:g}× the FLOPs (student), {published.PAPER_FLOPS_RATIO:g}× (paper)"
    a, b = (case.estimate("flops") if case else None for case in (tokens, default))
    if not a or not b:
        return Claim(statement, "both", "–", "not run")
    ratio = a.mean / b.mean
    return Claim(statement, "both", f"{ratio:.2f}×", judge(estimate([ratio - 1]), exact=True))
