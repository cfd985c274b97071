"""Which runs of a study can be compared: those of one recipe, on the images that most of them read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mae_core.report.case import Case
from mae_core.study.parameters import FREE, OUTPUTS, PretrainParameters, ReportParameters
from mae_core.study.study import STAGES

# Parameters that may differ between compared runs: names, and how a run is computed.
NOT_THE_RECIPE = {"study", "case", "seed", "weights", "data_dir", "device", "probes", *FREE}
SWEPT = {"mask_strategy", "mask_ratio", "mask_tokens_in_encoder", "norm_pix", "epochs"}  # may differ in a sweep


def comparable_cases(run: ReportParameters) -> tuple[dict[str, Case], list[str]]:
    """Every case of a study with its comparable runs, and a sentence on each run that is left out."""
    found: dict[str, Case] = {}
    left_out: list[str] = []
    asked = {name: Case(name, None, False, seed_folders(run, name)) for name in [*run.cases, *run.sweep]}
    images = usual_images(asked.values())
    for name, every in asked.items():
        patterns = patterns_of(every, [found[usual] for usual in run.cases]) if name in run.sweep else [None]
        attempts = [of_one_recipe(every, pattern) for pattern in patterns]
        case, of_other_recipe = min(attempts, key=lambda attempt: len(attempt[1]))
        case, of_other_images = of_usual_images(case, images)
        left_out += of_other_recipe + of_other_images
        spare, _ = of_one_recipe(replace(every, folders=other_folders(run, name)), case)
        spare, _ = of_usual_images(spare, images)
        pretrained = [PretrainParameters.check(stored) for stored in case.read("pretrain", "parameters").values()]
        from_scratch = any(not stored["weights"] for stored in case.read("finetune", "parameters").values())
        first = pretrained[0] if pretrained else None
        found[name] = replace(case, pretrained=first, from_scratch=from_scratch, spare=spare.folders)
    return found, left_out


def seed_folders(run: ReportParameters, case: str) -> dict[int, Path]:
    """The folders of a case's seeds that a report asks for, whether they exist or not."""
    return {seed: OUTPUTS / run.study / case / f"seed{seed}" for seed in run.seeds}


def other_folders(run: ReportParameters, case: str) -> dict[int, Path]:
    """The folders on disk of a case's other seeds."""
    names = {path.name.removeprefix("seed"): path for path in (OUTPUTS / run.study / case).glob("seed*")}
    return {int(seed): path for seed, path in names.items() if seed.isdecimal() and int(seed) not in run.seeds}


def patterns_of(case: Case, usual: Sequence[Case]) -> Sequence[Case | None]:
    """The usual cases whose recipe a case of a sweep may have: those that ran all of its stages, or else the first."""
    stages = {stage for stage in STAGES if case.recipe(stage)}
    return [pattern for pattern in usual if all(map(pattern.recipe, stages))] or usual[:1] or [None]


def may_differ(stage: str) -> set[str]:
    """The parameters in which compared cases of a study may differ."""
    return NOT_THE_RECIPE | SWEPT if stage == "pretrain" else NOT_THE_RECIPE


def of_one_recipe(case: Case, pattern: Case | None = None) -> tuple[Case, list[str]]:
    """A case's runs of its first run's recipe and, except for the masks, of ``pattern``'s; a sentence on each other run."""
    folders, left_out = dict(case.folders), []
    for stage in STAGES:
        wanted: list[tuple[dict[str, Any], set[str]]] = []
        if pattern:
            wanted.append((pattern.recipe(stage), may_differ(stage)))
        for seed, values in case.recipes(stage).items():
            others = [words for recipe, free in wanted if (words := first_difference(values, recipe, free))]
            if others and seed in folders:
                del folders[seed]
                left_out.append(f"{case.name}/seed{seed}/{stage}: {others[0]}")
            elif not others and len(wanted) == bool(pattern):
                wanted.append((values, NOT_THE_RECIPE))
    return replace(case, folders=folders), left_out


def of_usual_images(case: Case, usual: Mapping[str, str]) -> tuple[Case, list[str]]:
    """A case's runs that read the usual images of their data set; a sentence on each other run."""
    folders, left_out = dict(case.folders), []
    for seed, stage, data, md5 in data_of(case):
        if seed in folders and usual.get(data, md5) != md5:
            del folders[seed]
            left_out.append(f"{case.name}/seed{seed}/{stage}: its {data} were not those of most runs")
    return replace(case, folders=folders), left_out


def usual_images(cases: Iterable[Case]) -> dict[str, str]:
    """The checksum that most runs on each data set have; of equally many, the first."""
    counts = Counter((data, md5) for case in cases for _, _, data, md5 in data_of(case))
    return {data: md5 for (data, md5), _ in reversed(counts.most_common())}


def data_of(case: Case) -> Iterator[tuple[int, str, str, str]]:
    """Seed, stage, data set in words and checksum of the data of each run."""
    for stage in STAGES:
        sources = case.read(stage, "provenance")
        for seed, values in case.recipes(stage).items():
            own, known = f"images in {values['data_dir']}", f"{values['dataset']} of {values['image_size']} pixels"
            yield seed, stage, own if values["dataset"] == "folder" else known, sources[seed]["data_md5"]


def first_difference(values: dict[str, Any], recipe: dict[str, Any], free: set[str]) -> str:
    """Words about the first parameter in which a run differs from a recipe; empty if there is none."""
    for name, wanted in recipe.items():
        if name not in free and values.get(name, wanted) != wanted:
            return f"{name} is {values[name]!r} instead of {wanted!r}"
    return ""
