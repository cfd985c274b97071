"""The values that figures of accuracies draw."""

from typing import Any

from mae_core.report import published
from mae_core.report.statistics import Estimate
from mae_core.report.summary import Summary


def accuracy_series(summary: Summary) -> list[dict[str, Any]]:
    """Every case's accuracies and the published ones, for figures.accuracies."""
    return [
        {
            "name": case.label,
            "ours": case.estimate("accuracy"),
            "student": published.STUDENT.get(case.masks) if summary.compared and case.masks else None,
            "paper": published.PAPER.get(case.masks) if summary.compared and case.masks else None,
        }
        for case in summary.cases.values()
    ]


def ratio_series(summary: Summary) -> dict[float, dict[str, Estimate | None]]:
    """Accuracies after fine-tuning and of the linear probe by ratio of random masks, for figures.ratios."""
    quantities = ("accuracy", "linear")
    return {ratio: {name: case.estimate(name) for name in quantities} for ratio, case in summary.ratios().items()}


def length_series(summary: Summary) -> dict[int, dict[str, Estimate | None]]:
    """Accuracies of each kind of masks by epochs of pre-training, for figures.lengths."""
    lengths = summary.lengths().items()
    return {epochs: {kind: case.estimate("accuracy") for kind, case in cases.items()} for epochs, cases in lengths}
