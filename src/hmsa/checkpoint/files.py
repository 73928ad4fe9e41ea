"""A trained network in one file or folder: safetensors weights, JSON that rebuilds the network.

A file carries its `Card` in its header, entry `hmsa`; nothing in it can run code, and it is
replaced whole or not at all. A folder is what Hugging Face expects: model.safetensors (the same
file), config.json (the same card, which counts if somebody edited it) and README.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import (
    EvalResult,
    ModelCardData,
    create_repo,
    snapshot_download,
    upload_folder,
)
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from pydantic import BaseModel, ValidationError, computed_field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import __version__
from ..runs.errors import InputError, as_input_error, first_line
from ..runs.files import replace

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"


class GatePoint(BaseModel):
    """What it comes to if finer scales are computed in a share of the picture alone."""

    share: float
    cost: float  # of the pixels that the network looks at without a gate
    miou: float
    agreement: float  # share of labels that are those of everything computed


class GateCurve(BaseModel):
    """Measured by `hmsa gate`."""

    dataset: str
    split: str
    scales: list[float]
    points: list[GatePoint]  # by rising share

    def at(self, share: float) -> GatePoint:
        """Between the measured shares on a straight line."""
        shares = [point.share for point in self.points]
        values = {
            name: float(np.interp(share, shares, [getattr(p, name) for p in self.points]))
            for name in ("cost", "miou", "agreement")
        }
        return GatePoint(share=share, **values)


class Card(BaseModel):
    """Everything about a network but its weights. Normalisation is in the weights' buffers."""

    network: dict[str, Any]  # fusion, and the arguments of its class
    names: list[str]  # K class names
    palette: list[tuple[int, int, int]] = []  # K colours, RGB; empty: none chosen
    scales: list[float] = [0.5, 1.0]  # the default at inference
    flip: bool = False  # so are these: the mirrored picture is looked at, too;
    long_edge: int | None = None  # pixels that a picture is brought to first
    trained_on: dict[str, Any] = {}  # dataset, split, pictures
    recipe: dict[str, Any] = {}  # as given to hmsa train
    metrics: dict[str, float] = {}  # on which step, with what result
    gate: GateCurve | None = None  # what a gate saves and costs
    version: str = __version__

    @computed_field  # type: ignore[prop-decorator]
    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    def refuse_others(self, names: Sequence[str], other: object, source: object) -> None:
        """InputError if the classes `names`, of `other`, are not those of this card of `source`."""
        if list(names) != self.names:
            raise InputError(
                f"{source} knows {len(self.names)} classes ({', '.join(self.names[:4])}, ...), "
                f"{other} has {len(names)} ({', '.join(names[:4])}, ...); both must name the same "
                "classes in the same order"
            )

    def has_learnt(self, dataset: Path, split: str) -> bool:
        """Whether this network learnt from this split of the YAML file `dataset`, as main or as
        extra set."""
        learnt = [(self.trained_on.get("dataset"), self.trained_on.get("split"))]
        for extra in self.recipe.get("sampling", {}).get("extra", []):
            learnt.append((extra.get("dataset") or self.trained_on.get("dataset"), extra["split"]))
        for name, trained in learnt:
            # A folder stands for the dataset.yaml in it
            called = {Path(str(name)).stem, "dataset"} if name and not Path(name).suffix else {name}
            if trained == split and called & {dataset.name, dataset.stem}:
                return True
        return False

    def refuse_learnt(self, dataset: Path, split: str, source: object, asked: str) -> None:
        """InputError, that begins with `asked`, if the network of `source` has learnt from that."""
        if self.has_learnt(dataset, split):
            raise InputError(
                f"{asked}: {source} was trained on {dataset.name}, split {split}, so it cannot "
                "be judged there; name a split that it has not seen"
            )


