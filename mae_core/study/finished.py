"""The model of a finished run, and what its folder and other libraries know of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from mae_core.errors import ParameterError
from mae_core.model.config import ModelConfig
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import FULL, KEPT
from mae_core.study.tensors import load_tensors, origin_sha256, tensors_sha256

EPS_OF_TIMM = 1e-6  # of its LayerNorm; no configuration changes it


@dataclass(frozen=True)
class Model:
    """Weights of a run, and what its folder says of them.

    Attributes:
        path: the file of weights.
        tensors: their state, in float32.
        run: the parameters of their training.
        results: the contents of ``metrics.json`` and ``provenance.json`` beside them; empty without these files.
        repeats: whether the weights are of a repetition of the run beside them, whose results are not known: ``results``
            then has no more than the names of classes.
    """

    path: Path
    tensors: dict[str, Tensor]
    run: PretrainParameters | FinetuneParameters
    results: dict[str, dict[str, Any]]
    repeats: bool = False

    @classmethod
    def read(cls, source: Path) -> Self:
        """Read a run's folder of one stage, or a file of weights.

        Raises:
            ParameterError: if there are no weights, a file is damaged, or another run's or unfinished results are beside
                them.
        """
        found = [source / name for name in (FULL, KEPT) if (source / name).is_file()] if source.is_dir() else [source]
        if not found:
            raise ParameterError(f"{source} has no {FULL}: name a folder of pretrain or finetune that has finished")
        path = found[0]
        try:
            tensors, about = load_tensors(path)
            kind = PretrainParameters if "mask_token" in tensors else FinetuneParameters
            run = kind.check(about)
        except ValueError as error:
            raise ParameterError(f"{path} cannot be exported ({error})") from error
        if not {"encoder.norm.weight", "head.weight"} <= tensors.keys():
            raise ParameterError(f"{path} holds no model of a finished run: name its {FULL}")
        beside = {name: path.with_name(f"{name}.json") for name in ("metrics", "provenance")}
        results = {name: read_beside(file) for name, file in beside.items()}
        if results["provenance"] and not beside["metrics"].is_file():  # a run that is repeated, or moved its files halfway
            raise ParameterError(f"{path} has no metrics.json beside it, so its run has not finished: let it finish first")
        expected, repeats = results["provenance"].get("weights_sha256"), False
        if path.name == FULL:
            wrong = "provenance.json" if expected and tensors_sha256(path) != expected else ""
        else:
            repeats = any(results.values()) and origin_sha256(path) != expected
            described = path.with_name("parameters.json")
            wrong = described.name if repeats and described.is_file() and run.change(described) else ""
        if wrong:
            raise ParameterError(f"{path} is not what {wrong} beside it describes: move it to a folder of its own")
        if repeats:
            classes = results["metrics"].get("predictions", {}).get("classes")
            results = {"metrics": {"predictions": {"classes": classes}} if classes else {}, "provenance": {}}
        return cls(path, {name: tensor.float() for name, tensor in tensors.items()}, run, results, repeats)

    @property
    def config(self) -> ModelConfig:
        return self.run.model

    @property
    def classes(self) -> list[str]:
        """The name of each class; empty without a classifier. Nameless ones are called as transformers calls them."""
        if isinstance(self.run, PretrainParameters):
            return []
        told = self.results["metrics"].get("predictions", {}).get("classes")
        return told or [f"LABEL_{i}" for i in range(len(self.tensors["head.bias"]))]

    @property
    def exported(self) -> dict[str, Tensor]:
        """The tensors that leave: all, or the encoder's alone where no library can express the decoder."""
        everything = self.is_mae or isinstance(self.run, FinetuneParameters)
        return {name: t for name, t in self.tensors.items() if everything or name.startswith("encoder.")}

    @property
    def is_mae(self) -> bool:
        """Whether ViTMAEForPreTraining can express the model."""
        run = self.run
        return isinstance(run, PretrainParameters) and self.config.full_decoder and not run.mask_tokens_in_encoder

    @property
    def pools_mean(self) -> bool:
        """Whether it is a classifier that reads the mean of the patches."""
        return isinstance(self.run, FinetuneParameters) and self.run.pooling == "mean"

    @property
    def kind(self) -> str:
        """The class of transformers that is equal to the model; empty if there is none."""
        if self.classes:
            return "" if self.pools_mean else "ViTForImageClassification"
        return "ViTMAEForPreTraining" if self.is_mae else "ViTModel"

    @property
    def for_timm(self) -> bool:
        """Whether timm can express the encoder."""
        return self.config.norm_eps == EPS_OF_TIMM

    @property
    def lacking(self) -> list[str]:
        """What the other libraries cannot express of the model, one sentence each."""
        sentences = []
        if isinstance(self.run, PretrainParameters) and not self.is_mae:
            why = (
                "drops masked patches, while this encoder reads mask tokens in their place"
                if self.config.full_decoder
                else "has a norm before its prediction, while this decoder has none"
            )
            sentences.append(
                f"ViTMAEForPreTraining {why}: the folder holds the encoder alone. Pre-training with variant: paper, and "
                f"without mask_tokens_in_encoder, gives a model that it can express."
            )
        if not self.kind:
            only = ": only timm opens the folder" if self.for_timm else ""
            sentences.append(f"ViTForImageClassification reads the class token, not the mean{only}.")
        if not self.for_timm:
            only = ": only transformers opens the folder" if self.kind else ""
            sentences.append(
                f"timm's LayerNorm has the epsilon {EPS_OF_TIMM:g}, while norm_eps is {self.config.norm_eps:g}{only}."
            )
        return sentences


def read_beside(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none. Raises ParameterError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ParameterError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{path} is damaged: it must contain names and values")
    return content
