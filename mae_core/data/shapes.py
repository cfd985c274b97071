"""``shapes``, a data set drawn by the package: ten classes of coloured, textured shapes on textured backgrounds.

On disk it has the format of CIFAR-10's Python version.
"""

import hashlib
import json
import math
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np

from mae_core.data import folder_of
from mae_core.data.cifar import CheckedCIFAR10
from mae_core.errors import MissingDataError

AT_ONCE = 50  # images that are composed together


class Shapes(CheckedCIFAR10):
    """5,000 training and 1,000 test images of ten shapes, drawn from fixed seeds.

    Files, format and reader are CIFAR-10's. The MD5s are in ``md5.json`` beside the files: they protect against damage,
    not against tampering. If you change how shapes are drawn, change the number in the folder's name.
    """

    base_folder = folder_of("shapes")
    train_batches, test_batches, images_per_batch = 5, 1, 1000
    names = ("circle", "square", "triangle", "diamond", "plus", "ring", "star", "moon", "hexagon", "heart")

    def __init__(self, root: str | Path, train: bool = True, image_size: int = 32):
        self.base_folder, self.side = folder_of("shapes", image_size), image_size
        folder = Path(root) / self.base_folder
        if not (folder / "md5.json").exists():
            self.draw(folder, image_size)
        try:
            md5 = json.loads((folder / "md5.json").read_text(encoding="utf-8"))
            self.train_list = [[f"data_batch_{i + 1}", md5[f"data_batch_{i + 1}"]] for i in range(self.train_batches)]
            self.test_list = [["test_batch", md5["test_batch"]]]
            self.meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
        except (ValueError, KeyError, TypeError) as error:
            raise MissingDataError(
                f"{folder}/md5.json is damaged: delete its folder, and it will be created again"
            ) from error
        super().__init__(root, train=train)

    @classmethod
    def draw(cls, folder: Path, image_size: int = 32) -> None:
        """Write the complete data set into ``folder``, or nothing."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            md5 = {}

            def write(name: str, content: dict) -> None:
                raw = pickle.dumps(content, protocol=2)
                md5[name] = hashlib.md5(raw).hexdigest()
                (Path(unfinished) / name).write_bytes(raw)

            for batch in range(cls.train_batches + cls.test_batches):
                images_nHWC, labels_n = draw_shapes(cls.images_per_batch, batch, image_size)
                rows = images_nHWC.transpose(0, 3, 1, 2).reshape(len(labels_n), -1)
                name = f"data_batch_{batch + 1}" if batch < cls.train_batches else "test_batch"
                write(name, {"data": rows, "labels": labels_n.tolist()})
            write("batches.meta", {"label_names": list(cls.names)})
            (Path(unfinished) / "md5.json").write_text(json.dumps(md5, indent=1), encoding="utf-8")
            os.chmod(unfinished, 0o755)
            try:
                os.rename(unfinished, folder)
                os.mkdir(unfinished)  # for the context manager to remove
            except OSError:
                if not (folder / "md5.json").exists():  # otherwise another process has written the same files
                    raise


def draw_shapes(n_images: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of shapes with random position, size, angle, colour and texture on textured backgrounds.

    Returns:
        images_nHWC (uint8) and labels_n, indices into ``Shapes.names``.
    """
    rng = np.random.default_rng(seed)
    labels_n = rng.permutation(np.arange(n_images) % len(Shapes.names))

    def column(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (n_images, 1, 1)).astype(np.float32)

    def texture() -> tuple[np.ndarray, ...]:
        return column(0, math.pi), column(2, 12), column(0, 2 * math.pi), column(0.3, 3)

    placed = column(0.45, 0.75), column(-0.4, 0.4), column(-0.25, 0.25), column(-0.25, 0.25)
    # As in photographs, colour hints at the class: each class has a preferred hue, mixed with a random one.
    hue_C1 = np.arange(len(Shapes.names))[:, None] / len(Shapes.names)
    favourite_C3 = 0.5 + 0.5 * np.cos(2 * math.pi * (hue_C1 + np.array([0, 1, 2]) / 3))
    ground_2n3, ground = rng.uniform(0, 1, (2, n_images, 3)), texture()
    figure_2n3 = 0.6 * favourite_C3[labels_n] + 0.4 * rng.uniform(0, 1, (2, n_images, 3))
    figure = texture()
    images_nHWC = np.empty((n_images, size, size, 3), np.uint8)
    for start in range(0, n_images, AT_ONCE):  # large images need some gigabytes otherwise
        part = slice(start, start + AT_ONCE)
        of_part = [[values[part] for values in drawn] for drawn in (placed, ground, figure)]
        image = composed(labels_n[part], size, ground_2n3[:, part], figure_2n3[:, part], *of_part)
        image += rng.normal(0, 0.02, image.shape).astype(np.float32)
        images_nHWC[part] = (image.clip(0, 1) * 255).round()
    return images_nHWC, labels_n


