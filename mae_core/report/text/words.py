"""Words that several passages share: lists, counts, seeds, intervals, the data set, and how classifiers were trained."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_core.report.case import Case, shared_by
from mae_core.report.parts import parts
from mae_core.report.summary import Summary
from mae_core.study.parameters import FinetuneParameters

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "shapes": "the package's own drawn shapes"}


def newest(summary: Summary) -> dict[str, Any]:
    """The provenance of the latest run; empty if nothing has run."""
    return max(summary.records("provenance"), key=lambda provenance: provenance["finished"], default={})


def count(n: int, noun: str) -> str:
    """A number and its noun, singular or plural."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(words: Sequence[str]) -> str:
    """Words as a list within a sentence: a, b and c."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def escaped(name: str) -> str:
    """A name in which nothing is read as Markdown or a formula."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$^=&-])", r"\\\1", name)


def seeds(summary: Summary) -> str:
    """The number of seeds, in words: of all main cases, or the fewest and the most."""
    numbers = {n for case in summary.cases.values() if (n := len(case.values(summary.last_quantity)))}
    if len(numbers) > 1:
        return f"{min(numbers)} to {max(numbers)} seeds a case"
    return count(max(numbers, default=len(summary.seeds)), "seed")


def seeds_of(cases: list[Case]) -> str:
    """The numbers of the seeds that cases share, in words; empty without one."""
    numbers = [str(seed) for seed in sorted(shared_by(cases))]
    return f"{'seed' if len(numbers) == 1 else 'seeds'} {listed(numbers)}" if numbers else ""


def same_seeds(cases: list[Case]) -> str:
    """Which seeds all rows of a table use; empty without one."""
    which = seeds_of(cases)
    return f"All rows use {which}." if which else ""


def seed_numbers(summary: Summary) -> list[int]:
    """The number of seeds of each case with an accuracy; of a study that only pre-trains, with a loss."""
    return [n for case in summary.all_cases.values() if (n := len(case.values(summary.last_quantity)))]


def intervals(summary: Summary) -> str:
    """The meaning of ±, or why there are no intervals."""
    numbers = seed_numbers(summary)
    several = [n for n in numbers if n > 1]
    if not several:
        results = "accuracies" if summary.fine_tuned else "results"
        and_order = " and the order of the cases" if len(numbers) > 1 else ""
        return (
            f"{'No case has more than' if len(summary.seeds) > 1 else 'There is'} one seed, so there are no intervals over "
            f"seeds: how much the {results}{and_order} depend on the seed is unknown."
        )
    least, most = min(several), max(several)
    number_of = f"{most}" if most == least else f"{least} to {most}"
    single = "; a case with one seed has none" if 1 in numbers else ""
    return (
        f"± is the half-width of the 95 % interval of the mean over the {number_of} seeds that a case finished ("
        f"{t_distribution(summary)}{single}). A difference is paired by seed, and uses the seeds that both cases finished. "
        "The interval covers the choice of "
        f"seeds{'; [Table 8](#tab-chance) adds the test images' if 'tab-chance' in parts(summary) else ''}."
    )


def t_distribution(summary: Summary) -> str:
    """The name of the distribution behind the intervals; where no student wrote a report, one without a Student."""
    return either(summary, "Student's t", "t distribution")


def plus_minus(summary: Summary, *beside: Summary) -> str:
    """Where ± is explained, or its meaning if only studies beside this one have intervals; empty without intervals."""
    if max(seed_numbers(summary), default=0) > 1:
        return "± is explained in the [abstract](#abstract)."
    if any(n > 1 for study in beside for n in seed_numbers(study)):
        return f"± is the half-width of the 95 % interval of the mean over the seeds ({t_distribution(summary)})."
    return ""


def dataset(summary: Summary, markdown: bool = True) -> str:
    """The names of the runs' data sets, in Markdown or as plain text."""
    folder = Path(summary.data.get("folder", "")).name
    folder = escaped(folder) if markdown else folder
    own = f"images of one's own{f' ({folder})' if folder else ''}"
    return " and ".join(DATASETS.get(name, own) for name in sorted(summary.data)) or "nothing yet"


def cost_of_blocks(summary: Summary) -> str:
    """What an epoch of block-wise 50 % costs beside random 75 %, for tables that compare them; empty without both."""
    flops = summary.find("block", 0.5).ratio(summary.find("random", 0.75), "flops")
    return f"An epoch of block-wise 50 % costs {flops:.2f} times the FLOPs of one of random 75 %." if flops else ""


def either(summary: Summary, compared: str, alone: str = "") -> str:
    """The first text where the study is compared with the student's report and the paper; otherwise the second."""
    return compared if summary.compared else alone


def tuned_only(summary: Summary) -> bool:
    """Whether the default case was fine-tuned from weights that this study did not train."""
    recipe = summary.default.recipe("finetune")
    return summary.default.pretrained is None and bool(recipe) and not FinetuneParameters.check(recipe).from_own


def every_case(summary: Summary) -> str:
    """What the tables of cases hold: without those of the sweep, if it has run."""
    swept = any(case.values("loss") for case in summary.sweep.values())
    return "the main cases" if swept else "every case"


def finetuned(summary: Summary) -> FinetuneParameters:
    """The parameters of the default case's fine-tuning, or else of the first; the defaults if there is none."""
    recipes = [case.recipe("finetune") for case in (summary.default, *summary.all_cases.values())]
    return FinetuneParameters.check(next(filter(None, recipes), {}))


def n_validation(summary: Summary) -> int:
    """The number of held-out images that replace the test images; of fine-tuning, or of pre-training if that is all."""
    stage = "finetune" if summary.fine_tuned else "pretrain"
    recipes = [case.recipe(stage) for case in summary.all_cases.values()]
    return next((recipe["holdout"] for recipe in recipes if recipe), 0)


def evaluated(summary: Summary) -> str:
    """What kind of images are evaluated: test or validation."""
    return "validation" if n_validation(summary) else "test"
