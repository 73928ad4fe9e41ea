"""Networks that come with hmsa, found by name, and what is known of all networks on this machine.

Each is a folder as `save_pretrained` writes it, its weights in 16 bits; benchmarks/ship.py makes
them. Cards are read as JSON, and no torch is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..runs.errors import InputError

FOLDER = Path(__file__).with_suffix("")
JUDGE = FOLDER / "judge.safetensors"  # a trunk with ImageNet weights; see `inference.choose`
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"  # as in hmsa.model.pretrained, which is slow


def names() -> list[str]:
    return sorted(config.parent.name for config in FOLDER.glob(f"*/{_CONFIG}"))


def locate(source: str | Path) -> str | Path:
    """The folder of the network of that name, unless there is such a path here; else `source`."""
    return FOLDER / source if str(source) in names() and not Path(source).exists() else source


def require_own(source: str | Path) -> None:
    """Raises InputError for a network that comes with hmsa, before it would be changed."""
    if Path(locate(source)).parent == FOLDER:
        raise InputError(
            f"{source} comes with hmsa and stays as it is; hmsa convert {source} -o "
            f"runs/{source} makes a copy that can be changed"
        )


class Network(NamedTuple):
    """One row of `hmsa models`. What nobody has measured or said is None."""

    name: str
    classes: int
    license: str | None
    megabytes: float
    miou: float | None  # 0..1
    measured_on: str | None  # dataset and split
    seconds: float | None  # of one CPU core for a megapixel
    hardware: str | None
    folder: str

    @property
    def percent(self) -> float | None:
        return None if self.miou is None else 100 * self.miou

    @property
    def place(self) -> str:
        return "hmsa" if Path(self.folder).parent == FOLDER else "hub cache"


def networks() -> Iterator[Network]:
    """Those that come with hmsa, then those in the cache of the Hugging Face hub."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    for name in names():
        yield _network(name, FOLDER / name)
    with suppress(CacheNotFound):
        for repo in sorted(scan_cache_dir().repos, key=lambda repo: repo.repo_id):
            for revision in sorted(repo.revisions, key=lambda r: -r.last_modified)[:1]:
                with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                    yield _network(repo.repo_id, revision.snapshot_path)  # else not of hmsa


def read_card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / _CONFIG).read_text("utf-8"))
    return card


def _network(name: str, folder: Path) -> Network:
    """Raises OSError, ValueError, TypeError, KeyError or AttributeError for another's folder."""
    card = read_card(folder)
    about, metrics = card.get("about", {}), card["metrics"]
    result = about["results"][0] if about.get("results") else {}
    learnt, speed = card["trained_on"].get("dataset"), about.get("speed", {})
    score, on = metrics.get("val_miou"), f"{learnt}, in training" if learnt else None
    return Network(
        name=name,
        classes=card["network"]["classes"],
        license=about.get("license"),
        megabytes=(folder / _WEIGHTS).stat().st_size / 1e6,
        miou=result.get("miou", score),
        measured_on=f"{result['dataset']}, {result['split']}" if result else on,
        seconds=speed.get("seconds_per_megapixel"),
        hardware=speed.get("hardware"),
        folder=str(folder),
    )
