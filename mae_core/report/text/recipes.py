"""The section on recipes and runs, and the references."""

from collections import Counter

from mae_core.report import published
from mae_core.report.parts import parts
from mae_core.report.summary import Summary
from mae_core.report.text.method import masks
from mae_core.report.text.words import count, newest


def references(summary: Summary) -> dict[str, str]:
    """The references that the report cites."""
    left_out = references_left_out(summary)
    return {label: text for label, text in published.REFERENCES.items() if label not in left_out}


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


def recipe_notes(summary: Summary) -> str:
    """What the table of recipes does not say itself."""
    rate = "The highest learning rate is base_lr × batch_size / 256."
    if not any(run["augment"] == "crop-flip" for run in summary.records("parameters")):
        return rate
    return (
        f"{rate} *crop-flip* shifts each image by up to 4 pixels and flips it horizontally with a probability of one half."
    )


def left_out(summary: Summary) -> str:
    """The runs that are not shown, and why; empty if all are shown."""
    return f" Left out because their recipe or images differ: {'; '.join(summary.left_out)}." if summary.left_out else ""


def reproduce(summary: Summary) -> str:
    """How to reproduce the study, and the environment of its last run."""
    last = newest(summary)
    if not last:
        return "Nothing has run yet."
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return (
        f"`make report STUDY={summary.name}` runs what is missing and writes this report; with `AGAIN=1`, it trains the "
        "cases that it always trains again; other seeds and sweeps are trained on request. The parameters are in "
        f"`params/{summary.name}.yaml`; the files of each run are in `outputs/{summary.name}/<case>/seed<k>/`. The last "
        f"run used {last['device']} ({last['platform']}, {last['precision']} matrix products) and {versions}. "
        f"{others_versions(summary)}{machines(summary)}MD5 of the data: `{last['data_md5']}`.{left_out(summary)}"
    )


def others_versions(summary: Summary) -> str:
    """The versions of other runs that differ from the last run's; empty if none do."""
    last = newest(summary)["versions"]
    found = Counter(
        f"{name} {version}"
        for run in summary.records("provenance")
        for name, version in run["versions"].items()
        if last.get(name, version) != version
    )
    told = ", ".join(f"{what} in {count(n, 'training')}" for what, n in sorted(found.items()))
    return f"Other versions: {told}. " if told else ""


def machines(summary: Summary) -> str:
    """How many runs each kind of machine trained, by its precision, and how many went on elsewhere; else empty."""
    runs, text = summary.records("provenance"), ""
    if moved := sum("machines" in run for run in runs):
        text = f"{count(moved, 'training')} went on elsewhere after an interruption; the machine is the last one. "
    kinds = Counter((run["device"].split(",")[0], run["precision"]) for run in runs)
    if len(kinds) < 2:
        return text
    told = ", ".join(f"{n} {device} ({precision})" for (device, precision), n in sorted(kinds.items()))
    return f"Trainings by machine and precision of matrix products: {told}. {text}"
