"""The parameters of a run: flat, typed, checked before anything is computed.

A notebook's cell tagged ``parameters`` lists the same names with the same defaults (a test holds the two together).
"""

import ast
import dataclasses
import difflib
import gc
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mae_core.data import AUGMENTATIONS, DATASETS, FOLDERS
from mae_core.errors import ParameterError
from mae_core.model.config import ATTENTIONS, STRATEGIES, VARIANTS, ModelConfig, check_grid, count_kept

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
OUTPUTS = Path("outputs")
FREE = ("checkpoint_seconds", "micro_batch", "threads", "compile")  # how, not what is computed: may change within a run
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def enter_project() -> None:
    """Begin a notebook: the project's root becomes the working folder, wherever below it the notebook was started.

    JupyterLab starts a notebook in its own folder, papermill where it is told to; outside the project the folder stays.
    Garbage is looked for less often, for torch's import makes objects by the hundred thousand (LOG.md has the figures).
    """
    gc.set_threshold(50_000)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            os.chdir(folder)
            return


def option(default: Any, about: str, *, choices: tuple[str, ...] = (), low: float = -math.inf, high: float = math.inf):
    """A dataclass field with its comment and what it allows (``low`` and ``high`` included)."""
    metadata = {"about": about, "choices": choices, "low": low, "high": high}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Parameters:
    """Flat parameters, checked one by one and together."""

    def __post_init__(self):
        for name in ("study", "case"):
            if hasattr(self, name):
                check_name(name, getattr(self, name))
        try:
            self.check_together()
        except ParameterError:
            raise
        except ValueError as error:
            raise ParameterError(str(error)) from error

    def check_together(self) -> None:
        """Raise ValueError where single values are fine but do not fit each other."""

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> Self:
        """Build the parameters from plain values.

        Raises:
            ParameterError: for an unknown name (with the nearest known one), a wrong type, or a value out of range.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                kind = cls.__name__.removesuffix("Parameters").lower()
                raise ParameterError(f"{name} is not a parameter of {kind}{nearest(name, fields)}")
        return cls(**{name: checked(fields[name], value) for name, value in values.items()})

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Build the parameters from a notebook's namespace: what its last cells of plain assignments have set.

        A misspelt name in such a cell (the notebook's own, or the one that papermill puts below it) is an error, and
        not ignored; what other cells have left in the namespace does not matter.

        Args:
            namespace: ``globals()``; IPython keeps the cells' sources in it, under ``In``.

        Raises:
            ParameterError: as :meth:`check`.
        """
        return cls.check({name: namespace[name] for name in assigned_last(namespace.get("In", []))})

    def flat(self) -> dict[str, Any]:
        """Name to plain value, in order: what ``papermill -f`` reads."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class RunParameters(Parameters):
    """What pre-training and fine-tuning have in common."""

    study: str = option("notebook", "results go to outputs/<study>/<case>/seed<seed>/")
    case: str = option("random-75", "name of this case within the study")
    seed: int = option(0, "of weights, order of images, augmentation and masks", low=0, high=2**31)
    dataset: str = option("shapes", "what to learn from", choices=DATASETS)
    data_dir: str = option("data", "folder that holds the data set")
    train_images: int = option(0, "use only the first so many training images; 0: all", low=0)
    device: str = option("auto", "auto: cuda, else mps, else cpu", choices=DEVICES)
    precision: str = option("auto", "of matrix products; auto: bfloat16 where fast", choices=PRECISIONS)
    threads: int = option(0, "CPU threads; 0: all cores", low=0, high=1024)
    compile: str = option(
        "auto", "torch.compile; graphs: with CUDA graphs; auto: on cuda", choices=("auto", "on", "graphs", "off")
    )
    checkpoint_seconds: float = option(60.0, "save for resuming every so often", low=0)
    variant: str = option("report", "model: the report's, or the MAE paper's", choices=VARIANTS)
    attention: str = option("auto", "explicit: softmax(q k) v; auto: fused, but where a cpu trains", choices=ATTENTIONS)
    patch_size: int = option(4, "side of a patch, pixels; divides 32", low=1, high=32)
    width: int = option(48, "of the encoder; a multiple of heads", low=4, high=4096)
    depth: int = option(2, "encoder blocks", low=1, high=64)
    heads: int = option(2, "attention heads of the encoder", low=1, high=64)
    decoder_width: int = option(48, "of the decoder; variant report: equal to width", low=4, high=4096)
    decoder_depth: int = option(1, "decoder blocks", low=1, high=64)
    decoder_heads: int = option(2, "attention heads of the decoder", low=1, high=64)
    batch_size: int = option(64, "images per step", low=1, high=50000)
    micro_batch: int = option(0, "images at once, gradients add up to a step's; 0: by the processor's caches", low=0)
    weight_decay: float = option(0.05, "AdamW, on matrices only", low=0, high=10)
    augment: str = option("none", "crop-flip: shifts up to 4 pixels, mirrors", choices=AUGMENTATIONS)

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        run = super().from_namespace(namespace)
        check_data_dir(run.dataset, run.data_dir)
        return run

    def check_together(self) -> None:
        _ = self.model  # checks its shape

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""
        names = [f.name for f in dataclasses.fields(ModelConfig) if hasattr(self, f.name)]
        return ModelConfig(**{name: getattr(self, name) for name in names})

    @property
    def folder(self) -> Path:
        """Where this case and seed keep their results."""
        return OUTPUTS / self.study / self.case / f"seed{self.seed}"


@dataclass(frozen=True)
class PretrainParameters(RunParameters):
    """One pre-training run."""

    mask_strategy: str = option("random", "which patches to hide", choices=STRATEGIES)
    mask_ratio: float = option(0.75, "share of patches to hide, in (0, 1); grid: 0.75", low=0, high=1)
    mask_tokens_in_encoder: bool = option(False, "true: hidden patches enter the encoder as mask tokens")
    norm_pix: bool = option(False, "true: predict each patch normalized to mean 0, variance 1")
    epochs: int = option(3, "passes over the training images", low=1, high=100000)
    warmup_epochs: float = option(1.0, "of linear rise of the learning rate", low=0)
    base_lr: float = option(6e-3, "learning rate at batch 256; scales with the batch", low=0, high=10)
    beta2: float = option(0.95, "AdamW's second momentum", low=0, high=0.999999)

    def check_together(self) -> None:
        super().check_together()
        count_kept(self.model.n_patches, self.mask_ratio)
        if self.mask_strategy == "grid":
            check_grid(self.mask_ratio, self.model.grid_size)
        if self.mask_tokens_in_encoder and self.decoder_width != self.width:
            raise ValueError(
                f"mask_tokens_in_encoder is true: decoder_width ({self.decoder_width}) must equal width ({self.width})"
            )
        check_warmup(self)


@dataclass(frozen=True)
class FinetuneParameters(RunParameters):
    """One fine-tuning run, or the same recipe from scratch."""

    weights: str = option("", "path of pre-trained weights (.safetensors); empty: from scratch")
    probes: bool = option(True, "also linear probe and k-NN on the frozen encoder")
    epochs: int = option(2, "passes over the training images", low=1, high=100000)
    warmup_epochs: float = option(1.0, "of linear rise of the learning rate", low=0)
    base_lr: float = option(8e-3, "learning rate at batch 256; scales with the batch", low=0, high=10)
    beta2: float = option(0.999, "AdamW's second momentum", low=0, high=0.999999)

    def check_together(self) -> None:
        super().check_together()
        check_warmup(self)


CASES = ("random-75", "mask-tokens", "block-50", "block-75", "grid-75", "scratch")
SWEEP = ("random-25", "random-50", "random-90", "random-75-longer")


@dataclass(frozen=True)
class ReportParameters(Parameters):
    """Which results to compare and to report."""

    study: str = option("laptop", "its results lie in outputs/<study>/")
    cases: list = option(list(CASES), "names of the cases to show, in order")
    sweep: list = option(list(SWEEP), "more cases: other ratios, other lengths; may be empty")
    seeds: list = option([0], "the seeds of each")

    def check_together(self) -> None:
        for name, kind in (("cases", str), ("seeds", int)):
            values = getattr(self, name)
            if not values or any(type(value) is not kind for value in values) or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values!r}: it must list at least one, each once")
        for name, values in (("cases", self.cases), ("sweep", self.sweep)):
            for case in values:
                check_name(name, case)
        if len({*self.cases, *self.sweep}) < len(self.cases) + len(self.sweep):
            raise ValueError(f"sweep is {self.sweep!r}: it must list cases that do not stand under cases, each once")


def check_name(parameter: str, name: str) -> None:
    """Raise ParameterError unless a name is safe as a folder's."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ParameterError(
            f"{parameter} is {name!r}: a name is letters, digits, '-', '_' and '.', and begins with a letter or digit"
        )


