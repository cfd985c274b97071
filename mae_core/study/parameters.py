"""The parameters of a run: flat, typed, checked before anything is computed.

A notebook's cell tagged ``parameters`` lists the same names with the same defaults (a test holds the two together).
"""

import ast
import dataclasses
import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from mae_core.data import FOLDERS, Augmentation, Dataset
from mae_core.errors import ParameterError
from mae_core.model.config import Attention, ModelConfig, Strategy, Variant, check_grid, count_kept
from mae_core.study.checked import Checked, Name, Seed

Device = Literal["auto", "cpu", "cuda", "mps"]
OUTPUTS = Path("outputs")
FREE = ("checkpoint_seconds", "micro_batch", "threads", "compile")  # how, not what is computed: may change within a run


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


class Parameters(Checked):
    """Flat parameters, checked one by one and together."""

    @classmethod
    def __pydantic_init_subclass__(cls, **more: Any) -> None:
        cls.described = f"a parameter of {cls.__name__.removesuffix('Parameters').lower()}"

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> Self:
        """Build the parameters from plain values, such as a file's.

        Raises:
            ParameterError: as the class.
        """
        return cls(**values)

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
        return self.model_dump()


class RunParameters(Parameters):
    """What pre-training and fine-tuning have in common."""

    study: Name = Field("notebook", description="results go to outputs/<study>/<case>/seed<seed>/")
    case: Name = Field("random-75", description="name of this case within the study")
    seed: Seed = Field(0, description="of weights, order of images, augmentation and masks")
    dataset: Dataset = Field("shapes", description="what to learn from")
    data_dir: str = Field("data", description="folder that holds the data set")
    train_images: int = Field(0, description="use only the first so many training images; 0: all", ge=0)
    device: Device = Field("auto", description="auto: cuda, else mps, else cpu")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto: bfloat16 where fast"
    )
    threads: int = Field(0, description="CPU threads; 0: all cores", ge=0, le=1024)
    compile: Literal["auto", "on", "graphs", "off"] = Field(
        "auto", description="torch.compile; graphs: with CUDA graphs; auto: on cuda"
    )
    checkpoint_seconds: float = Field(60.0, description="save for resuming every so often", ge=0)
    variant: Variant = Field("report", description="model: the report's, or the MAE paper's")
    attention: Attention = Field("auto", description="explicit: softmax(q k) v; auto: fused, but where a cpu trains")
    patch_size: int = Field(4, description="side of a patch, pixels; divides 32", ge=1, le=32)
    width: int = Field(48, description="of the encoder; a multiple of heads", ge=4, le=4096)
    depth: int = Field(2, description="encoder blocks", ge=1, le=64)
    heads: int = Field(2, description="attention heads of the encoder", ge=1, le=64)
    decoder_width: int = Field(48, description="of the decoder; variant report: equal to width", ge=4, le=4096)
    decoder_depth: int = Field(1, description="decoder blocks", ge=1, le=64)
    decoder_heads: int = Field(2, description="attention heads of the decoder", ge=1, le=64)
    batch_size: int = Field(64, description="images per step", ge=1, le=50000)
    micro_batch: int = Field(
        0, description="images at once, gradients add up to a step's; 0: by the processor's caches", ge=0
    )
    weight_decay: float = Field(0.05, description="AdamW, on matrices only", ge=0, le=10)
    augment: Augmentation = Field("none", description="crop-flip: shifts up to 4 pixels, mirrors")

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
        return ModelConfig(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(ModelConfig) if hasattr(self, f.name)}
        )

    @property
    def folder(self) -> Path:
        """Where this case and seed keep their results."""
        return OUTPUTS / self.study / self.case / f"seed{self.seed}"


class PretrainParameters(RunParameters):
    """One pre-training run."""

    mask_strategy: Strategy = Field("random", description="which patches to mask")
    mask_ratio: float = Field(0.75, description="share of patches to mask, in (0, 1); grid: 0.75", ge=0, le=1)
    mask_tokens_in_encoder: bool = Field(False, description="true: masked patches enter the encoder as mask tokens")
    norm_pix: bool = Field(False, description="true: predict each patch normalized to mean 0, variance 1")
    epochs: int = Field(3, description="passes over the training images", ge=1, le=100000)
    warmup_epochs: float = Field(1.0, description="of linear rise of the learning rate", ge=0)
    base_lr: float = Field(6e-3, description="learning rate at batch 256; scales with the batch", ge=0, le=10)
    beta2: float = Field(0.95, description="AdamW's second momentum", ge=0, le=0.999999)

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


class FinetuneParameters(RunParameters):
    """One fine-tuning run, or the same recipe from scratch."""

    weights: str = Field("", description="path of pre-trained weights (.safetensors); empty: from scratch")
    probes: bool = Field(True, description="also linear probe and k-NN on the frozen encoder")
    epochs: int = Field(2, description="passes over the training images", ge=1, le=100000)
    warmup_epochs: float = Field(1.0, description="of linear rise of the learning rate", ge=0)
    base_lr: float = Field(8e-3, description="learning rate at batch 256; scales with the batch", ge=0, le=10)
    beta2: float = Field(0.999, description="AdamW's second momentum", ge=0, le=0.999999)

    def check_together(self) -> None:
        super().check_together()
        check_warmup(self)


CASES = ("random-75", "mask-tokens", "block-50", "block-75", "grid-75", "scratch")
SWEEP = ("random-25", "random-50", "random-90", "random-75-longer")


class ReportParameters(Parameters):
    """Which results to compare and to report."""

    study: Name = Field("laptop", description="its results lie in outputs/<study>/")
    cases: list[Name] = Field(list(CASES), description="names of the cases to show, in order", min_length=1)
    sweep: list[Name] = Field(list(SWEEP), description="more cases: other ratios, other lengths; may be empty")
    seeds: list[Seed] = Field([0], description="the seeds of each", min_length=1)

    def check_together(self) -> None:
        for name in ("cases", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {values!r}: it must list each once")
        if len({*self.cases, *self.sweep}) < len(self.cases) + len(self.sweep):
            raise ValueError(f"sweep is {self.sweep!r}: it must list cases that do not stand under cases, each once")


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
        statements: list[Any] = ast.parse(source).body
        for statement in statements:
            ast.literal_eval(statement.value)
        targets: list[Any] = [s.target if isinstance(s, ast.AnnAssign) else s.targets[0] for s in statements]
        return [target.id for target in targets]
    except (SyntaxError, ValueError, TypeError, AttributeError):
        return []


def check_warmup(run: PretrainParameters | FinetuneParameters) -> None:
    """Raise ValueError if the learning rate would still rise when training ends."""
    if run.warmup_epochs > run.epochs:
        raise ValueError(f"warmup_epochs is {run.warmup_epochs}: it must be at most epochs, which is {run.epochs}")
