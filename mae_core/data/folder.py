"""Images of one's own, decoded once by all cores into one memory-mapped file; see layout.py and store.py."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mae_core.data.decode import decode
from mae_core.data.layout import Listing, list_images, printable
from mae_core.data.store import Stored, Write, prepared, stored
from mae_core.devices import n_cores
from mae_core.errors import MissingDataError

VERSION = 2  # of what decode makes of a picture; another one prepares all images again
AT_ONCE = 16  # images that a thread decodes between two updates of the progress bar


def prepare(listing: Listing, split: str, side: int, check: bool = True) -> Stored:
    """Decode the images of a split once, by all cores; see store.py for where they are kept, and for ``check``.

    Raises:
        MissingDataError: if an image cannot be decoded; names it, and nothing is kept.
    """

    def fill(write: Write) -> dict[str, Any]:
        digests: list[str] = []
        failed: list[str] = []

        def work(first: int) -> list[tuple[str, str]]:
            done = []
            pixels = np.zeros((min(AT_ONCE, len(listing.names) - first), 3, side, side), np.uint8)
            for i, name in enumerate(listing.names[first : first + AT_ONCE]):
                try:
                    content = (listing.root / name).read_bytes()
                    pixels[i] = decode(content, side).transpose(2, 0, 1)
                    done.append((hashlib.md5(content).hexdigest(), ""))
                except OSError as error:
                    done.append(("", f"{printable(name)} ({error.strerror or error})"))
                except ValueError as error:
                    done.append(("", f"{printable(name)} ({error})"))
            write(first, pixels)
            return done

        n = len(listing.names)
        pace = float(os.environ.get("TQDM_MININTERVAL", 1))
        with (
            ThreadPoolExecutor(n_cores()) as pool,
            tqdm(total=n, desc=f"decoding {split}", unit="image", mininterval=pace, ncols=100) as bar,
        ):
            for done in pool.map(work, range(0, n, AT_ONCE)):
                digests += [digest for digest, _ in done]
                failed += [why for _, why in done if why]
                bar.update(len(done))
        if failed:
            more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
            raise MissingDataError(
                f"these files in {listing.root} cannot be decoded: {', '.join(failed[:3])}{more}; repair or remove them"
            )
        return {"md5": digest_of(listing.names, digests)}

    return prepared(listing.root, f"{split}-{side}", f"{listing.key}-{VERSION}", len(listing.names), side, fill, check)


def content_md5(data_dir: Path, side: int) -> str:
    """MD5 of the names and the contents of all images, whatever their modification times and their size in pixels."""
    md5s = []
    for split, listing in zip(("train", "test"), list_images(data_dir), strict=True):
        if done := stored(listing.root, f"{split}-{side}", f"{listing.key}-{VERSION}"):
            md5s.append(done.about["md5"])
        else:
            contents = ((listing.root / name).read_bytes() for name in listing.names)
            md5s.append(digest_of(listing.names, [hashlib.md5(content).hexdigest() for content in contents]))
    return hashlib.md5("".join(md5s).encode()).hexdigest()


def digest_of(names: tuple[str, ...], digests: list[str]) -> str:
    """MD5 of all names with the MD5s of their contents."""
    lines = sorted(os.fsencode(name) + b" " + digest.encode() for name, digest in zip(names, digests, strict=True))
    return hashlib.md5(b"\0".join(lines)).hexdigest()