def check_data_dir(dataset: str, data_dir: str) -> None:
    """Raise ParameterError if a data set would be written outside the working folder: only what is there is read there."""
    inside = Path(os.path.abspath(data_dir)).is_relative_to(Path.cwd())  # a link inside may lead elsewhere,
    inside = inside and ".." not in Path(data_dir).parts  # but nothing may go up from there
    if not inside and not (Path(data_dir) / FOLDERS[dataset]).is_dir():
        raise ParameterError(
            f"data_dir is {data_dir!r}: outside the project it must hold {FOLDERS[dataset]}/ already; to have it written "
            f"there, make data a link to that folder"
        )


def assigned_last(sources: list[str]) -> list[str]:
    """The names that the last cells of nothing but plain assignments set, in order.

    Args:
        sources: of all cells that were executed, the newest last.
    """
    found: list[str] = []
    for source in reversed(sources):
        names = assigned(source)
        if names:
            found = names + found
        elif found:
            break
    return list(dict.fromkeys(found))


def assigned(source: str) -> list[str]:
    """The names that a cell sets, if it does nothing but set names to literals; else none."""
    try:
        statements = ast.parse(source).body
        for statement in statements:
            ast.literal_eval(statement.value)
        targets = [s.target if isinstance(s, ast.AnnAssign) else s.targets[0] for s in statements]
        return [target.id for target in targets]
    except (SyntaxError, ValueError, TypeError, AttributeError):
        return []


