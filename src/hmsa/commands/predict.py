"""`hmsa predict`: labels, overlays and confidence for files, folders and globs."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import SUFFIXES, pictures_below, read_image
from ..data.labels import spread
from ..errors import InputError
from ..exported import SUFFIXES as EXPORTED
from ..exported import Exported
from ..files import replace
from ..pictures import colorize, heat, overlay, palette_png, panel
from ..predictor import Predictor, Segmentation
from ..runtime import Meter, Precision


def predict(
    source: Path,
    paths: Sequence[str],
    out: Path,
    scales: Sequence[float] | None = None,
    *,
    with_panel: bool = False,
    precision: Precision = "auto",
    flip: bool | None = None,
) -> tuple[int, list[str]]:
    """Write labels/, overlay/, confidence/ (and panel/) under `out`, one file each per picture.

    Returns how many pictures were done, and one line for each that could not be.
    """
    files = find_pictures(paths)
    predictor: Predictor | Exported
    if source.suffix in EXPORTED.values():
        if with_panel:
            raise InputError(f"{source} tells no scale apart; for --panel, give the checkpoint")
        predictor = Exported.load(source, scales, precision, flip)
        card = predictor.card
    else:
        predictor = Predictor.load(source, scales, precision, flip)
        card = predictor.model.card
    palette = np.array(card.palette or spread(len(card.names)), np.uint8)
    problems: list[str] = []
    with Meter("predict", len(files)) as meter:
        for name, file in files.items():
            try:
                image = read_image(file)
                seen = predictor(image, detail=with_panel)
                _write(out, name, image, seen, palette, with_panel)
            except InputError as error:
                problems.append(str(error) if str(file) in str(error) else f"{file}: {error}")
            meter.advance()
    return len(files) - len(problems), problems


def find_pictures(paths: Sequence[str]) -> dict[str, Path]:
    """Pictures by the name that their results get: the path below the folder given, no suffix.

    Where two would get one name (a.jpg beside a.png), both keep their suffix in it.
    """
    found: list[tuple[str, Path]] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found += [(f.relative_to(path).as_posix(), f) for f in pictures_below(path)]
        elif path.is_file():
            found.append((path.name, path))
        else:
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            pictures = [m for m in matches if m.suffix.lower() in SUFFIXES and m.is_file()]
            if not pictures:
                raise InputError(f"no picture matches {text!r}; give files, folders or a glob")
            found += [(file.name, file) for file in pictures]
    if not found:
        raise InputError(
            f"no pictures in {', '.join(paths)}; known suffixes: {', '.join(sorted(SUFFIXES))}"
        )
    stems = Counter(str(Path(name).with_suffix("")) for name, _ in found)
    named: dict[str, Path] = {}
    for name, file in found:
        stem = str(Path(name).with_suffix(""))
        if stems[stem] > 1:
            stem = name.replace(".", "_")
        if named.setdefault(stem, file) != file:
            raise InputError(f"{named[stem]} and {file} would both be named {stem}; run them apart")
    return named


def _write(
    out: Path,
    name: str,
    image: np.ndarray,
    seen: Segmentation,
    palette: np.ndarray,
    with_panel: bool,
) -> None:
    tinted = overlay(image, seen.label, palette)
    pictures = {
        f"labels/{name}.png": palette_png(seen.label, palette),
        f"overlay/{name}.jpg": Image.fromarray(tinted),
        f"confidence/{name}.png": Image.fromarray(seen.confidence),
    }
    if with_panel:
        scales = list(seen.single)
        rows = [
            [("image", image), ("fused", tinted),
             ("confidence", heat(seen.confidence / np.float32(255)))],
            [(f"prediction at {s:g}", colorize(seen.single[s], palette)) for s in scales],
            [(f"weight of {s:g}", heat(weight)) for s, weight in seen.weights.items()],
        ]  # fmt: skip
        rows = [row for row in rows if row]
        pictures[f"panel/{name}.png"] = panel(rows)
    for file, picture in pictures.items():
        kind = "JPEG" if file.endswith(".jpg") else "PNG"
        replace(out / file, lambda t, p=picture, k=kind: p.save(t, format=k, quality=92))  # type: ignore[misc]
