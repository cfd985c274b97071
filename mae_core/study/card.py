"""The model card of an exported model: a README whose numbers come from the run's files."""

import contextlib
import re
from pathlib import Path
from typing import Any

import yaml

from mae_core.errors import ParameterError
from mae_core.study.finished import Model, read_beside
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.repeat import changed
from mae_core.study.results import FULL, metric_rows

HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}  # what model hubs call them
SHOWN = ("last_epoch_accuracy", "linear", "knn", "test_loss", "test_psnr")

CARD = """\
---
{head}---

# {title}

{sentences}

| | |
|---|---|
{rows}

## Use

{use}

It was trained with mae_core; the method is that of He et al., *Masked autoencoders are scalable vision learners*
(arXiv:2111.06377).
"""
TIMM = 'timm.create_model("local-dir:{folder}", pretrained=True)'
TRANSFORMERS = 'transformers.{kind}.from_pretrained("{folder}"{more})'
USE = {
    "ViTForImageClassification": ("AutoModelForImageClassification", ""),
    "ViTModel": ("ViTModel", ", add_pooling_layer=False"),
    "ViTMAEForPreTraining": ("ViTMAEForPreTraining", ""),
}


def card(model: Model, folder: str) -> str:
    """The text of README.md in the folder of this name."""
    opened = [("timm", TIMM.format(folder=folder))] if model.for_timm else []
    if model.kind:
        name, more = USE[model.kind]
        opened.append(("transformers", TRANSFORMERS.format(kind=name, folder=folder, more=more)))
    use = "\n\n".join(f"```python\nimport {library}\n\nmodel = {call}.eval()\n```" for library, call in opened)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts(model).items())
    side = model.config.image_size
    sentences = [f"{history(model)} It takes colour images of {side} × {side} pixels, scaled to [-1, 1].", *notes(model)]
    return CARD.format(
        head=yaml.safe_dump(head(model), sort_keys=False, allow_unicode=True),
        title=title(model),
        sentences=" ".join(sentences),
        rows=rows,
        use=use,
    )


def head(model: Model) -> dict[str, Any]:
    """The fields that model hubs read."""
    run, tuned = model.run, isinstance(model.run, FinetuneParameters)
    libraries = (["timm"] if model.for_timm else []) + (["transformers"] if model.kind else [])
    unknown = run.dataset == "folder" or source(model)  # of pictures of one's own and of others' weights, we know none
    told: dict[str, Any] = {} if unknown else {"license": "mit"}
    told |= {
        "library_name": libraries[0],
        "pipeline_tag": "image-classification" if tuned else "image-feature-extraction",
        "tags": ["vit", "masked-autoencoder", *libraries],
    }
    if run.dataset in HUB_DATASETS:
        told["datasets"] = [HUB_DATASETS[run.dataset]]
    if "last_epoch_accuracy" in model.metrics:
        ((name, _),) = metric_rows(model.metrics, run.holdout, ["last_epoch_accuracy"])
        accuracy = {"type": "accuracy", "name": name, "value": model.metrics["last_epoch_accuracy"]}
        kind = "imagefolder" if run.dataset == "folder" else HUB_DATASETS.get(run.dataset, run.dataset)
        dataset = {"type": kind, "name": data(model), "split": "validation" if run.holdout else "test"}
        result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": [accuracy]}
        told["metrics"] = ["accuracy"]
        told["model-index"] = [{"name": title(model), "results": [result]}]
    return told


def data(model: Model) -> str:
    """The name of the data set; of one's own images, the folder's."""
    run = model.run
    name = Path(run.data_dir).name if run.dataset == "folder" else run.dataset
    return name or "images of one's own"


def title(model: Model) -> str:
    return f"{model.run.study}, {model.run.case}, seed {model.run.seed}"


def history(model: Model) -> str:
    """How the model was trained, in one sentence."""
    run = model.run
    if isinstance(run, PretrainParameters):
        return f"A vision transformer, pre-trained as a masked autoencoder for {epochs(run)} with {masks(run)}."
    if not run.weights:
        return f"A vision transformer, trained from scratch for {epochs(run)} to classify images."
    before = pretraining(model)
    began = f"pre-trained as a masked autoencoder for {epochs(before)} with {masks(before)}" if before else "pre-trained"
    return f"A vision transformer, {began}, then fine-tuned for {epochs(run)} to classify images."


