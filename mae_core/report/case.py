"""One case of a study: the results of its seeds, read from their folders."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mae_core.report.statistics import Estimate, estimate, paired_difference
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import load_predictions, read_json

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
MEMORY = {"memory", "finetune_memory"}  # depend on the machine, its threads and the precision, too
DEFAULTS = {"pretrain": PretrainParameters().flat(), "finetune": FinetuneParameters().flat()}


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
        return {seed: read_again(path / f"{file}.json") for seed, path in finished.items()}

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
        seed, told = next(iter(self.read("finetune", "metrics").items()), (0, None))
        if told and "confusion" not in told["predictions"]:  # of many classes
            return self.predictions()[seed].shape[1]
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

    def recipes(self, stage: str) -> dict[int, dict[str, Any]]:
        """The parameters of each run of a stage by seed; runs from before a parameter existed had its default."""
        return {seed: DEFAULTS[stage] | stored for seed, stored in self.read(stage, "parameters").items()}

    def recipe(self, stage: str) -> dict[str, Any]:
        """The parameters of the first run of a stage; empty if none has run."""
        return next(iter(self.recipes(stage).values()), {})

    def of(self, seeds: set[int]) -> "Case":
        """The case with only some of its seeds."""
        return replace(self, folders={k: folder for k, folder in self.folders.items() if k in seeds})

    def beats(self, other: "Case", quantity: str) -> Estimate | None:
        """The difference of a quantity from another case, paired by seed; None without a seed to compare."""
        return paired_difference(self.comparable(other, quantity), other.values(quantity))

    def differences(self, other: "Case", quantity: str) -> dict[int, float]:
        """The difference of a quantity from another case by seed."""
        ours, theirs = self.comparable(other, quantity), other.values(quantity)
        return {seed: ours[seed] - theirs[seed] for seed in sorted(ours)}

    def comparable(self, other: "Case", quantity: str) -> dict[int, float]:
        """A quantity by seed, with the seeds that another case has, too; memory only of runs on the same machine."""
        values, shared = self.values(quantity), set(other.values(quantity))
        if quantity in MEMORY:
            ours, theirs = (case.computed(QUANTITIES[quantity][0]) for case in (self, other))
            shared = {seed for seed in shared if ours.get(seed) == theirs[seed]}
        return {seed: values[seed] for seed in sorted(values.keys() & shared)}

    def computed(self, stage: str) -> dict[int, tuple[str, str]]:
        """The device, with its threads, and the precision of each run of a stage by seed."""
        return {seed: (told["device"], told["precision"]) for seed, told in self.read(stage, "provenance").items()}

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


def read_again(path: Path) -> Any:
    """The content of a JSON file, which is read again only if it has changed. Callers must not change it."""
    state = path.stat()
    return read_once(path, (state.st_ino, state.st_size, state.st_mtime_ns))


@cache
def read_once(path: Path, state: tuple[int, int, int]) -> Any:
    """The content of a JSON file in a state of its inode, size and modification time."""
    return read_json(path)


NOT_RUN = Case("not run", None, False, {})


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


def best_first(cases: Mapping[str, Case]) -> list[str]:
    """The names of the cases that were fine-tuned, highest mean accuracy first."""
    means = {name: found.mean for name, case in cases.items() if (found := case.estimate("accuracy"))}
    return sorted(means, key=lambda name: -means[name])