def check_warmup(run: PretrainParameters | FinetuneParameters) -> None:
    """Raise ValueError if the learning rate would still rise when training ends."""
    if run.warmup_epochs > run.epochs:
        raise ValueError(f"warmup_epochs is {run.warmup_epochs}: it must be at most epochs, which is {run.epochs}")


def checked(spec: dataclasses.Field, value: Any) -> Any:
    """The value, as the field's type.

    Raises:
        ParameterError: for a wrong type, a choice that is not offered, or a number out of range.
    """
    name, kind, allowed = spec.name, spec.type, spec.metadata
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        hint = ""
        if kind in (int, float) and isinstance(value, str) and is_number(value):
            hint = " (YAML reads 1e-3 as text: write 1.0e-3, without quotes)"
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}[kind]
        raise ParameterError(f"{name} is {value!r}: it must be {wanted}{hint}")
    if allowed["choices"] and value not in allowed["choices"]:
        raise ParameterError(
            f"{name} is {value!r}: it must be one of {', '.join(allowed['choices'])}{nearest(value, allowed['choices'])}"
        )
    if kind in (int, float) and not allowed["low"] <= value <= allowed["high"]:
        raise ParameterError(f"{name} is {value}: it must be between {allowed['low']} and {allowed['high']}")
    return value


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """A suffix for an error: the known name that was probably meant, if there is one."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
