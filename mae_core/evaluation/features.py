"""The frozen encoder's vectors of a folder of images, as one file.

Shapes: B batch, n images, D width, C = 3 colours, H = W pixels.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mae_core import devices
from mae_core.data.decode import decode
from mae_core.data.images import batches, scale_pixels
from mae_core.data.layout import ENDINGS, images
from mae_core.errors import DeviceMemoryError, MissingDataError, ParameterError
from mae_core.evaluation.probes import PatchMean
from mae_core.model.mae import Encoder
from mae_core.study.foreign import find_encoder
from mae_core.study.results import atomic_write, explained_writing

Pool = Literal["mean", "class"]


class Features(NamedTuple):
    """Vectors of images.

    Attributes:
        names: of the files, relative to the folder, in order.
        labels: the class of each image, see :func:`labels_of`; empty without one.
        vectors_nD: float32.
    """

    names: list[str]
    labels: list[str]
    vectors_nD: np.ndarray


def write_features(weights: str, folder: Path, out: Path, pool: Pool = "mean", device: str = "auto") -> Features:
    """Compute the vectors of all images in a folder, and write names, labels and vectors to one file.

    Args:
        weights: of an encoder, as :func:`~mae_core.study.foreign.find_encoder` opens them.
        folder: images, or a subfolder of images for each class. They are cut to squares, and resized for the model.
        out: ``.npz`` (read with ``numpy.load``) or ``.parquet``; arrays or columns ``name``, ``label`` and ``vector``.
        pool: the mean of the patches' tokens, or the class token. The mean is what the head reads in a classifier that
            was fine-tuned with ``pooling: mean``: the norm then follows it.

    Raises:
        ParameterError: for weights or a name that cannot be used.
        MissingDataError: if there are no images, or one cannot be decoded; names it.
        OutputError: if the file cannot be written.
    """
    if out.suffix not in WRITERS:
        raise ParameterError(f"{out} ends in {out.suffix!r}: it must end in {' or '.join(WRITERS)}")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ParameterError(f"{out}: Parquet needs pyarrow (pip install pyarrow); .npz needs nothing more")
    with explained_writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass  # a place that cannot be written is told before all is computed
    found = features(weights, folder, pool, torch.device(devices.choose_device(device)))
    with explained_writing(out), atomic_write(out) as temporary:
        WRITERS[out.suffix](temporary, found)
    return found


@torch.no_grad()
def features(weights: str, folder: Path, pool: Pool, device: torch.device) -> Features:
    """The vectors of all images in a folder; arguments and errors as for :func:`write_features`."""
    found = find_encoder(weights)
    if found.scale:
        print(f"{found.path}: {found.scale}")
    encoder = Encoder(found.config())
    encoder.load_state_dict(found.state(found.config()))
    encoder = encoder.to(device).eval()
    if not folder.is_dir():
        raise MissingDataError(f"{folder} is no folder: name a folder of images")
    root = folder.resolve()
    names = sorted(file.name for file in images(root, root))
    if not names:
        raise MissingDataError(f"{folder} contains no images ({' '.join(ENDINGS)}): name another folder")
    vectors = []
    for part in batches(len(names), device, encoder.config.n_patches):
        pixels_BHWC = np.stack([decoded(root / name, encoder.config.image_size) for name in names[part]])
        images_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
        vectors.append(in_parts(lambda part_BCHW: pooled(encoder, part_BCHW, pool, found.pools_mean), images_BCHW, device))
    return Features(names, labels_of(names), torch.cat(vectors).numpy())


def in_parts(vectors_of: Callable[[Tensor], Tensor], images_BCHW: Tensor, device: torch.device) -> Tensor:
    """The vectors of images; of half as many at a time, and so on, while memory runs out.

    Raises:
        DeviceMemoryError: if it does not suffice for one image.
    """
    try:
        return vectors_of(scale_pixels(images_BCHW.to(device))).cpu()
    except torch.OutOfMemoryError as error:
        if len(images_BCHW) == 1:
            raise DeviceMemoryError(
                "there is not enough memory on the GPU for one image: end other programs that use it"
            ) from error
    torch.cuda.empty_cache()
    halves = images_BCHW.split((len(images_BCHW) + 1) // 2)
    return torch.cat([in_parts(vectors_of, half_BCHW, device) for half_BCHW in halves])


def labels_of(names: list[str]) -> list[str]:
    """The class of each image as in training: its first folder, below ``train``, ``test`` or ``val`` if all lie there."""
    folders = [Path(name).parts[:-1] for name in names]
    if all(inner and inner[0] in ("train", "test", "val") for inner in folders):
        folders = [inner[1:] for inner in folders]
    return [inner[0] if inner else "" for inner in folders]


def decoded(path: Path, side: int) -> np.ndarray:
    """An image file as pixels_HWC, uint8; raises MissingDataError with its name if it cannot be decoded."""
    try:
        return decode(path, side)
    except ValueError as error:
        raise MissingDataError(f"{path} cannot be decoded ({error}): repair it, or move it elsewhere") from error


def pooled(encoder: Encoder, images_BCHW: Tensor, pool: Pool, norm_last: bool) -> Tensor:
    """One vector an image, (B, D): the class token, or the mean of the others, before the norm if that comes last."""
    if pool == "class":
        return encoder(images_BCHW, wanted=slice(1))[:, 0]
    return PatchMean(encoder, norm_last)(images_BCHW)


def write_npz(path: Path, found: Features) -> None:
    with open(path, "wb") as file:
        np.savez(file, name=np.array(found.names), label=np.array(found.labels), vector=found.vectors_nD)


def write_parquet(path: Path, found: Features) -> None:
    import pyarrow
    import pyarrow.parquet

    width = found.vectors_nD.shape[1]
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(found.vectors_nD.ravel()), width)
    labels = pyarrow.array([as_text(label) or None for label in found.labels], pyarrow.string())
    table = pyarrow.table({"name": [as_text(name) for name in found.names], "label": labels, "vector": vectors})
    pyarrow.parquet.write_table(table, path)


def as_text(name: str) -> str:
    """A file's name with escapes for bytes that are not UTF-8, which Parquet does not take."""
    return name.encode("utf-8", "backslashreplace").decode()


WRITERS = {".npz": write_npz, ".parquet": write_parquet}
