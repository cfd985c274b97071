"""The parameters of a run: flat, typed, and checked before anything is computed.

A notebook's cell tagged ``parameters`` lists the same names and defaults (a test compares the two).
"""

import ast
import dataclasses
import gc
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from mae_core.data import Augmentation, Dataset, Place, folder_of
from mae_core.data.layout import check_layout, looking_into
from mae_core.errors import MissingDataError, ParameterError
from mae_core.model.config import Attention, ModelConfig, Pooling, Strategy, Variant, check_grid, count_kept
from mae_core.study.checked import Checked, Name, Seed, UserPath
from mae_core.study.results import FULL, KEPT, read_json

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "on", "graphs", "off"]
OUTPUTS = Path("outputs")
# May change when a run resumes: how it computes.
FREE = ("data_on", "checkpoint_seconds", "micro_batch", "threads", "compile", "deterministic", "processes")


def enter_project() -> None:
    """Change the working folder from a subfolder of the project, where JupyterLab starts a notebook, to its root.

    Also run the garbage collector less often: importing torch creates hundreds of thousands of objects (see LOG.md).
    """
    gc.set_threshold(50_000)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            os.chdir(folder)
            return


class Parameters(Checked):
    """Flat parameters, validated one by one and then together."""

    @classmethod
    def __pydantic_init_subclass__(cls, **more: Any) -> None:
        cls.described = f"a parameter of {cls.__name__.removesuffix('Parameters').lower()}"

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> Self:
        """Build the parameters from plain values, such as those of a file; raises ParameterError (see the class)."""
        return cls(**{str(name): value for name, value in values.items()})

    @classmethod
    def from_namespace(cls, namespace: MutableMapping[str, Any]) -> Self:
        """Build the parameters from the variables that a notebook's cell of parameters sets.

        A misspelt name in that cell, or in the one that papermill inserts below it, raises ParameterError, and so does
        anything but plain values. Variables of other cells are ignored.

        Args:
            namespace: ``globals()``; IPython stores the source of executed cells there, under ``In``. What later cells
                made of an earlier run is deleted: after a failed check, they must not show it. A widget is also closed,
                because ipywidgets keeps those that are open, with all that they hold.
        """
        view = namespace.get("view")
        for name in ("run", "view", "summary", "model", "folder", "metrics", "history"):
            namespace.pop(name, None)
        if callable(close := getattr(view, "close", None)):
            close()
        return cls.check({name: namespace[name] for name in assigned_last(namespace.get("In", []), set(cls.model_fields))})

    def flat(self) -> dict[str, Any]:
        """Names and plain values in order, as ``papermill -f`` reads them."""
        return self.model_dump()


