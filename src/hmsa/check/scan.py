"""Every file of a dataset decoded once, in parallel; the facts are kept until the file changes.

Knows nothing about classes: the values of a label file are counted, whatever they mean.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageStat
from pydantic import BaseModel

from ..data.images import is_turned, open_image, read_stored
from ..data.labels import LabelSet, pack
from ..runs import InputError, Progress, Run, cache_folder, stamp

MOST_VALUES = 1000  # kept of a label file; a photograph in its place has hundreds of thousands
_VERSION = 6  # raise it whenever a scan finds something else
_HASH_SIDE = 16
_FLAT = 2.0  # gray levels; an image that varies less (a black frame) is a copy of nothing


class FileScan(BaseModel):
    """Facts of one file. broken: why it cannot be decoded; nothing else is known then."""

    broken: str = ""
    mode: str = ""  # Pillow's name: L, P, RGB, CMYK, I;16, .. or bands and type
    size: str = ""  # WIDTHxHEIGHT as shown
    # of an image
    turned: bool = False  # by EXIF
    hash: str = ""  # difference hash, hexadecimal; none if the image is flat
    # of a label
    values: dict[int, int] = {}  # raw value or packed colour: pixels, the commonest first
    lossy: bool = False  # a format that may change values
    foreign: str = ""  # why it is not in the encoding of the description; values: its colours


def scan_file(path: Path, labels: LabelSet | None = None) -> FileScan:
    """Decode a whole file; labels: how a label file holds its values, None for an image.

    Never raises: `broken` says why a file cannot be decoded.
    """
    try:
        return _scan_label(path, labels) if labels else _scan_image(path)
    except InputError as error:
        return FileScan(broken=str(error))
    except Exception as error:  # whatever a decoder may raise must not stop the others
        return FileScan(broken=f"{path} cannot be decoded ({error}); replace or remove it")


def _scan_image(path: Path) -> FileScan:
    with open_image(path) as image:
        rgb = Image.fromarray(image.read())
    gray = rgb.convert("L")
    gray.thumbnail((256, 256))  # hashing a large image takes long
    hashes = imagehash.dhash(gray, _HASH_SIDE), imagehash.dhash_vertical(gray, _HASH_SIDE)
    hash = "".join(map(str, hashes)) if ImageStat.Stat(gray).stddev[0] >= _FLAT else ""
    turned = is_turned(path)
    return FileScan(mode=image.mode, size="{}x{}".format(*rgb.size), turned=turned, hash=hash)


def _scan_label(path: Path, labels: LabelSet) -> FileScan:
    stored = read_stored(path)
    try:
        foreign, raw = "", labels.raw_of(stored, path)
    except InputError as error:
        foreign, raw = str(error), pack(stored.rgb())
    values, counts = np.unique(raw.astype(np.int64), return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    return FileScan(
        mode=stored.mode,
        size="{1}x{0}".format(*raw.shape),
        values=dict(zip(values[most].tolist(), counts[most].tolist(), strict=True)),
        lossy=stored.lossy,
        foreign=foreign,
    )


@functools.cache
def _reading(labels: LabelSet) -> str:
    """Hash of what the facts of a label file depend on beside the file."""
    table = labels.encoding, labels.raw, labels.ignored[:1]
    return hashlib.sha256(repr(table).encode()).hexdigest()[:8]


def scan(root: Path, files: Mapping[Path, LabelSet | None]) -> dict[Path, FileScan]:
    """`scan_file` of every file (path: labels) of the dataset in `root`.

    What is known of a file is kept in the user's cache folder until the file changes, so a second
    run, or one after Ctrl-C or SIGKILL, goes on.
    """
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    cache = cache_folder() / "scans" / f"{root.name}-{digest}-{_VERSION}"
    with ExitStack() as stack, Progress("check", len(files)) as progress:
        run, pool = None, ThreadPoolExecutor()
        with suppress(InputError):  # without the cache, or while it is in use, nothing is kept
            run = stack.enter_context(Run(cache, "scan", {}))
        stack.callback(pool.shutdown, cancel_futures=True)  # also on Ctrl-C

        def scan_once(path: Path) -> FileScan:
            labels, now = files[path], stamp(path)
            key = f"{_reading(labels) if labels else 'image'} {path}"
            before, facts = (run and run.records.get(key)) or (None, {})
            if before and before == now:
                return FileScan(**facts)
            found = scan_file(path, labels)
            if run:
                run.add(key, [now, found.model_dump(mode="json", exclude_defaults=True)])
            return found

        scans = {}
        for path, found in zip(files, pool.map(scan_once, files), strict=True):
            scans[path] = found
            progress.advance()
        return scans
