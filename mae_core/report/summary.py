"""The results of a study: its cases, and what their comparisons need to know."""

import csv
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mae_core.errors import ParameterError
from mae_core.report import published
from mae_core.report.case import NOT_RUN, Case, label_of, shared_by, shared_seeds
from mae_core.report.comparable import comparable_cases, first_difference, may_differ
from mae_core.study.parameters import OUTPUTS, ReportParameters
from mae_core.study.results import read_json
from mae_core.study.study import STAGES, Study

KINDS = (
    ("random", 0.25), ("random", 0.5), ("random", 0.75), ("random", 0.9), ("block", 0.5), ("block", 0.75), ("grid", 0.75),
)  # fmt: skip
LENGTHENED = (("random", 0.75, False), ("block", 0.5, False), ("grid", 0.75, False))  # compared at several lengths


@dataclass(frozen=True)
class Summary:
    """The results of a study, as far as they exist."""

    name: str
    cases: dict[str, Case] = field(default_factory=dict)
    sweep: dict[str, Case] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  # runs of another recipe or on other images, each with what differs
    planned: int = 0  # number of seeds that were asked for, whether they have run or not

    @classmethod
    def read(cls, run: ReportParameters) -> "Summary":
        """Read ``outputs/<study>``; a case that has not run has no values.

        Empty lists mean all cases or seeds that have run or that results.csv lists. A run whose recipe or images differ
        from the others, for example from before an edit of the study, is left out.
        """
        if not run.cases or not run.seeds:
            there = found_in(OUTPUTS / run.study)
            shown = run if run.cases else there
            run = run.model_copy(update={"cases": shown.cases, "sweep": shown.sweep, "seeds": run.seeds or there.seeds})
        comparable, left_out = comparable_cases(run)
        found = labelled(comparable)
        cases, sweep = ({name: found[name] for name in names} for names in (run.cases, run.sweep))
        return cls(run.study, cases, sweep, tuple(left_out), len(run.seeds))

    @property
    def all_cases(self) -> dict[str, Case]:
        """All entries of ``cases`` and ``sweep``."""
        return self.cases | self.sweep

    def lengths(self) -> dict[int, dict[str, Case]]:
        """Random 75 %, block 50 % and grid 75 % by epochs of pre-training, shortest first; empty without two lengths.

        A length counts if at least two of the kinds have run. All have the seeds that the kinds of every length share; a
        kind that lacks one of them at some length is left out there. Without a shared seed, the result is empty.
        """
        found: dict[int, dict[str, Case]] = {}
        for masks in LENGTHENED:
            for case in self.all_cases.values():
                if case.pretrained and case.masks == masks and case.values("accuracy"):
                    found.setdefault(case.pretrained.epochs, {}).setdefault(label_of(*masks), case)
        found = {epochs: found[epochs] for epochs in sorted(found) if len(found[epochs]) > 1}
        if len(found) < 2:
            return {}
        always = set.intersection(*(set(cases) for cases in found.values()))
        seeds = shared_by(
            [case for cases in found.values() for label, case in cases.items() if label in always or not always]
        )
        whole = {
            epochs: {label: case.of(seeds) for label, case in cases.items() if seeds <= case.values("accuracy").keys()}
            for epochs, cases in found.items()
        }
        return whole if seeds else {}

    def records(self, file: str, *stages: str) -> list[Any]:
        """The content of a JSON file of every finished run; of some stages, or of both."""
        cases = self.all_cases.values()
        return [found for case in cases for stage in stages or STAGES for found in case.read(stage, file).values()]

    def find(self, strategy: str, ratio: float, mask_tokens: bool = False) -> Case:
        """The first case of usual length and target with these masks, or one that has not run."""
        masks = (strategy, ratio, mask_tokens)
        fitting = (case for case in self.all_cases.values() if not case.of_other_length and case.masks == masks)
        return next(fitting, replace(NOT_RUN, name=label_of(*masks)))

    @property
    def scratch(self) -> Case:
        """The first case that was fine-tuned without pre-trained weights, or one that has not run."""
        from_scratch = (case for case in self.all_cases.values() if case.from_scratch)
        return next(from_scratch, replace(NOT_RUN, name="from scratch"))

    @cached_property
    def default(self) -> Case:
        """The case that others are compared with: random 75 %, or else the first pre-trained one.

        Without pre-training, the first that was fine-tuned from other weights.
        """
        usual, cases = self.find("random", 0.75), self.all_cases.values()
        trained = [case for case in (usual, *cases) if case.pretrained]
        tuned = [case for case in cases if case.values("accuracy") and not case.from_scratch]
        return next(iter((*trained, *tuned)), usual)

    def equal_work(self) -> Case:
        """The case of random 75 % whose compute is that of block 50 %, within 5 %, or NOT_RUN."""
        work = self.find("block", 0.5).work
        for case in self.all_cases.values():
            fits = case.of_other_length and case.masks == ("random", 0.75, False)
            if fits and work and case.work and abs(case.work / work - 1) < 0.05:
                return case
        return NOT_RUN

    def ratios(self) -> dict[float, Case]:
        """The cases of random masking by ratio, lowest first, with only the seeds that all of them finished."""
        ran = {case.pretrained.mask_ratio for case in self.all_cases.values() if case.pretrained}
        found = {ratio: self.find("random", ratio) for ratio in sorted(ran)}
        found = {ratio: case for ratio, case in found.items() if case.values("accuracy")}
        return dict(zip(found, shared_seeds(list(found.values())), strict=True))

    def other_recipes(self) -> list[tuple[str, str, str]]:
        """Case, stage and first differing parameter of each case whose recipe is not the default case's, except for masks.

        What a study file sets for a case on purpose counts, too: a comparison of such cases is not one of masks alone.
        """
        found = []
        for case in self.all_cases.values():
            for stage, name in (("pretrain", "pre-training"), ("finetune", "fine-tuning")):
                recipe, values = self.default.recipe(stage), case.recipe(stage)
                if values and (words := first_difference(values, recipe, may_differ(stage))):
                    found.append((case.label, name, words))
        return found

    @property
    def seeds(self) -> list[int]:
        """All seeds with a finished fine-tuning run; of a study that only pre-trains, with a pre-training run."""
        cases = self.all_cases.values()
        tuned = {seed for case in cases for seed in case.values("accuracy")}
        return sorted(tuned or {seed for case in cases for seed in case.values("loss")})

    @cached_property
    def data(self) -> dict[str, str]:
        """The runs' data sets with their data_dir."""
        found = [
            p
            for case in self.all_cases.values()
            for s in ("finetune", "pretrain")
            for p in case.read(s, "parameters").values()
        ]
        return {p["dataset"]: p["data_dir"] for p in found}

    @property
    def compared(self) -> bool:
        """Whether the study is on CIFAR-10, or rehearses one: the published numbers have no meaning beside other images."""
        return self.data.keys() <= {"cifar10", "shapes"}

    @property
    def fine_tuned(self) -> bool:
        """Whether there is fine-tuning to report: not in a study that only pre-trains, or has only pre-trained so far."""
        cases = self.all_cases.values()
        return any(case.values("accuracy") for case in cases) or not any(case.values("loss") for case in cases)

    @property
    def last_quantity(self) -> str:
        """The quantity that a complete run has: its accuracy, or in a study that only pre-trains its loss."""
        return "accuracy" if self.fine_tuned else "loss"

    @property
    def whole(self) -> bool:
        """Whether the report has all its parts, with dashes for what is missing; else it has what the study has."""
        return self.compared and self.fine_tuned

    @property
    def kinds(self) -> dict[str, Path]:
        """The pre-training folder of each kind of masks in the report's figures, by label, as far as they have run."""
        found = [self.find(*masks) for masks in KINDS]
        return {case.label: folder for case in found if (folder := case.folder("pretrain"))}

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty before a fine-tuning run."""
        told = (m for case in self.all_cases.values() for m in case.read("finetune", "metrics").values())
        return next((list(m["predictions"]["classes"]) for m in told), [])


def labelled(cases: dict[str, Case]) -> dict[str, Case]:
    """The cases with what their labels need: the study's usual length and target, and which label was there before."""
    trained = [case.pretrained for case in cases.values() if case.pretrained]
    usual = next((run for run in trained if not run.norm_pix), trained[0] if trained else None)
    found: dict[str, Case] = {}
    labels: set[str] = set()
    for name, case in cases.items():
        case = replace(case, usual=usual)
        found[name] = replace(case, repeated=case.label in labels)
        labels.add(case.label)
    return found