class RunParameters(Parameters):
    """Parameters that pre-training and fine-tuning share."""

    study: Name = Field("notebook", description="study name; results go to outputs/<study>/<case>/seed<seed>/")
    case: Name = Field("random-75", description="name of the case within the study")
    seed: Seed = Field(0, description="random seed of weights, image order, augmentation and masks")
    dataset: Dataset = Field("shapes", description="data set to train on")
    data_dir: UserPath = Field("data", description="folder that contains the data set")
    data_on: Place = Field(
        "auto", description="where images are; host: loaded batch by batch; auto: on the device if they fit"
    )
    train_images: int = Field(0, description="use only the first N training images; 0: all", ge=0)
    holdout: int = Field(0, description="hold out N training images and evaluate them instead of the test images", ge=0)
    device: Device = Field("auto", description="where to compute; auto: cuda if available, else mps, else cpu")
    precision: Precision = Field("auto", description="of matrix products; auto: bfloat16 if the hardware is faster with it")
    threads: int = Field(0, description="number of CPU threads; 0: all cores", ge=0, le=1024)
    processes: int = Field(1, description="processes that train together, each with its own GPU or threads", ge=1, le=1024)
    compile: Compile = Field("auto", description="torch.compile; graphs: with CUDA graphs; auto: on cuda with a compiler")
    deterministic: bool = Field(False, description="true: the same bits every time on cuda, too; slower")
    checkpoint_seconds: float = Field(60.0, description="seconds between checkpoints for resuming", ge=0)
    variant: Variant = Field("report", description="report: the student's model; paper: the MAE paper's; vit: a plain ViT")
    attention: Attention = Field(
        "auto", description="explicit: softmax(q k) v; auto: fused, unless that is slower on a cpu"
    )
    image_size: int = Field(32, description="side of the images in pixels; they are resized to it", ge=8, le=1024)
    patch_size: int = Field(4, description="side of a patch in pixels; must divide image_size", ge=1, le=1024)
    width: int = Field(48, description="encoder's width; must be a multiple of heads", ge=4, le=4096)
    depth: int = Field(2, description="number of encoder blocks", ge=1, le=64)
    heads: int = Field(2, description="number of attention heads in the encoder", ge=1, le=64)
    decoder_width: int = Field(
        48, description="decoder's width, for pre-training; variant report: must equal width", ge=4, le=4096
    )
    decoder_depth: int = Field(1, description="number of decoder blocks", ge=1, le=64)
    decoder_heads: int = Field(2, description="number of attention heads in the decoder", ge=1, le=64)
    norm_eps: float = Field(1e-6, description="epsilon of LayerNorm; for many weights of transformers 1e-12", ge=0, le=1)
    batch_size: int = Field(64, description="images per optimizer step", ge=1, le=50000)
    micro_batch: int = Field(0, description="images per pass; 0: as many as fit a CPU's caches, or all on a GPU", ge=0)
    weight_decay: float = Field(0.05, description="weight decay of AdamW; applies to matrices only", ge=0, le=10)
    augment: Augmentation = Field("none", description="crop-flip: random shifts by up to 4 pixels and horizontal flips")

    @classmethod
    def from_namespace(cls, namespace: MutableMapping[str, Any]) -> Self:
        run = super().from_namespace(namespace)
        check_data_dir(run.dataset, run.data_dir, run.image_size, issubclass(cls, FinetuneParameters))
        return run

    def check_together(self) -> None:
        _ = self.model  # validates the model's shape
        if self.processes > self.batch_size:
            raise ValueError(f"processes is {self.processes}: it must be at most batch_size, which is {self.batch_size}")

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""
        return self.shape()

    def shape(self, **more: Any) -> ModelConfig:
        """The model's shape, with other values for some fields."""
        names = [f.name for f in dataclasses.fields(ModelConfig) if hasattr(self, f.name)]
        return ModelConfig(**{name: getattr(self, name) for name in names} | more)

    @property
    def folder(self) -> Path:
        """Folder of the results of this case and seed."""
        return OUTPUTS / self.study / self.case / f"seed{self.seed}"

    @property
    def decisive(self) -> dict[str, Any]:
        """The parameters whose change repeats a run: not those of how it is computed, nor where a known data set is."""
        free = FREE if self.dataset == "folder" else (*FREE, "data_dir")
        return {name: value for name, value in self.flat().items() if name not in free}

    def change(self, path: Path) -> str:
        """The first decisive parameter in which a finished run's ``parameters.json`` differs; empty if none does."""
        try:
            stored = read_json(path)
        except (OSError, ValueError):
            return f"{path.name} cannot be read"
        stored = type(self)().flat() | stored  # runs from before a parameter existed had its default
        for name, wanted in self.decisive.items():
            if stored[name] != wanted:
                return f"its {name} was {stored[name]!r}, and the study asks for {wanted!r}"
        return ""


class PretrainParameters(RunParameters):
    """Parameters of one pre-training run."""

    mask_strategy: Strategy = Field("random", description="how to choose the patches to mask")
    mask_ratio: float = Field(0.75, description="fraction of patches to mask, in (0, 1); grid: 0.75", ge=0, le=1)
    mask_tokens_in_encoder: bool = Field(False, description="true: the encoder gets masked patches as mask tokens")
    norm_pix: bool = Field(False, description="true: predict patches normalized to mean 0, variance 1")
    epochs: int = Field(3, description="passes over the training images", ge=1, le=100000)
    warmup_epochs: float = Field(1.0, description="epochs of linear learning-rate warm-up", ge=0)
    base_lr: float = Field(6e-3, description="learning rate at batch_size 256; scales with it", ge=0, le=10)
    beta2: float = Field(0.95, description="beta2 of AdamW", ge=0, le=0.999999)

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

    @classmethod
    def from_namespace(cls, namespace: MutableMapping[str, Any]) -> Self:
        """As for all runs; says so where other masks than the default's would get the default's name."""
        run, usual = super().from_namespace(namespace), cls()
        named = ("mask_strategy", "mask_ratio", "mask_tokens_in_encoder")
        differs = next((name for name in named if getattr(run, name) != getattr(usual, name)), "")
        if run.case == usual.case and differs:
            print(
                f"note: {differs} is {getattr(run, differs)!r} and case is {run.case!r}: set case, too, unless this run "
                "may replace the usual one"
            )
        return run