class Pretrained:
    """What files and the Hugging Face hub have to do with a network; for `HMSA` to inherit."""

    fusion: str
    card: Card
    elsewhere: str | None = None  # tensors whose names begin so are in no checkpoint of it

    @property
    def id2label(self) -> dict[int, str]:
        return self.card.id2label

    @classmethod
    def from_pretrained(cls, source: str | Path, *, network: Any = None, **hub: Any) -> Self:
        """The network, in eval mode on the CPU, its card in `.card`.

        source: a .safetensors file, a run folder (its best, else its last), a folder made by
        `save_pretrained`, or an id on the Hugging Face hub such as owner/name; hub: revision,
        token, cache_dir, local_files_only, as in huggingface_hub. InputError for anything else.
        network: your own, where the checkpoint is of scale attention around such a one.
        """
        file = _find(source, hub)
        tensors, card = read(file)
        fusion = card.network.get("fusion", "hierarchical")
        kind = next((k for k in _kinds(cls) if k.fusion == fusion), None)
        if kind is None:
            raise InputError(f"{file} holds fusion {fusion!r}, which {cls.__name__} is not")
        arguments = {key: value for key, value in card.network.items() if key != "fusion"}
        if network is not None:
            arguments["network"] = network
        try:
            with as_input_error(file):
                model: Any = kind(**arguments)
        except TypeError as error:
            raise InputError(f"{file}: no such network ({error})") from None
        try:
            model.load_state_dict(tensors | _elsewhere(model))
        except RuntimeError as error:
            raise InputError(f"{file}: weights do not fit its network ({error})") from None
        model.card = card
        return model.eval()  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and README.md, the model card, into `folder`."""
        folder, config = Path(folder), self.card.model_dump_json(indent=2)
        page = _readme(self.card, folder.name)
        save(folder / WEIGHTS, self)
        replace(folder / CONFIG, lambda temporary: temporary.write_text(config + "\n"))
        replace(folder / README, lambda temporary: temporary.write_text(page))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to owner/name; returns the address of the commit."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / repo_id.split("/")[-1]
            self.save_pretrained(folder)
            create_repo(repo_id, private=private, token=token, exist_ok=True)
            done = upload_folder(repo_id=repo_id, folder_path=folder, token=token)
        return str(done)


def save(path: Path, model: Any) -> None:
    """Write the file `path`; an older one there stays whole until this one is."""
    inside = {n: t for n, t in model.state_dict().items() if n not in _elsewhere(model)}
    tensors = {name: t.detach().cpu().contiguous() for name, t in inside.items()}
    header = {"format": "pt", "hmsa": model.card.model_dump_json()}
    replace(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def _elsewhere(model: Any) -> dict[str, Tensor]:
    """What the model has from somewhere else than its checkpoint."""
    if model.elsewhere is None:
        return {}
    return {n: t for n, t in model.state_dict().items() if n.startswith(model.elsewhere)}


def begin_from(model: Any, source: str | Path) -> list[str]:
    """Give `model` the weights of another checkpoint; returns the names of those it keeps fresh.

    Fresh may be the attention and what counts classes, if the other's are others; InputError for
    any other difference.
    """
    tensors, _ = read(_find(source, {}))
    wanted = model.state_dict()
    fresh = [name for name in wanted if name.startswith("attention.") and (
        name not in tensors or tensors[name].shape != wanted[name].shape)]  # fmt: skip
    for name, tensor in wanted.items():
        if name in fresh:
            continue
        given = tensors.get(name)
        if given is None or given.shape[1:] != tensor.shape[1:]:
            came = "nothing" if given is None else f"shape {tuple(given.shape)}"
            raise InputError(
                f"start: {source} has {came} for {name} {tuple(tensor.shape)}; begin from a "
                "checkpoint of the same trunk, head and width"
            )
        if given.shape != tensor.shape:
            fresh.append(name)
    model.load_state_dict(
        {name: tensors[name] for name in wanted if name not in fresh}, strict=False
    )
    return fresh


def read(path: Path) -> tuple[dict[str, Tensor], Card]:
    """Weights and card of a checkpoint file; InputError if it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("hmsa")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a checkpoint ({error})") from None
    source, config = path, path.with_name(CONFIG)
    if path.name == WEIGHTS and config.is_file():
        source, header = config, config.read_text()
    if header is None:
        raise InputError(f"{path} holds weights but no hmsa header; it was not written by hmsa")
    try:
        return tensors, Card.model_validate(json.loads(header))
    except (ValueError, ValidationError) as error:
        raise InputError(f"{source}: its card is damaged ({first_line(error)})") from None


