"""The results of a study, read from its folder."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mae_core.errors import ParameterError
from mae_core.report import published
from mae_core.report.statistics import Estimate, estimate, paired_difference
from mae_core.study.parameters import FREE, OUTPUTS, FinetuneParameters, PretrainParameters, ReportParameters
from mae_core.study.results import load_predictions, read_json
from mae_core.study.study import STAGES, Study

# Quantities of a run: name -> (stage, path into metrics.json)
QUANTITIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "accuracy": ("finetune", ("last_epoch_accuracy",)),
    "top5": ("finetune", ("top5_accuracy",)),
    "best_accuracy": ("finetune", ("best_epoch_accuracy",)),
    "linear": ("finetune", ("probes", "linear")),
    "knn": ("finetune", ("probes", "knn")),
    "flops": ("pretrain", ("flops_per_image",)),
    "psnr": ("pretrain", ("test_psnr",)),
    "loss": ("pretrain", ("test_loss",)),
    "seconds": ("pretrain", ("train_seconds",)),
    "speed": ("pretrain", ("images_per_second",)),
    "memory": ("pretrain", ("peak_memory_bytes",)),
    "wall": ("pretrain", ("wall_seconds",)),
    "finetune_seconds": ("finetune", ("train_seconds",)),
    "finetune_speed": ("finetune", ("images_per_second",)),
    "finetune_memory": ("finetune", ("peak_memory_bytes",)),
    "finetune_wall": ("finetune", ("wall_seconds",)),
}


@dataclass(frozen=True)
class Case:
    """One case of a study."""

    name: str  # as in the study file
    pretrained: PretrainParameters | None  # None from scratch, or if nothing has run
    from_scratch: bool  # whether fine-tuning started without weights; False if nothing has run
    folders: dict[int, Path]  # outputs/<study>/<case>/seed<k> by seed
    usual: PretrainParameters | None = None  # the study's usual length and target; labels name others
    spare: dict[int, Path] = field(default_factory=dict)  # folders of other seeds, for pictures that the chosen ones lack
    repeated: bool = False  # whether an earlier case of the study has the same label; the name then tells them apart

    def read(self, stage: str, file: str) -> dict[int, Any]:
        """The content of a stage's JSON file, for every seed that finished the stage."""
        paths = {seed: folder / stage for seed, folder in self.folders.items()}
        finished = {seed: path for seed, path in sorted(paths.items()) if (path / "metrics.json").exists()}
        return {seed: read_json(path / f"{file}.json") for seed, path in finished.items()}

    def values(self, quantity: str) -> dict[int, float]:
        """One of QUANTITIES by seed; empty if it was not run or not measured."""
        stage, path = QUANTITIES[quantity]
        found = {}
        for seed, value in self.read(stage, "metrics").items():
            for key in path:
                value = value.get(key) if value else None
            if value is not None:
                found[seed] = value
        return found

    def predictions(self) -> dict[int, np.ndarray]:
        """Predicted and true class of each test image, classes_2n, by seed; runs of before this was recorded lack them."""
        paths = {seed: self.folders[seed] / "finetune" / "predictions.png" for seed in self.read("finetune", "metrics")}
        return {seed: load_predictions(path) for seed, path in paths.items() if path.exists()}

    @property
    def n_test(self) -> int | None:
        """The number of test images; None if fine-tuning has not run."""
        told = next(iter(self.read("finetune", "metrics").values()), None)
        return sum(map(sum, told["predictions"]["confusion"])) if told else None

    def estimate(self, quantity: str) -> Estimate | None:
        """Mean and interval over the seeds; None if there is no value."""
        values = self.values(quantity)
        return estimate(list(values.values())) if values else None

    def finished(self, stage: str, file: str = "metrics.json") -> dict[int, Path]:
        """Folders of the chosen seeds that finished a stage and have the file; if none has it, those of other seeds."""
        folders = {seed: self.folders[seed] / stage for seed in self.read(stage, "metrics")}
        found = {seed: folder for seed, folder in folders.items() if (folder / file).exists()}
        if found or not folders or not self.spare:
            return found
        return replace(self, folders=self.spare, spare={}).finished(stage, file)

    def wall(self) -> Estimate | None:
        """Total seconds of both stages, with data and evaluation; None if a stage is missing."""
        first, second = self.values("wall"), self.values("finetune_wall")
        seeds = second.keys() if self.from_scratch else first.keys() & second.keys()
        return estimate([first.get(seed, 0.0) + second[seed] for seed in sorted(seeds)]) if seeds else None

    def folder(self, stage: str, file: str = "metrics.json") -> Path | None:
        """Folder of the first seed that finished a stage and has the file; None if there is none."""
        return next(iter(self.finished(stage, file).values()), None)

    def sources(self, stage: str, file: str = "metrics.json") -> list[str]:
        """Names of the runs that finished a stage and have the file, as figures and tables give them."""
        return [f"{self.name}/seed{seed}/{stage}" for seed in self.finished(stage, file)]

    def recipe(self, stage: str) -> dict[str, Any]:
        """The parameters of the first run of a stage; empty if none has run."""
        stored = next(iter(self.read(stage, "parameters").values()), None)
        return DEFAULTS[stage] | stored if stored else {}  # runs from before a parameter existed had its default

    def of(self, seeds: set[int]) -> "Case":
        """The case with only some of its seeds."""
        return replace(self, folders={k: folder for k, folder in self.folders.items() if k in seeds})

    def beats(self, other: "Case", quantity: str) -> Estimate | None:
        """The difference of a quantity from another case, paired by seed; None without a shared seed."""
        return paired_difference(self.values(quantity), other.values(quantity))

    def ratio(self, other: "Case", quantity: str) -> float | None:
        """The mean of a quantity divided by that of another case; None if one of them has not run."""
        own, others = self.estimate(quantity), other.estimate(quantity)
        return own.mean / others.mean if own and others else None

    @cached_property
    def label(self) -> str:
        """The case in words."""
        run, name = self.pretrained, f" ({self.name})" if self.repeated else ""
        if run is None:
            return f"from scratch{name}" if self.from_scratch else self.name
        # plain pixels are the usual target where there are any
        target = ", normalized pixels" if self.of_other_target else ""
        epochs = f", {run.epochs} epochs" if self.of_other_length else ""
        return f"{label_of(run.mask_strategy, run.mask_ratio, run.mask_tokens_in_encoder)}{target}{epochs}{name}"

    @property
    def masking(self) -> str:
        """How the case masks, within a sentence."""
        run = self.pretrained
        if run is None:
            return "75 % random masking"
        return f"{100 * run.mask_ratio:g} % {run.mask_strategy} masking{' and mask tokens' * run.mask_tokens_in_encoder}"

    @property
    def of_other_length(self) -> bool:
        """Whether the number of pre-training epochs differs from the study's usual one."""
        run, usual = self.pretrained, self.usual
        return run is not None and usual is not None and run.epochs != usual.epochs

    @property
    def of_other_target(self) -> bool:
        """Whether normalized pixels are predicted and the study's usual target is pixels, or the other way round."""
        run, usual = self.pretrained, self.usual
        return run is not None and usual is not None and run.norm_pix != usual.norm_pix

    @property
    def masks(self) -> tuple[str, float, bool] | None:
        """Strategy, ratio, mask tokens in the encoder; None if it has not run, or for another target than usual."""
        run = None if self.of_other_target else self.pretrained
        return (run.mask_strategy, run.mask_ratio, run.mask_tokens_in_encoder) if run else None

    @property
    def work(self) -> float | None:
        """FLOPs per image times epochs of pre-training; None if it has not run."""
        flops = self.estimate("flops")
        return flops.mean * self.pretrained.epochs if flops and self.pretrained else None


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
        """Read ``outputs/<study>``; a case that has not run has no values. Empty lists mean all cases or seeds on disk.

        A run whose recipe or images differ from the others, for example from before an edit of the study, is left out.
        """
        if not run.cases or not run.seeds:
            there = found_in(OUTPUTS / run.study)
            shown = run if run.cases else there
            run = run.model_copy(update={"cases": shown.cases, "sweep": shown.sweep, "seeds": run.seeds or there.seeds})
        found: dict[str, Case] = {}
        left_out: list[str] = []
        asked = {
            name: Case(name, None, False, {seed: OUTPUTS / run.study / name / f"seed{seed}" for seed in run.seeds})
            for name in [*run.cases, *run.sweep]
        }
        images = usual_images(asked.values())
        for name, every in asked.items():
            stages = {stage for stage in STAGES if every.recipe(stage)}
            compared = list(found.values())[: len(run.cases) or 1] if name in run.sweep else []
            patterns = [case for case in compared if all(map(case.recipe, stages))] or compared[:1]
            attempts = [of_one_recipe(every, pattern) for pattern in patterns] or [of_one_recipe(every)]
            folders, told = min(attempts, key=lambda attempt: len(attempt[1]))
            folders, told_too = of_usual_images(replace(every, folders=folders), images)
            left_out += told + told_too
            case = replace(every, folders=folders)
            numbers = {path.name[4:]: path for path in (OUTPUTS / run.study / name).glob("seed*")}
            others = {int(k): path for k, path in numbers.items() if k.isdecimal() and int(k) not in run.seeds}
            spare, _ = of_one_recipe(replace(every, folders=others), case)
            spare, _ = of_usual_images(replace(every, folders=spare), images)
            pretrained = [PretrainParameters.check(p) for p in case.read("pretrain", "parameters").values()]
            scratch = [not p["weights"] for p in case.read("finetune", "parameters").values()]
            found[name] = Case(name, pretrained[0] if pretrained else None, any(scratch), folders, None, spare)
        trained = [case.pretrained for case in found.values() if case.pretrained]
        usual = next((run for run in trained if not run.norm_pix), trained[0] if trained else None)
        labels: set[str] = set()
        for name, case in found.items():
            case = replace(case, usual=usual)
            found[name] = replace(case, repeated=case.label in labels)
            labels.add(case.label)
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
            for stage, words in (("pretrain", "pre-training"), ("finetune", "fine-tuning")):
                recipe, values = self.default.recipe(stage), case.recipe(stage)
                if values and (told := difference(values, recipe, may_differ(stage))):
                    found.append((case.label, words, told))
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
    table = results / "results.csv"
    lines = table.read_text(encoding="utf-8").splitlines()[1:] if table.exists() else []
    planned = [line.split(",")[1:3] for line in lines]  # a row of the table starts with study, case and seed
    cases = dict.fromkeys([*(case for case, _ in planned), *(path.parents[2].name for path in runs)])
    seeds = {int(seed) for _, seed in planned} | {read_json(path)["seed"] for path in runs}
    study = read_json(runs[0])["study"]
    added = on_request(study)
    sweep = [case for case in cases if case in added]
    usual = [case for case in cases if case not in added]
    return ReportParameters(study=study, cases=usual or sweep, sweep=sweep if usual else [], seeds=sorted(seeds))