class FinetuneParameters(RunParameters):
    """Parameters of one fine-tuning run, or of the same recipe from scratch."""

    weights: UserPath = Field(
        "auto", description="to start from: a path; auto: this case's pre-training, if there; empty: from scratch"
    )
    probes: bool = Field(True, description="also evaluate the frozen encoder with a linear probe and k-NN")
    epochs: int = Field(2, description="passes over the training images", ge=1, le=100000)
    warmup_epochs: float = Field(1.0, description="epochs of linear learning-rate warm-up", ge=0)
    base_lr: float = Field(8e-3, description="learning rate at batch_size 256; scales with it", ge=0, le=10)
    beta2: float = Field(0.999, description="beta2 of AdamW", ge=0, le=0.999999)
    pooling: Pooling = Field("class-token", description="what the head reads; mean: of the patch tokens")
    layer_decay: float = Field(
        1.0, description="factor of the learning rate from each layer to the one below; 1: off", ge=0.01, le=1
    )
    drop_path: float = Field(
        0.0, description="rate of drop path in the last block; it rises linearly from 0 in the first", ge=0, le=0.9
    )
    label_smoothing: float = Field(0.0, description="share of a label that is spread over all classes", ge=0, le=1)
    mixup: float = Field(0.0, description="alpha of mixup; 0: off", ge=0, le=100)
    cutmix: float = Field(0.0, description="alpha of cutmix; 0: off; with mixup: either, in each batch", ge=0, le=100)
    ema_decay: float = Field(
        0.0, description="of the moving average of the weights, which is then evaluated; 0: off", ge=0, le=0.999999
    )

    def check_together(self) -> None:
        super().check_together()
        check_warmup(self)
        if self.drop_path and self.depth == 1:
            raise ValueError(f"drop_path is {self.drop_path}: it never drops the first block, so depth must be at least 2")
        for name in ("mixup", "cutmix"):
            if (alpha := getattr(self, name)) and self.batch_size == 1:
                raise ValueError(f"{name} is {alpha}: it mixes the images of a batch, so batch_size must be at least 2")

    @property
    def model(self) -> ModelConfig:
        """The model's shape; fine-tuning has no decoder, so the width of one is not checked."""
        return self.shape(decoder_width=self.width, decoder_heads=self.heads)

    @classmethod
    def from_namespace(cls, namespace: MutableMapping[str, Any]) -> Self:
        """As for all runs; a run from scratch that has the default name of a case is renamed to ``scratch``."""
        run = super().from_namespace(namespace).resolved()
        unnamed = not run.weights and run.case == cls.model_fields["case"].default
        return run.model_copy(update={"case": "scratch"}) if unnamed else run

    @property
    def from_own(self) -> bool:
        """Whether it starts from the weights of this case's pre-training, however their path is given."""
        own, path = (self.folder / "pretrain").parts, Path(self.weights)
        return own in (path.parts[-len(own) :], path.parent.parts[-len(own) :])

    @property
    def others_weights(self) -> str:
        """The name of others' weights that it starts from; empty for none, and for a run's of this package."""
        if not self.weights or re.search(r"/seed\d+/(pretrain|finetune)\b", self.weights):
            return ""
        path = Path(self.weights)
        return f"{path.parent.name}/{path.name}" if path.suffix == ".safetensors" else path.name

    def resolved(self) -> Self:
        """Replace ``weights: auto`` by the path of this case's pre-trained weights, or by nothing if there are none.

        A copy in bfloat16 counts where the weights themselves are not there, as in a clone with published results.
        """
        paths = [self.folder / "pretrain" / name for name in (FULL, KEPT)]
        found = next((str(path) for path in paths if path.exists()), "")
        return self.model_copy(update={"weights": found}) if self.weights == "auto" else self