def composed(
    labels_n: np.ndarray,
    size: int,
    ground_2n3: np.ndarray,
    figure_2n3: np.ndarray,
    placed: list[np.ndarray],
    ground_texture: list[np.ndarray],
    figure_texture: list[np.ndarray],
) -> np.ndarray:
    """Shapes on their grounds: images_nHWC in [0, 1]."""
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size * 2 - 1
    scale, angle, right, down = placed
    dx, dy = x - right, y - down
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / scale
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / scale
    inside = np.empty((len(labels_n), size, size), np.float32)
    for label in range(len(Shapes.names)):
        chosen = labels_n == label
        distance = signed_distance(label, u[chosen], v[chosen]) * scale[chosen]
        inside[chosen] = np.clip(0.5 - distance * size / 2, 0, 1)  # one pixel of soft edge
    ground, figure = textured(ground_2n3, x, y, *ground_texture), textured(figure_2n3, x, y, *figure_texture)
    alike = np.abs(ground.mean((1, 2)) - figure.mean((1, 2))).sum(-1) < 0.5
    ground[alike] = 1 - ground[alike]
    return ground + inside[..., None] * (figure - ground)


def textured(
    colours_2n3: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    angle: np.ndarray,
    pitch: np.ndarray,
    phase: np.ndarray,
    hardness: np.ndarray,
) -> np.ndarray:
    """Blend two colours per image with a wave of this direction, frequency and softness: (n, H, W, 3) in [0, 1]."""
    first, second = colours_2n3[:, :, None, None].astype(np.float32)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * pitch + phase)
    blend = (0.5 + 0.35 * np.tanh(hardness * wave))[..., None]
    return first * blend + second * (1 - blend)


def signed_distance(label: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape of radius 1 at the origin (v points down); negative inside.

    Exact or a close lower bound, after Quilez's catalogue of two-dimensional distance functions.
    """
    radius, direction = np.hypot(u, v), np.arctan2(u, -v)
    match Shapes.names[label]:
        case "circle":
            return radius - 0.85
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.75
        case "triangle":
            sector = 2 * math.pi / 3
            return radius * np.cos(direction % sector - sector / 2) - 0.5
        case "diamond":
            return (np.abs(u) + np.abs(v) * 0.8 - 0.85) / 1.28
        case "plus":
            a, b = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
            return np.maximum(a - 0.95, b - 0.3)
        case "ring":
            return np.abs(radius - 0.7) - 0.22
        case "star":
            sector = 2 * math.pi / 5
            slice_angle = np.abs((direction + sector / 2) % sector - sector / 2)
            a, b = radius * np.cos(slice_angle), radius * np.sin(slice_angle)
            return (a - 1.05) * math.sin(0.6) + b * math.cos(0.6)
        case "moon":
            return np.maximum(radius - 0.95, 0.75 - np.hypot(u - 0.45, v))
        case "hexagon":
            sector = math.pi / 3
            return radius * np.cos((direction % sector) - sector / 2) - 0.78
        case "heart":
            a, b = np.abs(u) * 1.05, 0.35 - v
            lobes = np.hypot(a - 0.42, b - 0.25) - 0.48
            point = a * 0.78 - (b + 0.95) * 0.62
            return np.minimum(lobes, np.maximum(point, b - 0.28))
    raise IndexError(f"there is no shape {label}")