def on_request(study: str) -> set[str]:
    """The cases under ``sweep`` and ``lengths`` of a study's file; without a file, those of the published studies."""
    try:
        found = Study.read(Path("params") / f"{study}.yaml")
    except ParameterError:
        return set(published.SWEEP)
    return {*found.sweep, *found.lengths}


NOT_RUN = Case("not run", None, False, {})
KINDS = (
    ("random", 0.25), ("random", 0.5), ("random", 0.75), ("random", 0.9), ("block", 0.5), ("block", 0.75), ("grid", 0.75),
)  # fmt: skip
LENGTHENED = (("random", 0.75, False), ("block", 0.5, False), ("grid", 0.75, False))  # compared at several lengths


def label_of(strategy: str, ratio: float, mask_tokens: bool = False) -> str:
    """A kind of masks in words."""
    return f"{strategy} {100 * ratio:g} %{' + mask tokens' if mask_tokens else ''}"


def shared_seeds(cases: list[Case]) -> list[Case]:
    """The cases with only the seeds that all of them (except those that have not run) finished."""
    shared = shared_by(cases)
    return [case.of(shared) for case in cases]


def shared_by(cases: list[Case]) -> set[int]:
    """The seeds that all cases finished, except those that have not run."""
    finished = [set(case.values("accuracy")) for case in cases if case.values("accuracy")]
    return set.intersection(*finished) if finished else set()