class ReportParameters(Parameters):
    """The results to compare and report."""

    study: Name = Field("laptop", description="name of the study; its results are in outputs/<study>/")
    cases: list[Name] = Field([], description="cases to show, in order; empty: all that results.csv lists or that have run")
    sweep: list[Name] = Field([], description="additional cases, beside the cases named above")
    seeds: list[Seed] = Field([], description="seeds to show; empty: all that results.csv lists or that have run")
    beside: list[Name] = Field([], description="other studies to compare with, as far as they have run")

    def check_together(self) -> None:
        for name in ("cases", "seeds", "beside"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {values!r}: list each entry once")
        if self.study in self.beside:
            raise ValueError(f"beside is {self.beside!r}: list other studies than {self.study}")
        if len({*self.cases, *self.sweep}) < len(self.cases) + len(self.sweep):
            raise ValueError(f"sweep is {self.sweep!r}: list each case once, either in cases or in sweep")


def check_data_dir(dataset: str, data_dir: str, image_size: int = 32, needs_classes: bool = False) -> None:
    """Check what can be checked of the data in a moment.

    Raises:
        ParameterError: if a data set outside the working folder is missing (it is never written there), or if a folder of
            images is not laid out as needed; see layout.check_layout.
    """
    folder = folder_of(dataset, image_size)
    try:
        if dataset == "folder":
            check_layout(Path(data_dir), needs_classes)
            return
        with looking_into(Path(data_dir)):
            there = (Path(data_dir) / folder).is_dir()
    except MissingDataError as error:
        raise ParameterError(str(error)) from error
    inside = Path(os.path.abspath(data_dir)).is_relative_to(Path.cwd())  # a link inside may point elsewhere,
    inside = inside and ".." not in Path(data_dir).parts  # but the path must not go up
    if not inside and not there:
        raise ParameterError(
            f"data_dir is {data_dir!r}: outside the project it must already contain {folder}/; to write it "
            f"there, make data a link to that folder"
        )


def assigned_last(sources: list[str], known: set[str]) -> list[str]:
    """The names that the last executed cell of parameters and the plain cells right below it set.

    A cell of parameters sets at least half of the known names; without one, the last cells of plain assignments count.

    Args:
        sources: of all executed cells, in order.

    Raises:
        ParameterError: if the cell of parameters does more than set plain values.
    """
    found: list[str] = []
    for place in reversed(range(len(sources))):
        if len(known & set(re.findall(r"^(\w+)\s*(?::[^=\n]*)?=", sources[place], re.M))) >= len(known) / 2:
            found = assigned(sources[place])
            if not found:
                raise ParameterError(
                    "the cell of parameters can only set plain values, as in epochs: int = 3; move other code elsewhere"
                )
            for source in sources[place + 1 :]:
                if not (more := assigned(source)):
                    break
                found += more
            return list(dict.fromkeys(found))
    for source in reversed(sources):
        names = assigned(source)
        if names:
            found = names + found
        elif found:
            break
    return list(dict.fromkeys(found))


def assigned(source: str) -> list[str]:
    """The names that a cell sets if it only assigns literals to names; otherwise an empty list."""
    try:
        statements: list[Any] = ast.parse(source).body
        for statement in statements:
            ast.literal_eval(statement.value)
        targets: list[Any] = [t for s in statements for t in ([s.target] if isinstance(s, ast.AnnAssign) else s.targets)]
        return [target.id for target in targets]
    except (SyntaxError, ValueError, TypeError, AttributeError):
        return []


def check_warmup(run: PretrainParameters | FinetuneParameters) -> None:
    """Raise ValueError if the warm-up is longer than the training."""
    if run.warmup_epochs > run.epochs:
        raise ValueError(f"warmup_epochs is {run.warmup_epochs}: it must be at most epochs, which is {run.epochs}")
