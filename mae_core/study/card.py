"""The model card of an exported model: a README whose numbers come from the run's files."""

import contextlib
import re
from pathlib import Path
from typing import Any

import yaml

from mae_core.errors import ParameterError
from mae_core.study.finished import Model, read_beside
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import KEPT, METRICS, metric_name

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
    if "last_epoch_accuracy" in model.results["metrics"]:
        accuracy = {"type": "accuracy", "name": measured("last_epoch_accuracy", run)}
        accuracy["value"] = model.results["metrics"]["last_epoch_accuracy"]
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
    """The name of others' weights that the run started from; empty if there are none."""
    return "" if isinstance(model.run, PretrainParameters) else model.run.others_weights


def pretraining(model: Model) -> PretrainParameters | None:
    """The parameters of the pre-training that a fine-tuned run started from, if its results are beside the run's."""
    run, beside = model.run, model.path.absolute().parent.parent / "pretrain" / "parameters.json"
    if isinstance(run, PretrainParameters) or not beside.is_file():
        return None
    return PretrainParameters.check(read_beside(beside)) if run.from_own else None


def epochs(run: PretrainParameters | FinetuneParameters) -> str:
    return "1 epoch" if run.epochs == 1 else f"{run.epochs} epochs"


def masks(run: PretrainParameters) -> str:
    also = ", mask tokens in the encoder" if run.mask_tokens_in_encoder else ""
    return f"{run.mask_strategy} masks of {100 * run.mask_ratio:g} %{also}"


def notes(model: Model) -> list[str]:
    """What else a reader should know, one sentence each."""
    repeats = (
        "Its weights are those of a repetition of this run: with the same parameters, but with results that were not "
        "recorded here and can differ, so this card tells none."
    )
    before = (
        "; the figures below are those of the run before that" if model.results["metrics"] and not model.repeats else ""
    )
    kept = f"Its weights were kept in bfloat16{before}."
    run = model.run
    normalized = isinstance(run, PretrainParameters) and run.norm_pix and bool(model.results["metrics"])
    helped = (
        "It predicts normalized patches; the PSNR uses the mean and the deviation of each original patch, which helps it."
    )
    others = f"It started from the weights `{source(model)}`, whose licence applies."
    return [
        *([others] if source(model) else []),
        *model.lacking,
        *([repeats] if model.repeats else []),
        *([kept] if model.path.name == KEPT else []),
        *([helped] if normalized else []),
    ]


def facts(model: Model) -> dict[str, str]:
    """The card's table."""
    run, c, metrics, provenance = model.run, model.config, model.results["metrics"], model.results["provenance"]
    told = {
        "data": data(model).replace("|", "\\|") + (f", the first {run.train_images:,} images" if run.train_images else ""),
        "model": f"patches of {c.patch_size} × {c.patch_size}, width {c.width}, depth {c.depth}, {c.heads} heads "
        f"(variant {c.variant})",
        "parameters": f"{sum(tensor.numel() for tensor in model.exported.values()):,}",
        "seed": str(run.seed),
    }  # fmt: skip
    values = metrics | metrics.get("probes", {})
    told |= {measured(key, run): METRICS[key][1].format(values[key]) for key in SHOWN if key in values}
    if "last_epoch_accuracy" in values and (others := accuracies(model)):
        told["the same with other seeds (" + ", ".join(map(str, others)) + ")"] = ", ".join(
            f"{value:.2f}" for value in others.values()
        )
    names = {"data_md5": "MD5 of the data", "commit": "commit", "finished": "finished", "device": "device"}
    told |= {name: str(provenance[key]) for key, name in names.items() if provenance.get(key)}
    return told


def measured(key: str, run: PretrainParameters | FinetuneParameters) -> str:
    """The name of a metric, and the images of its measurement where they are not the test images."""
    return metric_name(key, run.holdout) + (f", on {run.holdout:,} held-out training images" if run.holdout else "")


def accuracies(model: Model) -> dict[int, float]:
    """The accuracy of the same parameters with other seeds, as far as they have run and can be read."""
    folder, found = model.path.absolute().parent, {}
    for path in sorted(folder.parent.parent.glob(f"seed*/{folder.name}/metrics.json")):
        seed = path.parts[-3].removeprefix("seed")
        if not seed.isdigit() or int(seed) == model.run.seed or not differs_by_seed_alone(model, int(seed), path.parent):
            continue
        with contextlib.suppress(ParameterError, KeyError):  # damaged, or of another stage
            found[int(seed)] = read_beside(path)["last_epoch_accuracy"]
    return dict(sorted(found.items()))


def differs_by_seed_alone(model: Model, seed: int, folder: Path) -> bool:
    """Whether a folder has the fine-tuning of another seed: from the same weights, or from its own like pre-training."""
    run, parameters = model.run.model_copy(update={"seed": seed}), folder / "parameters.json"
    if not run.change(parameters):
        return True
    if isinstance(run, PretrainParameters):
        return False
    weights = re.sub(rf"/seed{model.run.seed}(?=/)", f"/seed{seed}", run.weights)
    before = pretraining(model)
    if before and before.model_copy(update={"seed": seed}).change(folder.parent / "pretrain" / "parameters.json"):
        return False
    return not run.model_copy(update={"weights": weights}).change(parameters)