# Parameters that may differ between compared runs: names, and how a run is computed.
NOT_THE_RECIPE = {"study", "case", "seed", "weights", "data_dir", "device", "probes", *FREE}
DEFAULTS = {"pretrain": PretrainParameters().flat(), "finetune": FinetuneParameters().flat()}
SWEPT = {"mask_strategy", "mask_ratio", "mask_tokens_in_encoder", "norm_pix", "epochs"}  # may differ in a sweep


def may_differ(stage: str) -> set[str]:
    """The parameters in which compared cases of a study may differ."""
    return NOT_THE_RECIPE | SWEPT if stage == "pretrain" else NOT_THE_RECIPE


def of_one_recipe(case: Case, pattern: Case | None = None) -> tuple[dict[int, Path], list[str]]:
    """The folders of a case's runs with the recipe of its first run and, except for the masks, of ``pattern``.

    With them, a sentence on each other run.
    """
    folders, left_out = dict(case.folders), []
    for stage in STAGES:
        stored: dict[str, Any]
        wanted: list[tuple[dict[str, Any], set[str]]] = []
        if pattern:
            wanted.append((pattern.recipe(stage), may_differ(stage)))
        for seed, stored in case.read(stage, "parameters").items():
            values = DEFAULTS[stage] | stored  # runs from before a parameter existed had its default
            told = [words for recipe, free in wanted if (words := difference(values, recipe, free))]
            if told and seed in folders:
                del folders[seed]
                left_out.append(f"{case.name}/seed{seed}/{stage}: {told[0]}")
            elif not told and len(wanted) == bool(pattern):
                wanted.append((values, NOT_THE_RECIPE))
    return folders, left_out


