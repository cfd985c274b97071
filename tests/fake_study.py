"""A finished study with numbers of our choosing, written as training.py writes it."""

from dataclasses import replace

import torch

from mae_core.parameters import FinetuneParameters, PretrainParameters
from mae_core.results import save_sheet, write_json

CASES = {
    "random-75": {},
    "mask-tokens": {"mask_tokens_in_encoder": True},
    "block-50": {"mask_strategy": "block", "mask_ratio": 0.5},
    "block-75": {"mask_strategy": "block"},
    "grid-75": {"mask_strategy": "grid"},
    "scratch": None,
}
ACCURACY = {"random-75": 84, "mask-tokens": 80, "block-50": 85, "block-75": 83, "grid-75": 82, "scratch": 70}
LOSS = {"random-75": 0.05, "mask-tokens": 0.05, "block-50": 0.06, "block-75": 0.09, "grid-75": 0.03}
WOBBLE = (0.0, 0.03, -0.02)


def write(study="fake", seeds=(0,), skip=(), cases=CASES, accuracy=ACCURACY, classes=tuple("abcdefghij")):
    """Write ``outputs/<study>`` below the working folder."""
    for index, (case, masks) in enumerate(cases.items()):
        for seed in seeds:
            if (case, seed) in skip or case in skip:
                continue
            run = FinetuneParameters(study=study, case=case, seed=seed)
            wobble = WOBBLE[(seed + index) % 3]
            if masks is not None:
                pretraining = PretrainParameters(study=study, case=case, seed=seed, **masks)
                flops = {"mask-tokens": 2416, "block-50": 1430}.get(case, 1000) * 1000
                stage(pretraining, "pretrain", pretraining_metrics(LOSS[case] + wobble / 1000, flops), rows=3)
                run = replace(run, weights=str(run.folder / "pretrain" / "weights.safetensors"))
            last = accuracy[case] + wobble
            stage(run, "finetune", finetuning_metrics(last, classes), rows=1, history=[last - 10, last])


def stage(run, name, metrics, rows, history=(1.0, 2.0)):
    folder = run.folder / name
    n = len(history)
    curves = {"epoch": [*range(1, n + 1)], "train_loss": [1 / i for i in range(1, n + 1)]}
    write_json(folder / "history.json", curves | {"test_accuracy": list(history), "test_loss": [1.0] * n})
    write_json(folder / "parameters.json", run.flat())
    write_json(folder / "provenance.json", provenance())
    save_sheet(folder / "pictures.png", [torch.rand(10, 3, 32, 32) * 2 - 1 for _ in range(rows)])
    write_json(folder / "metrics.json", metrics)


def pretraining_metrics(loss, flops):
    return {
        "train_loss": loss, "train_seconds": 60.0, "images_per_second": 900.0, "peak_memory_bytes": 2**30 + flops,
        "test_loss": loss, "test_psnr": 20.0, "flops_per_image": flops, "wall_seconds": 70.0,
    }  # fmt: skip


def finetuning_metrics(accuracy, classes):
    told = {"classes": list(classes), "true": [*range(10)], "predicted": [0] * 10, "confidence": [0.5] * 10}
    return {
        "probes": {"linear": accuracy - 30, "knn": accuracy - 40}, "train_loss": 0.5, "train_seconds": 120.0,
        "images_per_second": 500.0, "peak_memory_bytes": 2**30, "last_epoch_accuracy": accuracy,
        "best_epoch_accuracy": accuracy + 0.1, "flops_per_image": 5000000, "wall_seconds": 130.0,
        "predictions": told | {"confusion": [[1] * 10 for _ in range(10)]},
    }  # fmt: skip


def provenance():
    return {
        "commit": "0123456789abcdef", "clean": True, "finished": "2026-11-20T10:00:00+00:00", "device": "A processor",
        "precision": "float32", "platform": "Linux", "versions": {"torch": "2.14.1"}, "data_md5": "d41d8cd98f00b204",
        "weights_sha256": "e3b0c44298fc1c149afbf4c8996fb924",
    }  # fmt: skip
