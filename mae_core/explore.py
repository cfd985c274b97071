"""Live reconstructions for the explore notebook: a trained model reconstructs a masked image."""

from dataclasses import dataclass
from pathlib import Path

import torch
from ipywidgets import Image, Widget
from matplotlib.figure import Figure
from pydantic import Field

from mae_core import devices
from mae_core.data import Dataset
from mae_core.data.images import Split, to_unit
from mae_core.errors import ParameterError
from mae_core.evaluation.reconstruction import reconstruct
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import sample_mask
from mae_core.report.display import png, shown_width
from mae_core.report.figures import image_rows
from mae_core.study.parameters import Device, Parameters, PretrainParameters, check_data_dir
from mae_core.study.tensors import load_tensors
from mae_core.training.runs import pretrain


class ExploreParameters(Parameters):
    """The model and the images to explore."""

    weights: str = Field("", description="path of pre-trained weights (.safetensors); empty: train a small model")
    dataset: Dataset = Field("shapes", description="data set of the images to show")
    data_dir: str = Field("data", description="folder that contains the data set")
    epochs: int = Field(2, description="training epochs of the small model, if weights is empty", ge=1, le=1000)
    device: Device = Field("auto", description="where to compute; auto: cuda if available, else mps, else cpu")

    def check_together(self) -> None:
        check_data_dir(self.dataset, self.data_dir)


def open_model(run: ExploreParameters) -> tuple[MaskedAutoencoder, PretrainParameters]:
    """Open the model in ``run.weights``, or pre-train a small one; return it and the parameters of its training.

    Raises:
        ParameterError: if the file does not exist, or is not a pre-trained model of this package.
    """
    if not run.weights:
        trained = PretrainParameters(
            study="explore", dataset=run.dataset, data_dir=run.data_dir, epochs=run.epochs, device=run.device,
            width=64, decoder_width=64,
        )  # fmt: skip
        return pretrain(trained).eval(), trained
    if not Path(run.weights).is_file():
        raise ParameterError(f"weights is {run.weights!r}: there is no such file; pre-train first, or leave it empty")
    try:
        tensors, about = load_tensors(Path(run.weights))
        device = devices.choose_device(run.device)
        trained = PretrainParameters.check(about)
        model = MaskedAutoencoder(trained.model)
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise ParameterError(f"weights is {run.weights!r}: it cannot be opened ({error})") from error
    return model.to(device).eval(), trained.model_copy(update={"device": run.device})


@dataclass(frozen=True)
class Painter:
    """Draws a model's reconstructions of masked patches."""

    model: MaskedAutoencoder
    trained: PretrainParameters
    images: Split

    def paint(self, image: int, strategy: str, ratio: float, seed: int) -> Figure:
        """Draw the masked, the reconstructed and the original image side by side.

        Args:
            image: index of the image.
            strategy: ``random``, ``block`` or ``grid``.
            ratio: fraction of patches to mask; ``grid`` always uses 0.75.
            seed: seed of the mask.
        """
        return image_rows([("", self.rows(image, strategy, ratio, seed))], titles=["masked", "reconstructed", "original"])

    def follow(self, controls: dict[str, Widget]) -> Image:
        """Return a widget that shows :meth:`paint` and updates when a control changes.

        It is an image widget, because nbclient, which papermill uses, can wait forever for an output widget
        (``interactive_output``; https://github.com/jupyter/nbclient/issues/312).

        Args:
            controls: for each argument of :meth:`paint`, a widget with a ``value``.
        """
        picture = Image(format="png")

        def repaint(_=None) -> None:
            panel = self.paint(**{name: control.value for name, control in controls.items()})
            picture.value, picture.width = png(panel), str(shown_width(panel))

        for control in controls.values():
            control.observe(repaint, "value")
        repaint()
        return picture

    def comparison(self, image: int, seed: int = 0) -> Figure:
        """Draw one image under the three masking strategies at 75 %, one column each."""
        columns = [self.rows(image, strategy, 0.75, seed) for strategy in ("random", "block", "grid")]
        rows = [(name, [column[i] for column in columns]) for i, name in enumerate(("masked", "reconstructed", "original"))]
        return image_rows(rows, titles=["random", "block", "grid"])

    def rows(self, image: int, strategy: str, ratio: float, seed: int) -> list:
        """The masked, reconstructed and original image as arrays_HWC, uint8."""
        ratio = 0.75 if strategy == "grid" else ratio
        device = next(self.model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        mask = sample_mask(strategy, ratio, 1, self.trained.model.grid_size, generator, device)
        images_BCHW = to_unit(self.images.images_nCHW[image : image + 1]).to(device)
        pictures = [*reconstruct(self.model, images_BCHW, mask, self.trained), images_BCHW]
        return [((p[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy() for p in pictures]