def read_beside(run: ReportParameters) -> list[Summary]:
    """The studies in ``beside``, as far as they have results on disk."""
    there = [name for name in run.beside if any((OUTPUTS / name).glob("*/seed*/*/metrics.json"))]
    return [Summary.read(ReportParameters(study=name)) for name in there]


def found_in(results: Path) -> ReportParameters:
    """The cases and seeds in a folder of results, in the order of its results.csv, with those that it lists as not run.

    Raises:
        ParameterError: if there are none.
    """
    runs = sorted(results.glob("*/seed*/*/parameters.json"))
    if not runs:
        raise ParameterError(f"{results} holds no results: give a study's folder, such as outputs/laptop")
    planned = planned_in(results / "results.csv")
    cases = dict.fromkeys([*(case for case, _ in planned), *(path.parents[2].name for path in runs)])
    seeds = {seed for _, seed in planned} | {read_json(path)["seed"] for path in runs}
    study = read_json(runs[0])["study"]
    added = on_request(study)
    sweep = [case for case in cases if case in added]
    usual = [case for case in cases if case not in added]
    return ReportParameters(study=study, cases=usual or sweep, sweep=sweep if usual else [], seeds=sorted(seeds))


def planned_in(table: Path) -> list[tuple[str, int]]:
    """Case and seed of every row of a results.csv; empty if it is not there, or was saved in another form."""
    if not table.exists():
        return []
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            head, *rows = [*csv.reader(file)] or [[]]
    except (UnicodeDecodeError, csv.Error):
        return []
    if head[:3] != ["study", "case", "seed"] or not all(len(row) > 2 and row[2].isdecimal() for row in rows):
        return []
    return [(row[1], int(row[2])) for row in rows]


def on_request(study: str) -> set[str]:
    """The cases under ``sweep`` and ``lengths`` of a study's file; without a file, those of the published studies."""
    try:
        found = Study.read(Path("params") / f"{study}.yaml")
    except ParameterError:
        return set(published.SWEEP)
    return {*found.sweep, *found.lengths}
