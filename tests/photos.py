"""Data sets for tests: a folder of small pictures in many formats, and files of CIFAR-100's format."""

import hashlib
import io
import pickle

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR100

RED, BLUE = (220, 30, 40), (30, 40, 200)


def held(orientation):
    """The EXIF block of a picture that was taken with the camera held so; 3 is upside down."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def quarters(size=(64, 48)):
    """A picture of four colours, one in each corner."""
    picture = halves(size)
    picture.paste((20, 200, 60), (0, 0, size[0] // 2, size[1] // 2))
    picture.paste((240, 230, 90), (size[0] // 2, size[1] // 2, *size))
    return picture


def halves(size=(64, 48), above=RED, below=BLUE):
    """A picture whose upper half has one colour, and its lower half another."""
    picture = Image.new("RGB", size, below)
    picture.paste(above, (0, 0, size[0], size[1] // 2))
    return picture


def transparent(picture):
    """The same picture, with a transparent lower half."""
    picture = picture.convert("RGBA")
    picture.paste((9, 9, 9, 0), (0, picture.height // 2, *picture.size))
    return picture


def sixteen_bits(size=(40, 40)):
    """Grey of 16 bits: 60 % above, 20 % below."""
    values = np.full(size, 13107, np.uint16)
    values[: size[0] // 2] = 39321
    return Image.fromarray(values)


def animated(picture):
    """The bytes of a GIF with this picture, and then a black one."""
    file = io.BytesIO()
    picture.save(file, "GIF", save_all=True, append_images=[Image.new("RGB", picture.size)])
    return file.getvalue()


def pictures(above=RED, below=BLUE):
    """Name and bytes of eleven pictures, from 24 to 500 pixels; all but the grey ones have one colour above another."""
    picture, upside_down = halves((500, 400), above, below), halves((90, 70), below, above)
    forms = {
        "large.jpg": (picture, {"quality": 95}),
        "TURNED.JPEG": (upside_down, {"exif": held(3), "quality": 95}),
        "print.jpg": (halves((120, 120), above, below).convert("CMYK"), {"quality": 95}),
        "small.png": (halves((24, 30), above, below), {}),
        "palette.PNG": (halves((64, 64), above, below).quantize(16), {}),
        "deep.png": (sixteen_bits(), {}),
        "web.webp": (halves((77, 51), above, below), {"lossless": True}),
        "scan.TIFF": (halves((60, 80), above, below), {}),
        "old 'quoted' \"name\".bmp": (halves((32, 32), above, below), {}),
        "grey\nline.tif": (halves((50, 40)).convert("L"), {}),
    }
    made = {"moving.gif": animated(halves((48, 48), above, below))}
    for name, (image, how) in forms.items():
        file = io.BytesIO()
        image.save(file, Image.registered_extensions()[f".{name.rpartition('.')[2].lower()}"], **how)
        made[name] = file.getvalue()
    return made


def write(folder, test="test"):
    """Two classes of eleven pictures each, for training and for testing, among files that are no images."""
    classes = {"red sky": (RED, BLUE), 'it\'s "blue"\n$x$': (BLUE, RED)}
    for part in ("train", test):
        for name, colours in classes.items():
            (folder / part / name).mkdir(parents=True)
            for file, content in pictures(*colours).items():
                (folder / part / name / file).write_bytes(content)
            (folder / part / name / "Thumbs.db").write_bytes(b"no image")
            (folder / part / name / ".hidden.png").write_bytes(b"no image")
        (folder / part / ".ipynb_checkpoints").mkdir()
        (folder / part / ".DS_Store").write_bytes(b"")
    return folder


def write_cifar100(folder, monkeypatch):
    """Files of CIFAR-100's format with 300 and 200 plain images, as bright as their label; their MD5s are expected."""
    (folder / CIFAR100.base_folder).mkdir()

    def dump(name, content):
        raw = pickle.dumps(content, protocol=2)
        (folder / CIFAR100.base_folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    for attribute, name, n in (("train_list", "train", 300), ("test_list", "test", 200)):
        labels = [i % 100 for i in range(n)]
        pixels = np.repeat(np.array(labels, np.uint8)[:, None], 3072, 1)
        content = {"data": pixels, "fine_labels": labels, "coarse_labels": [label // 5 for label in labels]}
        monkeypatch.setattr(CIFAR100, attribute, [dump(name, content)])
    fine = [f"class {n}" for n in range(100)]
    name, md5 = dump("meta", {"fine_label_names": fine, "coarse_label_names": ["coarse"] * 20})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": md5})
