"""Any picture as a square of RGB pixels: upright, on white, resized and centre-cropped."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

BITS, PHOTOMETRIC = 258, 262  # tags of TIFF
WHITE_IS_ZERO = 0


def decode(source: Path | bytes, side: int) -> np.ndarray:
    """Decode the first picture of a file, turn it upright as its EXIF says, and cut it to its central square.

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB; transparent pixels become white. The short side is resized to
    ``side``, with antialiasing (Lanczos); a JPEG several times as large is decoded at a fraction of its size first.

    Args:
        source: a path, or the content of a file.
        side: of the square, in pixels.

    Returns:
        pixels_HWC, uint8.

    Raises:
        ValueError: if it cannot be decoded; gives the reason.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            shrink = min(file.size) / (2 * side)
            if shrink > 1:
                file.draft(None, (int(file.width / shrink), int(file.height / shrink)))  # for JPEG; others ignore it
            upright = as_rgb(turned(file), getattr(file, "tag_v2", {}))
    except Image.UnidentifiedImageError as error:
        raise ValueError("it is no image in a format that can be read") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"it has more than {most:,} pixels: make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError, RuntimeError, struct.error) as error:
        raise ValueError(str(error).split("\n")[0] or type(error).__name__) from error
    return np.asarray(ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS))


def turned(picture: Image.Image) -> Image.Image:
    """A picture as its EXIF block says that it was held; as it is where this block is damaged."""
    picture.load()  # so that damaged pixels are not taken for a damaged block
    try:
        return ImageOps.exif_transpose(picture)
    except MemoryError:
        raise
    except Exception:  # Pillow raises whatever the bytes of the block lead to
        return picture


def as_rgb(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """A picture of any mode in RGB, with the tags of its TIFF; raises ValueError for numbers whose scale is unknown."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown scale: save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        return deep_grey(picture, tags).convert("RGB")
    if isinstance(key := picture.info.get("transparency"), tuple) and max(key) > 255:  # of 16 bits, unlike its pixels
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    if picture.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def deep_grey(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """A grey picture of 12 or 16 bits with 8; raises ValueError for other numbers."""
    values_HW = np.asarray(picture).astype(np.int64)
    if values_HW.min(initial=0) < 0:
        raise ValueError("its pixels are signed numbers, some below zero: save it with 8 or 16 bits and no sign")
    if values_HW.max(initial=0) > 65535:
        raise ValueError("its pixels have 32 bits: save it with 8 or 16 bits")
    white = 4095 if tags.get(BITS) == (12,) else 65535
    grey_HW = (values_HW * (255 / white)).round().astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # a negative, such as an X-ray
        grey_HW = 255 - grey_HW
    if isinstance(transparent := picture.info.get("transparency"), int):
        grey_HW[values_HW == transparent] = 255
    return Image.fromarray(grey_HW)
