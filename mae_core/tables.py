"""The study's tables, as rows of text made from saved results."""

from collections.abc import Mapping
from typing import Any

METRICS = {
    "last_epoch_accuracy": ("test accuracy, last epoch (%)", "{:.2f}"),
    "best_epoch_accuracy": ("test accuracy, best epoch (%)", "{:.2f}"),
    "linear": ("linear probe, frozen encoder (%)", "{:.2f}"),
    "knn": ("k-NN, frozen encoder (%)", "{:.2f}"),
    "train_loss": ("training loss, last epoch", "{:.4f}"),
    "test_loss": ("test loss", "{:.4f}"),
    "test_psnr": ("test PSNR on hidden pixels (dB)", "{:.2f}"),
    "flops_per_image": ("FLOPs of a forward pass, per image", "{:,.0f}"),
    "images_per_second": ("training images a second", "{:,.0f}"),
    "train_seconds": ("training (s)", "{:.1f}"),
    "wall_seconds": ("all, with data and evaluation (s)", "{:.1f}"),
    "peak_memory_bytes": ("peak memory (bytes)", "{:,.0f}"),
}


def metric_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A run's metrics, one row each: name and value."""
    values = {**metrics, **metrics.get("probes", {})}
    return [[name, form.format(values[key])] for key, (name, form) in METRICS.items() if key in values]