def source(model: Model) -> str:
    """The file or folder of others' weights that the run started from; empty for none, and for a run's of this package."""
    run = model.run
    if isinstance(run, PretrainParameters) or not run.weights or re.search(r"/seed\d+/(pretrain|finetune)\b", run.weights):
        return ""
    path = Path(run.weights)
    return f"{path.parent.name}/{path.name}" if path.suffix == ".safetensors" else path.name


def pretraining(model: Model) -> PretrainParameters | None:
    """The parameters of the pre-training that a fine-tuned run started from, if its results are beside the run's."""
    run, beside = model.run, model.path.parent.parent / "pretrain" / "parameters.json"
    if isinstance(run, PretrainParameters) or not beside.is_file():
        return None
    own = run.folder / "pretrain" in (Path(run.weights), Path(run.weights).parent)
    return PretrainParameters.check(read_beside(beside)) if own else None


def epochs(run: PretrainParameters | FinetuneParameters) -> str:
    return "1 epoch" if run.epochs == 1 else f"{run.epochs} epochs"


def masks(run: PretrainParameters) -> str:
    also = ", mask tokens in the encoder" if run.mask_tokens_in_encoder else ""
    return f"{run.mask_strategy} masks of {100 * run.mask_ratio:g} %{also}"


def notes(model: Model) -> list[str]:
    """What else a reader should know, one sentence each."""
    kept = "Its weights were kept in bfloat16; the figures below are those of the run before that."
    repeated = (
        "Its weights, kept in bfloat16, are those of a repetition of this run with the same parameters; how accurate they "
        "are was not recorded."
    )
    held_out = f"The validation images are {model.run.holdout:,} training images that were held out."
    others = f"It started from the weights `{source(model)}`, whose licence applies."
    return [
        *([others] if source(model) else []),
        *model.lacking,
        *([held_out] if model.run.holdout and model.metrics else []),
        *([kept] if model.path.name != FULL and model.metrics else []),
        *([repeated] if model.repeated else []),
    ]


def facts(model: Model) -> dict[str, str]:
    """The card's table."""
    run, c, provenance = model.run, model.config, {} if model.repeated else model.results["provenance"]
    told = {
        "data": data(model).replace("|", "\\|") + (f", the first {run.train_images:,} images" if run.train_images else ""),
        "model": f"patches of {c.patch_size} × {c.patch_size}, width {c.width}, depth {c.depth}, {c.heads} heads "
        f"(variant {c.variant})",
        "parameters": f"{sum(tensor.numel() for tensor in model.exported.values()):,}",
        "seed": str(run.seed),
    }  # fmt: skip
    told |= dict(metric_rows(model.metrics, run.holdout, SHOWN))
    if others := accuracies(model):
        told["the same with other seeds (" + ", ".join(map(str, others)) + ")"] = ", ".join(
            f"{value:.2f}" for value in others.values()
        )
    names = {"data_md5": "MD5 of the data", "commit": "commit", "finished": "finished", "device": "device"}
    told |= {name: str(provenance[key]) for key, name in names.items() if provenance.get(key)}
    return told


def accuracies(model: Model) -> dict[int, float]:
    """The accuracy of the same case and recipe with its other seeds, as far as they have run and can be read."""
    folder, found, run = model.path.parent, {}, model.run
    for path in sorted(folder.parent.parent.glob(f"seed*/{folder.name}/metrics.json")):
        seed = path.parts[-3].removeprefix("seed")
        if not seed.isdigit() or int(seed) == run.seed or isinstance(run, PretrainParameters):
            continue
        weights = run.weights.replace(f"/seed{run.seed}/", f"/seed{seed}/")
        if changed(run.model_copy(update={"seed": int(seed), "weights": weights}), path.with_name("parameters.json")):
            continue
        with contextlib.suppress(ParameterError, KeyError):  # damaged, or of another stage
            found[int(seed)] = read_beside(path)["last_epoch_accuracy"]
    return dict(sorted(found.items()))