def data_of(case: Case) -> Iterator[tuple[int, str, str, str]]:
    """Seed, stage, data set in words and checksum of the data of each run."""
    for stage in STAGES:
        sources = case.read(stage, "provenance")
        for seed, stored in case.read(stage, "parameters").items():
            values = DEFAULTS[stage] | stored  # runs from before a parameter existed had its default
            own, known = f"images in {values['data_dir']}", f"{values['dataset']} of {values['image_size']} pixels"
            yield seed, stage, own if values["dataset"] == "folder" else known, sources[seed]["data_md5"]


def usual_images(cases: Iterable[Case]) -> dict[str, str]:
    """The checksum that most runs on each data set have; of equally many, the first."""
    counts = Counter((data, md5) for case in cases for _, _, data, md5 in data_of(case))
    return {data: md5 for (data, md5), _ in reversed(counts.most_common())}


def of_usual_images(case: Case, usual: Mapping[str, str]) -> tuple[dict[int, Path], list[str]]:
    """The folders of a case's runs that read the usual images of their data set, and a sentence on each other run."""
    folders, left_out = dict(case.folders), []
    for seed, stage, data, md5 in data_of(case):
        if seed in folders and usual.get(data, md5) != md5:
            del folders[seed]
            left_out.append(f"{case.name}/seed{seed}/{stage}: its {data} were not those of most runs")
    return folders, left_out


def difference(values: dict[str, Any], recipe: dict[str, Any], free: set[str]) -> str:
    """A sentence about the first parameter in which a run differs from a recipe; empty if there is none."""
    for name, wanted in recipe.items():
        if name not in free and values.get(name, wanted) != wanted:
            return f"{name} is {values[name]!r} there, and {wanted!r} elsewhere"
    return ""


def accuracy_series(summary: Summary) -> list[dict[str, Any]]:
    """Every case's accuracies and the published ones, for figures.accuracies."""
    return [
        {
            "name": case.label,
            "values": list(mean.values) if (mean := case.estimate("accuracy")) else [],
            "half_width": mean.half_width if mean else None,
            "student": published.STUDENT.get(case.masks) if summary.compared and case.masks else None,
            "paper": published.PAPER.get(case.masks) if summary.compared and case.masks else None,
        }
        for case in summary.cases.values()
    ]
