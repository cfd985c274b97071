"""A study: cases times seeds, each with the flat parameters of its runs."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from mae_core.errors import ParameterError
from mae_core.study.parameters import (
    FinetuneParameters,
    PretrainParameters,
    RunParameters,
    check_data_dir,
    check_name,
    nearest,
)

STAGES: dict[str, type[RunParameters]] = {"pretrain": PretrainParameters, "finetune": FinetuneParameters}
ENCODER = ("dataset", "data_dir", "variant", "patch_size", "width", "depth", "heads")  # the same in both stages
KEYS = ("study", "seeds", "more_seeds", "shared", "pretrain", "finetune", "cases", "sweep")


@dataclass(frozen=True)
class Study:
    """What a file of ``params/`` says.

    Attributes:
        name: of the study; results go to outputs/<name>/, the report to report/<name>/.
        seeds: every case runs with each.
        more_seeds: the cases run with each of these, too, on request only.
        cases: name to the pre-training parameters that set it apart; None means from scratch.
        sweep: more cases, which run on request only.
        settings: parameters of all cases, under ``shared``, ``pretrain`` and ``finetune``.
    """

    name: str
    seeds: tuple[int, ...]
    more_seeds: tuple[int, ...]
    cases: dict[str, dict[str, Any] | None]
    sweep: dict[str, dict[str, Any] | None]
    settings: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a study file.

        Raises:
            ParameterError: if the file is missing, is no YAML, or says something that cannot be run.
        """
        try:
            content = yaml.load(Path(path).read_text(), UniqueKeys)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", "it is not text")
            raise ParameterError(f"the study file {path} cannot be read: {reason}") from error
        except yaml.YAMLError as error:
            raise ParameterError(f"the study file {path} is not YAML: {error}") from error
        study = cls.check(content)
        check_file(path, study)
        return study

    @classmethod
    def check(cls, content: Mapping[str, Any]) -> Self:
        """Build a study from a study file's content, and check the parameters of every run.

        Raises:
            ParameterError: naming what is wrong, and where.
        """
        if not isinstance(content, Mapping):
            raise ParameterError("the study file must be a mapping with the keys " + ", ".join(KEYS))
        for key in content:
            if key not in KEYS:
                raise ParameterError(f"{key} is not a key of a study file{nearest(key, KEYS)}")
        cases, sweep = content.get("cases"), content.get("sweep") or {}
        seeds, more_seeds = content.get("seeds"), content.get("more_seeds") or []
        for name, values in (("seeds", seeds), ("more_seeds", more_seeds)):
            if not isinstance(values, list) or any(type(seed) is not int or seed < 0 for seed in values):
                raise ParameterError(f"{name} is {values!r}: it must list whole numbers, zero or more")
        if not seeds:
            raise ParameterError(f"seeds is {seeds!r}: it must list at least one")
        if len({*seeds, *more_seeds}) < len(seeds) + len(more_seeds):
            raise ParameterError(f"seeds is {seeds!r} and more_seeds {more_seeds!r}: each seed may stand there once")
        if not isinstance(cases, Mapping) or not cases:
            raise ParameterError("cases must map names to parameters, with at least one case")
        if not isinstance(sweep, Mapping):
            raise ParameterError(f"sweep is {sweep!r}: it must map names of more cases to parameters")
        for case in cases.keys() & sweep.keys():
            raise ParameterError(f"{case} stands under cases and under sweep: it may stand there once")
        settings = {part: {} if content.get(part) is None else content[part] for part in ("shared", *STAGES)}
        for part, value in [*settings.items(), *cases.items(), *sweep.items()]:
            if not isinstance(value, Mapping | None):
                raise ParameterError(f"{part} is {value!r}: it must map parameters to values")
        check_name("study", content.get("study"))
        for case, masks in [*cases.items(), *sweep.items()]:
            check_name("cases" if case in cases else "sweep", case)
            for name in {"study", "case", "seed"} & (masks or {}).keys():
                raise ParameterError(f"case {case}: {name} is given by the study, not by a case")
        study = cls(content["study"], tuple(seeds), tuple(more_seeds), dict(cases), dict(sweep), settings)
        for case in study.all_cases:
            runs = [study.run(case, study.seeds[0], stage) for stage in study.stages(case)]
            for name in ENCODER:
                if len({getattr(run, name) for run in runs}) > 1:
                    raise ParameterError(
                        f"case {case}: {name} differs between pretrain and finetune; put it under shared"
                    )
        return study

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Those of ``seeds`` and of ``more_seeds``."""
        return self.seeds + self.more_seeds

    @property
    def all_cases(self) -> dict[str, dict[str, Any] | None]:
        """Those of ``cases`` and of ``sweep``."""
        return self.cases | self.sweep

    def stages(self, case: str) -> tuple[str, ...]:
        """``pretrain`` and ``finetune``, or only the latter for a case from scratch."""
        return tuple(STAGES) if self.all_cases[case] is not None else ("finetune",)

    def run(self, case: str, seed: int, stage: str) -> PretrainParameters | FinetuneParameters:
        """The parameters of one run.

        Raises:
            ParameterError: if the study has no such run, or its parameters do not fit.
        """
        for name, value, known in (
            ("case", case, tuple(self.all_cases)),
            ("seed", seed, self.all_seeds),
            ("stage", stage, tuple(STAGES)),
        ):
            if value not in known:
                raise ParameterError(f"{name} is {value!r}: {self.name} has {', '.join(map(str, known))}")
        if stage not in self.stages(case):
            raise ParameterError(f"{case} starts from scratch: it has no pre-training")
        values = self.settings["shared"] | self.settings[stage]
        values |= {"study": self.name, "case": case, "seed": seed}
        masks = self.all_cases[case] or {}
        if stage == "pretrain":
            values |= masks
        elif "pretrain" in self.stages(case):
            values |= {name: value for name, value in masks.items() if name in ENCODER}
            values["weights"] = str(self.run(case, seed, "pretrain").folder / "pretrain" / "weights.safetensors")
        try:
            run = STAGES[stage].check(values)
            check_data_dir(run.dataset, run.data_dir)
            return run
        except ParameterError as error:
            raise ParameterError(f"{self.name}, case {case}, {stage}: {error}") from error


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of several entries of one name; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def check_file(path: str | Path, study: Study) -> None:
    """Raise ParameterError unless a study's file has its name, so that no copy writes over another study's results."""
    if Path(path).stem != study.name:
        raise ParameterError(f"study is {study.name!r}, but its file is {path}: they must have the same name")


def flat_yaml(values: Mapping[str, Any]) -> str:
    """Parameters as one line of YAML, for ``papermill -y``."""
    return yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=sys.maxsize).strip()
