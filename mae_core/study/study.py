"""A study: cases times seeds, each with the flat parameters of its runs."""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import Field, model_validator

from mae_core.errors import ParameterError
from mae_core.study.checked import Checked, Name, Seed
from mae_core.study.parameters import FinetuneParameters, PretrainParameters, check_data_dir

STAGES = {"pretrain": PretrainParameters, "finetune": FinetuneParameters}
ENCODER = (
    "dataset",
    "data_dir",
    "variant",
    "patch_size",
    "width",
    "depth",
    "heads",
    "norm_eps",
    "holdout",
)  # in both stages
GIVEN = {"study", "case", "seed", "weights"}  # set by the study for each run

Seeds = Annotated[tuple[Seed, ...], Field(strict=False)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Settings = dict[str, Any]
Cases = dict[Name, Settings | None]


class Study(Checked):
    """The content of a file in ``params/``; creating it checks the parameters of every run.

    Raises:
        ParameterError: names what is wrong, and where.
    """

    described: ClassVar[str] = "a key of a study file"

    name: Name = Field(alias="study", description="study name; results in outputs/<study>/, report in report/<study>/")
    seeds: Seeds = Field(min_length=1, description="seeds; every case runs with each of them")
    more_seeds: Seeds = Field((), description="additional seeds for every case, run on request: make seeds")
    pretrain_only: bool = Field(False, description="true: only pre-train, as images without classes must be")
    shared: Settings = Field({}, description="parameters of both pre-training and fine-tuning")
    pretrain: Settings = Field({}, description="parameters of pre-training")
    finetune: Settings = Field({}, description="parameters of fine-tuning")
    cases: Cases = Field(min_length=1, description="name of each case: its pre-training parameters; null: from scratch")
    sweep: Cases = Field({}, description="additional cases, run on request: make sweep")
    lengths: Cases = Field({}, description="cases of other pre-training lengths, run on request: make lengths")
    sweep_seeds: Seeds = Field((), description="seeds of the cases in sweep and lengths, some of all; empty: seeds")
    beside: Names = Field((), description="other studies that the report compares with, as far as they have run")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a study file; raises ParameterError if it is missing, is not YAML, or describes an invalid study."""
        try:
            content = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeys)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", "it is not text")
            raise ParameterError(f"the study file {path} cannot be read: {reason}") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
            raise ParameterError(f"the study file {path} is not YAML: {error}") from error
        study = cls.check(content)
        check_file(path, study)
        return study

    @classmethod
    def check(cls, content: Any) -> Self:
        """Build a study from a study file's content; raises ParameterError (see the class)."""
        if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
            keys = ", ".join(spec.alias or key for key, spec in cls.model_fields.items())
            raise ParameterError(f"the study file must be a mapping with the keys {keys}")
        return cls(**content)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_parts(cls, content: dict[str, Any]) -> dict[str, Any]:
        optional = {name for name, spec in cls.model_fields.items() if not spec.is_required()}
        return {key: value for key, value in content.items() if value is not None or key not in optional}

    def check_together(self) -> None:
        if len(set(self.all_seeds)) < len(self.all_seeds):
            seeds, more = list(self.seeds), list(self.more_seeds)
            raise ParameterError(f"seeds is {seeds} and more_seeds is {more}: list each seed once")
        if others := set(self.sweep_seeds) - set(self.all_seeds):
            raise ParameterError(f"sweep_seeds has {min(others)}: choose among seeds and more_seeds")
        groups = {"cases": self.cases, "sweep": self.sweep, "lengths": self.lengths}
        for (one, first), (other, second) in itertools.combinations(groups.items(), 2):
            for case in first.keys() & second.keys():
                raise ParameterError(f"{case} is under both {one} and {other}: list it once")
        if self.name in self.beside or len(set(self.beside)) < len(self.beside):
            raise ParameterError(f"beside is {list(self.beside)}: list other studies than {self.name}, each once")
        named = {f"case {case}": values or {} for case, values in self.all_cases.items()}
        for part, values in (named | {part: getattr(self, part) for part in ("shared", *STAGES)}).items():
            for name in GIVEN & values.keys():
                advice = "; other models are fine-tuned in notebooks/finetune.ipynb" if name == "weights" else ""
                raise ParameterError(f"{part}: {name} is set by the study for each run; leave it out{advice}")
        for case, masks in self.all_cases.items():
            if self.pretrain_only and masks is None:
                raise ParameterError(f"case {case} starts from scratch, and pretrain_only is true: remove one of them")
            runs = [self.run(case, self.seeds[0], stage) for stage in self.stages(case)]
            for name in ENCODER:
                if len({getattr(run, name) for run in runs}) > 1:
                    raise ParameterError(f"case {case}: {name} differs between pretrain and finetune; put it under shared")

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds in ``seeds`` and ``more_seeds``."""
        return self.seeds + self.more_seeds

    @property
    def all_cases(self) -> dict[str, dict[str, Any] | None]:
        """The cases in ``cases``, ``sweep`` and ``lengths``."""
        return self.cases | self.sweep | self.lengths

    @property
    def folders(self) -> set[str]:
        """The folders of images of one's own that its runs read."""
        runs = [self.run(case, self.seeds[0], stage) for case in self.all_cases for stage in self.stages(case)]
        return {run.data_dir for run in runs if run.dataset == "folder"}

    def stages(self, case: str) -> tuple[str, ...]:
        """``pretrain`` and ``finetune``; only the first with ``pretrain_only``, only the second for a case from scratch."""
        if self.pretrain_only:
            return ("pretrain",)
        return tuple(STAGES) if self.all_cases[case] is not None else ("finetune",)

    def run(self, case: str, seed: int, stage: str) -> PretrainParameters | FinetuneParameters:
        """The parameters of one run; raises ParameterError if the study has no such run."""
        for name, value, known in (
            ("case", case, tuple(self.all_cases)),
            ("seed", seed, self.all_seeds),
            ("stage", stage, tuple(STAGES)),
        ):
            if value not in known:
                raise ParameterError(f"{name} is {value!r}: {self.name} has {', '.join(map(str, known))}")
        if stage not in self.stages(case):
            why = "the study has pretrain_only: true" if self.pretrain_only else f"{case} starts from scratch"
            raise ParameterError(f"{why}: it has no {'fine-tuning' if self.pretrain_only else 'pre-training'}")
        values = self.shared | getattr(self, stage)
        values |= {"study": self.name, "case": case, "seed": seed}
        masks = self.all_cases[case] or {}
        if stage == "pretrain":
            values |= masks
        elif "pretrain" in self.stages(case):
            values |= {name: value for name, value in masks.items() if name in (*ENCODER, "image_size")}
            values["weights"] = str(self.run(case, seed, "pretrain").folder / "pretrain" / "weights.safetensors")
        else:
            values["weights"] = ""
        try:
            run = STAGES[stage](**values)
            check_data_dir(run.dataset, run.data_dir, run.image_size, stage == "finetune")
            return run
        except ParameterError as error:
            raise ParameterError(f"{self.name}, case {case}, {stage}: {error}") from error


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, but it rejects duplicate keys instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


def check_file(path: str | Path, study: Study) -> None:
    """Raise ParameterError unless a study's file has its name, so that a copy cannot overwrite another study's results."""
    if Path(path).stem != study.name:
        raise ParameterError(f"study is {study.name!r}, but its file is {path}: they must have the same name")


def flat_yaml(values: Mapping[str, Any]) -> str:
    """Parameters as one line of YAML, for ``papermill -y``."""
    return yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=sys.maxsize).strip()
