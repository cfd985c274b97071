"""A finished study with chosen numbers, in the file format of real runs."""

from pathlib import Path

import pytest
import torch

from mae_core.report.claims import claims
from mae_core.report.summary import Summary
from mae_core.study.parameters import FinetuneParameters, PretrainParameters, ReportParameters
from mae_core.study.results import read_json, save_sheet, write_json

CASES = {
    "random-75": {},
    "mask-tokens": {"mask_tokens_in_encoder": True},
    "block-50": {"mask_strategy": "block", "mask_ratio": 0.5},
    "block-75": {"mask_strategy": "block"},
    "grid-75": {"mask_strategy": "grid"},
    "scratch": None,
}
SWEEP = {
    "random-25": {"mask_ratio": 0.25},
    "random-50": {"mask_ratio": 0.5},
    "random-90": {"mask_ratio": 0.9},
    "random-75-longer": {"epochs": 6},
}
ACCURACY = {"random-75": 84, "mask-tokens": 80, "block-50": 85, "block-75": 83, "grid-75": 82, "scratch": 70}
ACCURACY |= {"random-25": 81, "random-50": 83, "random-90": 82, "random-75-longer": 84.5}
LOSS = {"random-75": 0.05, "mask-tokens": 0.05, "block-50": 0.06, "block-75": 0.09, "grid-75": 0.03}
LOSS |= {"random-25": 0.02, "random-50": 0.03, "random-90": 0.1, "random-75-longer": 0.049}
WOBBLE = (0.0, 0.03, -0.02)


def write(study="fake", seeds=(0,), skip=(), cases=CASES | SWEEP, accuracy=ACCURACY, classes=tuple("abcdefghij")):
    """Write ``outputs/<study>`` in the working folder."""
    for index, (case, masks) in enumerate(cases.items()):
        for seed in seeds:
            if (case, seed) in skip or case in skip:
                continue
            run = FinetuneParameters(study=study, case=case, seed=seed, weights="")
            wobble = WOBBLE[(seed + index) % 3] * (1 + index / 100)
            if masks is not None:
                pretraining = PretrainParameters(study=study, case=case, seed=seed, **{"epochs": 4} | masks)
                flops = {"mask-tokens": 2416, "block-50": 1430}.get(case, 1000) * 1000
                metrics = pretraining_metrics(LOSS[case] + wobble / 1000, flops)
                stage(pretraining, "pretrain", metrics, {"pictures": 3})
                run = run.model_copy(update={"weights": str(run.folder / "pretrain" / "weights.safetensors")})
            last = accuracy[case] + wobble
            sheets = {"pictures": 1, "attention": 2, "mistakes": 1, "neighbours": 3}
            stage(run, "finetune", finetuning_metrics(last, classes), sheets, history=[last - 10, last])


def stage(run, name, metrics, sheets, history=(1.0, 2.0)):
    folder = run.folder / name
    n = len(history)
    curves = {"epoch": [*range(1, n + 1)], "train_loss": [1 / i for i in range(1, n + 1)]}
    write_json(folder / "history.json", curves | {"test_accuracy": list(history), "test_loss": [1.0] * n})
    write_json(folder / "parameters.json", run.flat())
    write_json(folder / "provenance.json", provenance())
    for sheet, rows in sheets.items():
        save_sheet(folder / f"{sheet}.png", [torch.rand(10, 3, 32, 32) * 2 - 1 for _ in range(rows)])
    write_json(folder / "metrics.json", metrics)


def pretraining_metrics(loss, flops):
    return {
        "train_loss": loss, "train_seconds": 60.0, "images_per_second": 900.0, "wall_seconds": 70.0,
        "peak_memory_bytes": 2**30 + flops + round(1e5 * loss), "test_loss": loss, "test_psnr": 20.0 - 10 * loss,
        "flops_per_image": flops, "n_parameters": 7_212_684,
    }  # fmt: skip


def finetuning_metrics(accuracy, classes):
    told = {"classes": list(classes), "true": [*range(10)], "predicted": [0] * 10, "confidence": [0.5] * 10}
    return {
        "probes": {"linear": accuracy - 30, "knn": accuracy - 40}, "train_loss": 0.5, "train_seconds": 120.0,
        "images_per_second": 500.0, "peak_memory_bytes": 2**30, "last_epoch_accuracy": accuracy,
        "best_epoch_accuracy": accuracy + 0.1, "flops_per_image": 5000000, "wall_seconds": 130.0,
        "predictions": told | {"confusion": [[1] * 10 for _ in range(10)]},
        "mistakes": {"images": [*range(8)], "true": [1] * 8, "predicted": [2] * 8, "confidence": [0.9] * 8},
        "neighbours": {"classes": list(classes), "true": [*range(10)], "labels": [[k, 0] for k in range(10)]},
    }  # fmt: skip


def provenance():
    return {
        "commit": "0123456789abcdef", "clean": True, "finished": "2026-11-20T10:00:00+00:00", "device": "A processor",
        "precision": "float32", "platform": "Linux", "versions": {"torch": "2.14.1"}, "data_md5": "d41d8cd98f00b204",
        "weights_sha256": "e3b0c44298fc1c149afbf4c8996fb924",
    }  # fmt: skip


def read(seeds=(0,), **how):
    """Write the study, and read it as the report does."""
    write(seeds=seeds, **how)
    return Summary.read(ReportParameters(study="fake", cases=list(CASES), sweep=list(SWEEP), seeds=list(seeds)))


def verdict_of(summary):
    """The verdict of each claim, by its statement."""
    return {claim.statement: claim.verdict for claim in claims(summary)}


def set_everywhere(stage, **values):
    """Give all runs of a stage other parameters."""
    for path in Path("outputs/fake").glob(f"*/seed*/{stage}/parameters.json"):
        write_json(path, read_json(path) | values)


def read_again():
    """The study that is on disk."""
    return Summary.read(ReportParameters(study="fake"))


def chosen(cases, **how):
    """A study of these cases, all with the same loss, and with accuracies one point apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "LOSS", dict.fromkeys(cases, 0.05))
        write(cases=cases, accuracy={name: 80 + place for place, name in enumerate(cases)}, **how)
    return Summary.read(ReportParameters(study="fake", cases=list(cases)))
