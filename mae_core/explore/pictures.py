"""Pictures of one image under one mask, through several trained models.

Shapes: C = 3 colours, H = W pixels, N patches (a square grid of G * G), B the models' pictures.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mae_core.data.decode import decode
from mae_core.data.images import scale_pixels
from mae_core.errors import ParameterError
from mae_core.evaluation.classification import class_attention
from mae_core.evaluation.reconstruction import psnr, reconstruct, to_pixels
from mae_core.explore.trained import Trained
from mae_core.model.config import STRATEGIES
from mae_core.model.masking import Mask, sample_mask
from mae_core.report.figures import image_rows

HEAT = (matplotlib.colormaps["magma"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)  # 256 colours
FULL_ERROR = 128  # mean absolute error of a pixel, of 255, that gets the brightest colour
TILE, GAP, TEXT = 128, 8, 20  # of the still picture, in pixels


@dataclass(frozen=True)
class Painted:
    """What one model makes of the visible patches.

    Attributes:
        name: the model's case.
        pixels_HWC: the image with reconstructed masked patches, uint8.
        error_HWC: absolute error, mean over the colours, from black (none) to bright (half the range or more); uint8.
        psnr: on the masked pixels, in decibels; None if nothing is masked, or if patches have the original's mean and
            deviation (``norm_pix``).
        top: the three likeliest classes with their probabilities; empty without a classifier.
    """

    name: str
    pixels_HWC: np.ndarray
    error_HWC: np.ndarray
    psnr: float | None
    top: list[tuple[str, float]]


def hidden_patches(how: str, ratio: float, grid_size: int, seed: int, before: Sequence[bool] = ()) -> list[bool]:
    """Which patches to hide, row by row.

    Args:
        how: a mask strategy, or ``all``, ``none`` or ``invert``.
        ratio: fraction of patches to hide by a strategy; ``grid`` always hides 0.75.
        grid_size: patches along one side, G.
        seed: seed of the strategy's mask.
        before: for ``invert``, the patches hidden until now.
    """
    if how == "invert":
        return [not hidden for hidden in before]
    if how not in STRATEGIES:
        return [{"all": True, "none": False}[how]] * grid_size**2
    generator = torch.Generator().manual_seed(seed)
    return sample_mask(how, 0.75 if how == "grid" else ratio, 1, grid_size, generator).masked_BN[0].tolist()


def mask_of(hidden: Sequence[bool]) -> Mask:
    """The mask, for one image, that hides exactly these patches; any number, also none or all."""
    hidden_1N = torch.tensor([list(hidden)])
    return Mask(hidden_1N.int().argsort(dim=1, stable=True), int((~hidden_1N).sum()))


def paint(
    models: Sequence[Trained], image_CHW: Tensor, hidden: Sequence[bool], judge: Trained | None = None
) -> list[Painted]:
    """Reconstruct one image's hidden patches with each model.

    Args:
        models: at least one.
        image_CHW: uint8.
        hidden: for each patch, row by row, whether the models do not see it.
        judge: its classifier says what it sees in the reconstructions.
    """
    painted = []
    for trained in models:
        mask = mask_of(hidden).to(trained.device)
        original_1CHW = scale_pixels(image_CHW[None]).to(trained.device)
        pixels_1CHW = reconstruct(trained.model, original_1CHW, mask, trained.run)[1].clamp(-1, 1)
        told = any(hidden) and not trained.run.norm_pix
        quality = psnr(pixels_1CHW, original_1CHW, mask).item() if told else None
        error_HW = (pixels_1CHW - original_1CHW)[0].abs().mean(0).cpu().numpy() * (127.5 * 255 / FULL_ERROR)
        error_HWC = HEAT[error_HW.clip(0, 255).round().astype(np.uint8)]
        painted.append(Painted(trained.name, to_pixels(pixels_1CHW)[0], error_HWC, quality, top(judge, pixels_1CHW)))
    return painted


def judge(models: Sequence[Trained]) -> Trained | None:
    """The first model with a fine-tuned classifier, which names the images of all; None if there is none."""
    return next((trained for trained in models if trained.classifier), None)


@torch.no_grad()
def top(trained: Trained | None, image_1CHW: Tensor) -> list[tuple[str, float]]:
    """The three likeliest classes of an image scaled to [-1, 1], with their probabilities; empty without a classifier."""
    if trained is None or trained.classifier is None:
        return []
    probability_C = trained.classifier(image_1CHW.to(trained.device)).softmax(dim=1)[0]
    values, ids = probability_C.topk(min(3, len(probability_C)))
    return [(trained.classes[i], p) for i, p in zip(ids.tolist(), values.tolist(), strict=True)]


def attended(trained: Trained, image_CHW: Tensor) -> np.ndarray:
    """The image, dark where the encoder looks little (see class_attention): pixels_HWC, uint8."""
    image_1CHW = scale_pixels(image_CHW[None]).to(trained.device)
    light_1CHW = 0.15 + 0.85 * (class_attention(trained.encoder, image_1CHW) + 1) / 2
    return to_pixels((image_1CHW + 1) * light_1CHW - 1)[0]


def own_picture(content: bytes, side: int) -> Tensor:
    """A picture from the bytes of a file, as training takes it (see decode.py): image_CHW, uint8.

    Raises:
        ParameterError: if it cannot be decoded.
    """
    try:
        return torch.from_numpy(decode(content, side).copy()).permute(2, 0, 1)
    except ValueError as error:
        raise ParameterError(f"this picture cannot be read: {error}; choose another, or save it as PNG or JPEG") from error


def masked_pixels(image_CHW: Tensor, hidden: Sequence[bool]) -> np.ndarray:
    """The image with grey hidden patches: pixels_HWC, uint8."""
    grid = round(len(hidden) ** 0.5)
    cell = image_CHW.shape[-1] // grid
    hidden_HW = np.array(hidden).reshape(grid, grid).repeat(cell, 0).repeat(cell, 1)
    return np.where(hidden_HW[..., None], np.uint8(128), image_CHW.permute(1, 2, 0).cpu().numpy())


def as_pixels(content: bytes, side: int) -> np.ndarray:
    """The bytes of a square colour picture as pixels_HWC, uint8."""
    return np.frombuffer(content, np.uint8).reshape(side, side, 3)


def still(tiles: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """Pictures side by side, each with its title above, as the bytes of a PNG file.

    Args:
        tiles: title and pixels_HWC of each picture; a line starts anew after four.
    """
    rows = [tiles[start : start + 4] for start in range(0, len(tiles), 4)]
    size = (len(rows[0]) * (TILE + GAP) + GAP, len(rows) * (TEXT + TILE + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, row in enumerate(rows):
        for j, (title, pixels_HWC) in enumerate(row):
            left, above = GAP + j * (TILE + GAP), GAP + i * (TEXT + TILE + GAP)
            draw.text((left, above), title, "#222222", font)
            picture = Image.fromarray(pixels_HWC).resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, above + TEXT))
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def comparison(models: Sequence[Trained], image_CHW: Tensor, seed: int = 0) -> Figure:
    """Draw one image under each mask strategy at 75 %, one column each, reconstructed by each model, with PSNR (dB).

    Grid masks are left out where the number of patches in a row is odd.
    """
    grid_size = models[0].run.model.grid_size
    strategies = [how for how in STRATEGIES if how != "grid" or grid_size % 2 == 0]
    masks = [hidden_patches(how, 0.75, grid_size, seed) for how in strategies]
    columns = [paint(models, image_CHW, hidden) for hidden in masks]
    original = image_CHW.permute(1, 2, 0).cpu().numpy()
    rows = [("masked", [masked_pixels(image_CHW, hidden) for hidden in masks])]
    rows += [(trained.name, [column[i].pixels_HWC for column in columns]) for i, trained in enumerate(models)]
    qualities = [[column[i].psnr for column in columns] for i in range(len(models))]
    notes = {1 + i: ["" if q is None else f"{q:.1f}" for q in row] for i, row in enumerate(qualities)}
    return image_rows([*rows, ("original", [original] * len(masks))], titles=strategies, notes=notes)
