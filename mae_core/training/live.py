"""A picture of a run in progress, for notebooks. Nothing that trains imports it, so its changes make no run out of date."""

import os
import time
from typing import Any

from IPython.display import display
from torch import nn

from mae_core.data.images import Split
from mae_core.evaluation import reconstruction
from mae_core.report import figures
from mae_core.report.display import image_data
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.training.checkpoint import Position

N_IMAGES = 5


class Live:
    """Draws the loss, and reconstructions or the accuracy, during training; for ``watch`` of pretrain and finetune.

    The picture is redrawn every two seconds, and once more at the end; an executed notebook keeps the last one. A larger
    TQDM_MININTERVAL, which batch runs set for the progress bar, slows it too.
    """

    def __init__(self, run: PretrainParameters | FinetuneParameters):
        self.run, self.handle, self.drawn_at = run, None, time.monotonic()
        self.pace = 2 * max(1.0, float(os.environ.get("TQDM_MININTERVAL", 1)))

    def __call__(self, at: Position, model: nn.Module, test: Split) -> None:
        """Redraw the picture if the last one is old enough, or if training is complete."""
        ended = at.epoch == self.run.epochs
        if not ended and time.monotonic() - self.drawn_at < self.pace:
            return
        about: dict[str, Any] = {"metadata": {"report": {"kind": "live"}}, "raw": True}
        data = self.picture(at, model, test) | {"text/plain": f"epoch {at.epoch + (not ended)} of {self.run.epochs}"}
        if self.handle is None:
            self.handle = display(data, display_id=True, **about)
        else:
            self.handle.update(data, **about)
        self.drawn_at = time.monotonic()

    def picture(self, at: Position, model: Any, test: Split) -> dict[str, Any]:
        rows = []
        if isinstance(self.run, PretrainParameters):
            first = Split(test.take(slice(N_IMAGES)), test.labels_n[:N_IMAGES], test.classes)
            original, *others = reconstruction.pictures(model, first, self.run, test.labels_n.device)
            named = zip(("masked", "reconstructed", "original"), (*others, original), strict=True)
            rows = [(name, reconstruction.to_pixels(images)) for name, images in named]
        losses_S = at.losses_S.float().cpu().numpy()
        evaluated = "validation" if self.run.holdout else "test"
        return image_data(figures.progress(at.history, losses_S, at.step, self.run.epochs, rows, evaluated))
