"""Where images of one's own are: ``train/<class>/*`` with ``test/<class>/*`` or ``val/<class>/*``, or without classes.

Hidden files and folders, and files without an image's ending, are passed over; a file that has one and cannot be decoded,
such as .heic, is an error. Images without classes lie in ``train/`` (and ``test/`` or ``val/``), or in the folder itself;
where there is no ``test/``, a tenth is set aside for testing.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from mae_core.errors import MissingDataError

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".jp2",
    ".avif", ".heic", ".heif",
)  # fmt: skip
LAYOUT = "train/<class>/ and test/<class>/, or images without classes in train/"


@dataclass(frozen=True)
class Listing:
    """The images of a split, in an order that mixes the classes and is always the same.

    Attributes:
        root: the folder of the data.
        names: path of each image within ``root``.
        labels: index of its class; -1 without classes.
        classes: their names, made printable; empty without classes.
        key: of names, sizes and times of modification and of change.
        fingerprint: of names and sizes, so that a copy has the same.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    key: str
    fingerprint: str


@dataclass(frozen=True)
class Found:
    """One image file: its path within the root, size in bytes, and when its content, and anything of it, changed."""

    name: str
    size: int
    mtime_ns: int
    ctime_ns: int  # also a rename, and a copy that keeps the modification time

    @property
    def place(self) -> bytes:
        """Its place in the order of a split: by chance, but always the same."""
        return hashlib.md5(os.fsencode(self.name.partition("/")[2] or self.name)).digest()


@contextmanager
def looking_into(data_dir: Path) -> Iterator[None]:
    """Where the system does not let us look into a folder of data, raise MissingDataError with a sentence on it."""
    try:
        yield
    except MissingDataError:  # an OSError, too, and one that says what to change
        raise
    except OSError as error:
        why = error.strerror or error
        raise MissingDataError(
            f"data_dir is {str(data_dir)!r}: it cannot be read ({why}): check its name and permissions"
        ) from error


def list_images(data_dir: Path) -> tuple[Listing, Listing]:
    """The images for training and for testing.

    Raises:
        MissingDataError: if the folder cannot be read, or is not laid out as above; says what to change.
    """
    check_layout(data_dir)
    with looking_into(data_dir):
        return splits(data_dir)