def amend(source: str | Path, **fields: Any) -> None:
    """Change fields of a checkpoint's card, wherever it lies; its weights stay what they are."""
    file = _find(source, {})
    tensors, card = read(file)
    text = card.model_copy(update=fields).model_dump_json(indent=2)
    header = {"format": "pt", "hmsa": Card.model_validate_json(text).model_dump_json()}
    replace(file, lambda temporary: save_file(tensors, temporary, metadata=header))
    config = file.with_name(CONFIG)
    if file.name == WEIGHTS and config.is_file():
        replace(config, lambda temporary: temporary.write_text(text + "\n"))


def fingerprint(source: str | Path) -> str:
    """SHA-256 of all that a checkpoint's results depend on; of any other file, of its content."""
    file = _find(source, {})
    if file.suffix != ".safetensors":
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    tensors, card = read(file)
    told = card.model_dump(include={"network", "names", "scales", "flip", "long_edge"})
    return hashed(tensors, json.dumps(told, sort_keys=True))


def hashed(tensors: Mapping[str, Tensor], told: str = "") -> str:
    """SHA-256 of tensors, their names and what is told of them."""
    digest = hashlib.sha256(told.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _find(source: str | Path, hub: Mapping[str, Any]) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        # Where the first half is a folder here, a path was meant
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or path.parent.is_dir():
            raise InputError(
                f"no checkpoint {source}; give a .safetensors file, a run folder, a folder of "
                "save_pretrained, or an id on the Hugging Face hub"
            )
        try:
            path = Path(snapshot_download(str(source), allow_patterns=[WEIGHTS, CONFIG], **hub))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(
                f"no file or folder {source}, nor is it on the hub ({first_line(error)})"
            ) from None
    names = (WEIGHTS, "best.safetensors", "last.safetensors")
    existing = [path / name for name in names if (path / name).is_file()]
    if not existing:
        raise InputError(f"{source} is a folder without {', '.join(names[:-1])} or {names[-1]}")
    return existing[0]


def _kinds(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(k for below in kind.__subclasses__() for k in _kinds(below))]


def _readme(card: Card, name: str) -> str:
    """The model card, in the form that the hub reads."""
    network, trained = dict(card.network), card.trained_on
    if made := network.get("network"):  # of others, all of whose settings nobody wants to read
        network["network"] = made.get("reference") or made["library"]
    dataset = str(trained.get("dataset", "own pictures"))
    scores = {k: v for k, v in card.metrics.items() if "miou" in k}
    data = ModelCardData(
        library_name="hmsa",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "multi-scale", "hmsa",
              str(network.get("trunk") or network["network"])],
        model_name=name,
        eval_results=[
            EvalResult("image-segmentation", Path(dataset).stem, dataset, "mean_iou", value,
                       metric_name=key)
            for key, value in scores.items()
        ] or None,
    )  # fmt: skip
    scales = ", ".join(f"{s:g}" for s in card.scales) + (", with flip" if card.flip else "")
    lines = [
        f"# {name}",
        "Semantic segmentation by [hmsa](https://arxiv.org/abs/2005.10821): one network looks at a "
        "picture at several scales and says which to trust where.",
        "```python\nfrom hmsa import Predictor\n\n"
        f'seen = Predictor.load("{name}")("photo.jpg")  # this folder, or its id on the hub\n'
        "seen.label, seen.confidence  # [H,W] each\n```",
        "## Network",
        "\n".join(f"- {key}: {value}" for key, value in network.items()),
        f"Scales at inference: {scales}.",
        f"## Classes\n\n{', '.join(f'{k} {label}' for k, label in card.id2label.items())}",
        "## Trained on",
        "\n".join(f"- {key}: {value}" for key, value in trained.items()) or "Not trained.",
        "## Metrics",
        "\n".join(f"- {key}: {value:g}" for key, value in card.metrics.items()) or "None measured.",
        "## Recipe",
        f"```json\n{json.dumps(card.recipe, indent=1)}\n```" if card.recipe else "Not recorded.",
        f"Written by hmsa {card.version}. The licence of the data it learnt from may bind its use.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"
