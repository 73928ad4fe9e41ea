"""A network in a file, a folder or on the Hugging Face hub: weights, and a card that rebuilds it.

A file is safetensors with the `Card` as JSON in its header, entry `hmsa`. It cannot run code, and
is replaced whole or not at all. A folder holds it as model.safetensors, beside config.json (the
same card, which wins if somebody has edited it) and README.md.

`huggingface_hub.PyTorchModelHubMixin` is not used: it knows neither single files nor run folders
nor the fusion classes, removes config.json before it writes a new one, keeps an old README.md, and
does not report a damaged file in one line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md.j2")


@dataclass
class Card:
    """Everything about a network but its weights. Normalisation is in the weights' buffers."""

    network: dict[str, Any]  # fusion, and the arguments of its class
    names: list[str]  # K class names
    palette: list[tuple[int, int, int]] = field(default_factory=list)  # K RGB colours, or none
    scales: list[float] = field(default_factory=lambda: [0.5, 1.0])  # default at inference
    flip: bool = False  # default at inference: also run the mirrored image
    long_edge: int | None = None  # pixels; images are resized to it first
    trained_on: dict[str, Any] = field(default_factory=dict)  # dataset, split, images
    recipe: dict[str, Any] = field(default_factory=dict)  # of `hmsa train`
    metrics: dict[str, float] = field(default_factory=dict)  # step, and scores at that step
    gate: dict[str, Any] | None = None  # the curve that `hmsa gate` measured

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(asdict(self) | {"id2label": self.id2label}, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Raises ValueError if `text` is not the JSON of a card."""
        try:
            values = json.loads(text)
            card = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
            card.palette = [(r, g, b) for r, g, b in card.palette]
            card.network, card.scales = dict(card.network), [float(s) for s in card.scales]
        except (TypeError, ValueError) as error:
            raise ValueError(f"damaged card: {error}") from None
        return card


class Pretrained(nn.Module):
    """A network that files and the hub hold; the base of `HMSA`."""

    fusion: str
    card: Card
    external: str | None = None  # prefix of the tensors that a checkpoint does not store

    @property
    def id2label(self) -> dict[int, str]:
        return self.card.id2label

    def external_tensors(self) -> dict[str, Tensor]:
        prefix = self.external
        return {n: t for n, t in self.state_dict().items() if prefix and n.startswith(prefix)}

    @classmethod
    def from_pretrained(cls, source: str | Path, *, network: Any = None, **hub: Any) -> Self:
        """The network, in eval mode on the CPU, with its card in `.card`.

        source: a .safetensors file, a run folder (best.safetensors, else last.safetensors), a
        folder of `save_pretrained`, or an id on the Hugging Face hub such as owner/name. network:
        your own network, if the checkpoint holds scale attention around it. hub: revision, token,
        cache_dir, local_files_only, as in huggingface_hub. Raises ValueError for anything else.
        """
        file = find_checkpoint(source, **hub)
        tensors, card = read_checkpoint(file)
        arguments = {"fusion": "hierarchical"} | card.network
        fusion = arguments.pop("fusion")
        # Reversed: a class comes before those that inherit its fusion
        kinds = {kind.fusion: kind for kind in reversed(_with_subclasses(cls))}
        if fusion not in kinds:
            raise ValueError(f"{file} holds fusion {fusion!r}, which {cls.__name__} is not")
        if network is not None:
            arguments["network"] = network
        try:
            model = kinds[fusion](**arguments)
            model.load_state_dict(tensors | model.external_tensors())
        except TypeError as error:
            raise ValueError(f"{file}: no such network ({error})") from None
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{file}: weights do not fit its network ({reason})") from None
        model.card = card
        return model.eval()  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and README.md, the model card, into `folder`."""
        folder, data = Path(folder), ModelCardData()  # the template has all that the hub reads
        name = folder.resolve().name
        page = ModelCard.from_template(data, str(TEMPLATE), card=self.card, name=name)
        save(folder / WEIGHTS, self)
        _write_text(folder / README, str(page.content))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to owner/name; returns the address of the commit."""
        hub = HfApi(token=token)
        with TemporaryDirectory() as place:
            folder = Path(place) / repo_id.split("/")[-1]
            self.save_pretrained(folder)
            hub.create_repo(repo_id, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=repo_id, folder_path=folder))


def find_checkpoint(source: str | Path, **hub: Any) -> Path:
    """The weight file of `source`, which `Pretrained.from_pretrained` describes."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        # If the part before the slash is a folder here, a path was meant
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()) or path.parent.is_dir():
            raise ValueError(f"no checkpoint {source}; give a file, a run folder or a hub id")
        try:
            path = Path(snapshot_download(path.as_posix(), allow_patterns=[WEIGHTS, CONFIG], **hub))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{source} is no file or folder, nor on the hub ({reason})") from None
    names = (WEIGHTS, "best.safetensors", "last.safetensors")
    existing = [path / name for name in names if (path / name).is_file()]
    if not existing:
        raise ValueError(f"{source} is a folder without {', '.join(names[:-1])} or {names[-1]}")
    return existing[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Card]:
    """Weights and card of a file. Raises ValueError if it is not a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("hmsa")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint ({error})") from None
    if text is None:
        raise ValueError(f"{path} holds weights but no hmsa header; it was not written by hmsa")
    config = path.with_name(CONFIG)
    edited = path.name == WEIGHTS and config.is_file()
    try:
        return tensors, Card.from_json(config.read_text(encoding="utf-8") if edited else text)
    except ValueError as error:
        raise ValueError(f"{config if edited else path}: {error}") from None


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], card: Card) -> None:
    """Write the file `path`, and config.json beside it if it is named model.safetensors."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": "pt", "hmsa": card.to_json()}
    _replace(path, lambda file: save_file(stored, file, metadata=header))
    if path.name == WEIGHTS:
        _write_text(path.with_name(CONFIG), card.to_json(indent=2) + "\n")


def save(path: Path, model: Pretrained) -> None:
    """Write `model` to the file `path`; an older file there stays whole until it is replaced."""
    external = model.external_tensors()
    tensors = {name: t for name, t in model.state_dict().items() if name not in external}
    write_checkpoint(path, tensors, model.card)


def _with_subclasses(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(k for below in kind.__subclasses__() for k in _with_subclasses(below))]


def _write_text(path: Path, text: str) -> None:
    _replace(path, lambda file: file.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """`hmsa.runs.replace`, again because `hmsa.model` imports nothing else of hmsa."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors lets only the owner read it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