def splits(data_dir: Path) -> tuple[Listing, Listing]:
    """The images for training and for testing, in a folder of a good layout."""
    root = data_dir.resolve()
    train, test = root / "train", held_out(root)
    classes = class_names(train) if train.is_dir() else []
    if classes:
        assert test is not None
        first, second = (
            listing(root, {label: [*images(root, part / name)] for label, name in enumerate(classes)}, classes)
            for part in (train, test)
        )
        return first, second
    files = [*images(root, train if train.is_dir() else root, deep=False)]
    if not files:
        raise MissingDataError(f"{data_dir} holds no images ({' '.join(ENDINGS)}): put some into {LAYOUT}")
    if test is not None:
        others = [*images(root, test)]
        if not others:
            raise MissingDataError(f"{test} holds no images: put some there, or remove it")
    else:
        files.sort(key=lambda file: file.place)
        n = max(1, min(1000, len(files) // 10))
        others, files = files[:n], files[n:]
        if not files:
            raise MissingDataError(f"{data_dir} holds one image only, which is set aside for testing: put more there")
    return listing(root, {-1: files}, []), listing(root, {-1: others}, [])


def fingerprint(data_dir: Path) -> str:
    """Checksum of the names and sizes of all training and test images; reads no image."""
    return " ".join(listing.fingerprint for listing in list_images(data_dir))


def check_layout(data_dir: Path, needs_classes: bool = False) -> None:
    """Check that a folder can be read, and its layout, without looking at the images, in a moment.

    Args:
        data_dir: the folder of the data.
        needs_classes: whether images without classes, or of one class only, are an error.

    Raises:
        MissingDataError: says what to change.
    """
    with looking_into(data_dir):
        check_folders(data_dir, needs_classes)


def check_folders(data_dir: Path, needs_classes: bool) -> None:
    """Raise MissingDataError for what a folder's layout lacks."""
    if not data_dir.is_dir():
        raise MissingDataError(f"data_dir is {str(data_dir)!r}: there is no such folder; it must hold {LAYOUT}")
    root = data_dir.resolve()
    train, test = root / "train", held_out(root)
    classes = class_names(train) if train.is_dir() else []
    if not train.is_dir() and not any(True for _ in images(root, root, deep=False)):
        raise MissingDataError(f"data_dir is {str(data_dir)!r}: it has neither train/ nor images; it must hold {LAYOUT}")
    for part in filter(None, (train, test)):
        folders = class_names(part) if classes else []
        if folders and any(True for _ in images(root, part, deep=False)):
            raise MissingDataError(
                f"{part} holds both images and folders, such as {printable(folders[0])}/: move the images into the folders "
                f"of their classes, or elsewhere"
            )
    if classes and test is None:
        raise MissingDataError(
            f"data_dir is {str(data_dir)!r}: it has train/, but neither test/ nor val/: move some images of each class "
            f"there"
        )
    if classes and test is not None and classes != (others := class_names(test)):
        differing = sorted(set(classes) ^ set(others))
        odd = differing[0]
        there, lacking = ("train", test.name) if odd in classes else (test.name, "train")
        if any(normalize("NFC", name) == normalize("NFC", odd) for name in differing[1:]):
            raise MissingDataError(
                f"data_dir is {str(data_dir)!r}: the class {printable(odd)!r} is written with other characters in {there}/ "
                f"than in {lacking}/, though both look the same: rename one folder as the other"
            )
        raise MissingDataError(
            f"data_dir is {str(data_dir)!r}: the class {printable(odd)!r} is in {there}/ and not in {lacking}/; both must "
            f"have the same folders"
        )
    if needs_classes and len(classes) < 2:
        what = "images of one class only" if classes else "images without classes"
        raise MissingDataError(
            f"data_dir is {str(data_dir)!r}: it holds {what}, which can be pre-trained on and not classified; for "
            f"fine-tuning, it must hold {LAYOUT.split(',', maxsplit=1)[0]}"
        )


def held_out(root: Path) -> Path | None:
    """The folder of images for testing: ``test``, or else ``val``."""
    return next((root / name for name in ("test", "val") if (root / name).is_dir()), None)


def class_names(folder: Path) -> list[str]:
    """The visible folders in a folder, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith(".") and is_folder(entry))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def images(root: Path, folder: Path, deep: bool = True, above: tuple[Path, ...] = ()) -> Iterator[Found]:
    """The image files in a folder and, if ``deep``, in its folders; links to a folder ``above`` are passed over.

    Raises:
        MissingDataError: for a link that leads out of ``root`` or nowhere, and for what has an image's name and is no file.
    """
    inside(root, folder)
    above = (*above, folder.resolve())
    for entry in os.scandir(folder):
        goes_down = is_folder(entry)
        if entry.name.startswith(".") or not (deep if goes_down else entry.name.lower().endswith(ENDINGS)):
            continue
        if entry.is_symlink():
            inside(root, Path(entry.path))
        if goes_down:
            target = Path(entry.path).resolve()
            in_circles = entry.is_symlink() and any(path.is_relative_to(target) for path in above)
            yield from () if in_circles else images(root, Path(entry.path), above=above)
        elif not entry.is_file():
            raise MissingDataError(f"{printable(entry.path)} is no file: remove it, for it would be read as an image")
        else:
            told = entry.stat()
            yield Found(os.path.relpath(entry.path, root), told.st_size, told.st_mtime_ns, told.st_ctime_ns)


def inside(root: Path, path: Path) -> None:
    """Raise MissingDataError if a link leads out of the folder of the data, or nowhere."""
    try:
        leads_in = path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # nowhere, or, before Python 3.13, a link to itself
        leads_in = False
    if not leads_in:
        raise MissingDataError(
            f"{printable(str(path))} is a link that leads out of {root}, or nowhere: put the images themselves there"
        )


def listing(root: Path, files: dict[int, list[Found]], classes: list[str]) -> Listing:
    """The listing of files by label; raises MissingDataError for a class without images."""
    for label, found in files.items():
        if not found:
            raise MissingDataError(
                f"the class {printable(classes[label])!r} in {root} has no images in train/, or none in test/ or val/: put "
                f"some there, or remove its folders"
            )
    pairs = sorted(((file, label) for label, found in files.items() for file in found), key=lambda pair: pair[0].place)
    return Listing(
        root,
        tuple(file.name for file, _ in pairs),
        tuple(label for _, label in pairs),
        tuple(printable(name) for name in classes),
        digest(os.fsencode(f.name) + f"\0{f.size}\0{f.mtime_ns}\0{f.ctime_ns}".encode() for f, _ in pairs),
        digest(os.fsencode(f.name) + f"\0{f.size}".encode() for f, _ in pairs),
    )


def digest(lines: Iterable[bytes]) -> str:
    """16 digits of the MD5 of lines, in whatever order."""
    return hashlib.md5(b"\0\0".join(sorted(lines))).hexdigest()[:16]


def printable(name: str) -> str:
    """A file's name for text: characters that cannot be printed, such as a newline, become escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
