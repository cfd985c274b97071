import io
import struct

import numpy as np
import pytest
from photos import BLUE, RED, animated, halves, held, pictures, quarters, sixteen_bits, transparent
from PIL import Image, ImageOps, features

from mae_core.data.decode import as_rgb, decode


def content(picture, form="PNG", **how):
    file = io.BytesIO()
    picture.save(file, form, **how)
    return file.getvalue()


@pytest.mark.parametrize("name", [name for name in pictures() if not name.startswith(("deep", "grey", "print"))])
def test_every_format_becomes_upright_square_and_rgb(name):
    pixels = decode(pictures()[name], 24).astype(int)
    assert pixels.shape == (24, 24, 3)
    assert abs(pixels[2:9] - RED).max() < 25, name
    assert abs(pixels[15:22] - BLUE).max() < 25, name


def test_a_picture_for_print_keeps_its_hues():
    pixels = decode(pictures()["print.jpg"], 24).astype(int)
    assert (pixels[2:9].argmax(-1) == 0).all()
    assert (pixels[15:22].argmax(-1) == 2).all()


def test_sixteen_bits_are_scaled_and_not_clipped():
    for form in ("PNG", "TIFF"):
        pixels = decode(content(sixteen_bits(), form), 20)
        assert (abs(pixels[:7] - 153.0) <= 1).all()  # 60 % of 255, with a trace of the edge
        assert (abs(pixels[13:] - 51.0) <= 1).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_however_the_camera_was_held(orientation, form):
    taken = content(quarters(), form, exif=held(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(taken))).convert("RGB")
    assert np.array_equal(decode(taken, 24), ImageOps.fit(upright, (24, 24), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_become_white(mode):
    picture = transparent(halves()).convert(mode) if mode != "PA" else transparent(halves()).quantize(8)
    pixels = decode(content(picture), 16)
    assert (pixels[9:] > 250).all()
    assert pixels[2:6].mean() < 130


def test_a_transparent_colour_of_sixteen_bits_becomes_white():
    """Pillow tells the key with 16 bits, and gives pixels of eight."""
    keyed = Image.new("RGB", (16, 16), (200, 10, 10))
    keyed.paste((10, 10, 200), (0, 0, 16, 8))
    keyed.info["transparency"] = tuple(value * 257 for value in (200, 10, 10))
    pixels = np.asarray(as_rgb(keyed, {}))
    assert (pixels[8:] == 255).all()
    assert (pixels[:8] == (10, 10, 200)).all()


def test_grey_is_grey_in_all_colours_and_an_animation_shows_its_first_picture():
    pixels = decode(content(halves().convert("L")), 16)
    assert (pixels == pixels[..., :1]).all()
    assert abs(decode(animated(halves()), 16)[2:6].astype(int) - RED).max() < 25


def test_the_middle_is_cut_out_and_the_short_side_resized():
    picture = Image.new("RGB", (90, 30), "white")
    picture.paste("black", (30, 0, 60, 30))
    assert decode(content(picture), 10).max() < 20  # white beside the cut shines through a little
    assert decode(content(picture.rotate(90, expand=True)), 10).max() < 20
    assert decode(content(picture.crop((10, 0, 80, 30))), 30).max() == 0


def test_pixels_are_those_of_pillows_antialiased_resizing_and_a_large_jpeg_comes_close():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    expected = ImageOps.fit(Image.fromarray(noise), (24, 24), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(content(Image.fromarray(noise)), 24), expected)
    smooth = Image.fromarray(noise[:12, :16]).resize((1600, 1200), Image.Resampling.BICUBIC)
    jpeg = content(smooth, "JPEG", quality=95)
    whole = ImageOps.fit(Image.open(io.BytesIO(jpeg)), (48, 48), Image.Resampling.LANCZOS)
    assert abs(decode(jpeg, 48).astype(int) - np.asarray(whole)).mean() < 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"", "no image"),
        (b"no image", "no image"),
        (content(halves((200, 200)), "JPEG")[:1000], "truncated"),
        (content(halves((300, 300)))[:200], "truncated|broken"),
        (content(Image.new("1", (20_000, 20_000))), r"it has more than 178,956,970 pixels"),
        (content(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point numbers of unknown scale"),
        (content(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "32 bits"),
    ],
)
def test_what_cannot_be_decoded_is_told_with_its_reason(broken, reason):
    check_refused(broken, reason)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_told_too():
    whole = content(halves((200, 200)), "AVIF")
    start = whole.index(b"mdat") + 4
    check_refused(whole[:start] + bytes(60) + whole[start + 60 :], "decode")


def check_refused(broken, reason):
    with pytest.raises(ValueError, match=reason) as error:
        decode(broken, 24)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_a_damaged_exif_block_costs_the_orientation_and_not_the_picture(form):
    picture, exif = halves(), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    whole = content(picture, form, exif=exif)
    place = whole.index(b"Exif\0\0") + 6 if form == "JPEG" else whole.index(b"EXIF") + 8
    upright = decode(content(picture, form), 24)
    damaged = 0
    for i in range(place, place + 40):
        for byte in (0x00, 0x03, 0x0C, 0xFF):
            pixels = decode(whole[:i] + bytes([byte]) + whole[i + 1 :], 24)
            damaged += np.array_equal(pixels, upright)
    assert damaged > 10


def tiff(value, bits, photometric=1, sample_format=1):
    """A grey TIFF of 4 × 4 equal pixels, as the standard lays it out: header, directory, pixels."""
    whole, twelve = (value % 2**bits).to_bytes(2, "little")[: bits // 8] * 16, bytes.fromhex(f"{value % 4096:03x}" * 16)
    pixels = twelve if bits == 12 else whole  # of 12 bits, two values are in three bytes
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 10 * 12 + 4, 277: 1, 278: 4,
            279: len(pixels), 339: sample_format}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, told) for tag, told in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


@pytest.mark.parametrize(
    ("bits", "photometric", "value", "grey"),
    [(16, 1, 65535, 255), (16, 1, 60000, 233), (16, 0, 60000, 22), (12, 1, 4095, 255), (12, 1, 1024, 64), (8, 0, 230, 25)],
)
def test_white_of_a_deep_tiff_is_white(bits, photometric, value, grey):
    assert (decode(tiff(value, bits, photometric), 4) == grey).all()


def test_numbers_below_zero_are_told():
    check_refused(tiff(-5, 16, sample_format=2), "signed numbers, some below zero")


def test_a_transparent_grey_of_16_bits_becomes_white():
    values_HW = np.full((4, 4), 12_345, np.uint16)
    values_HW[:2] = 20_000
    picture = Image.fromarray(values_HW)
    assert picture.mode == "I;16"
    plain, keyed = (decode(content(picture, **more), 4) for more in ({}, {"transparency": 20_000}))
    assert (plain[:2] == 78).all()
    assert (keyed[:2] == 255).all()
    assert (keyed[2:] == plain[2:]).all()
