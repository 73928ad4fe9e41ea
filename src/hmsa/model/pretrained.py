"""A network in a file, a folder or on the Hugging Face hub: weights, and a card that rebuilds it.

A file is safetensors with the `Card` as JSON in its header, entry `hmsa`. It cannot run code, and
is replaced whole or not at all. A folder holds it as model.safetensors, beside config.json (the
same card, which wins if somebody has edited it) and README.md. Files may be anybody's: a card is
checked against limits, and the network that it describes may not be much larger than its weights.

`huggingface_hub.PyTorchModelHubMixin` is not used: it knows neither single files nor run folders,
and replaces files one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from .state_dicts import require_finite

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
BEST, LAST = "best.safetensors", "last.safetensors"  # of a run
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar"}  # suffixes; these may run code
# What a card may ask for: characters, nesting, any size in the network, classes (labels have 8
# bits, of which 255 means ignore), scales and the largest of them, pixels
_TEXT, _DEPTH, _SIZE, _CLASSES, _SCALES, _SCALE, _EDGE = 1 << 20, 16, 1 << 16, 255, 16, 16, 1 << 14
_SLACK = 1 << 28  # numbers in layers that timm builds and then leaves out
_LEAST = 1 << 14  # what a small tensor counts as: a layer takes memory, too


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
    about: dict[str, Any] = field(default_factory=dict)  # if shared: licence, results, limits
    gate: dict[str, Any] | None = None  # the curve that `hmsa gate` measured
    bands: list[int] | None = None  # of images, from 1; none: RGB
    stretch: list[list[float]] = field(default_factory=list)  # values that become 0 and 255

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(asdict(self) | {"id2label": self.id2label}, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes, source: object) -> Card:
        """Raises ValueError, naming `source`, if `text` is not the JSON of a card within limits."""
        try:
            if len(text) > _TEXT:
                raise ValueError(f"it has more than {_TEXT} characters")
            values = json.loads(text)
            for _ in _integers(values):
                pass  # raises for what is nested too deeply
            card = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
            card._check()
            card.palette = [(r, g, b) for r, g, b in card.palette]
            card.scales = [float(scale) for scale in card.scales]
            card.stretch = [[float(low), float(high)] for low, high in card.stretch]
        except (TypeError, AttributeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{source}: damaged card: {reason}") from None
        return card

    def _check(self) -> None:
        """Raises ValueError for what is of another type, or beyond the limits."""
        k, edge = len(self.names), self.long_edge
        texts = isinstance(self.names, list) and all(isinstance(n, str) for n in self.names)
        _need(texts and 0 < k <= _CLASSES, f"names: 1 to {_CLASSES} texts")
        _need(self.network.get("classes") == k, f"network: {k} classes, as there are names")
        _need(max(map(abs, _integers(self.network))) <= _SIZE, f"network: sizes up to {_SIZE}")
        _need(self.network.get("width", 1) > 0, "network: a width above 0")
        colours = all(type(n) is int and 0 <= n <= 255 for rgb in self.palette for n in rgb)
        _need(colours and len(self.palette) in (0, k), "palette: three of 0..255 for each name")
        scales = isinstance(self.scales, list) and all(0 < s <= _SCALE for s in self.scales)
        _need(
            scales and 0 < len(self.scales) <= _SCALES,
            f"scales: 1 to {_SCALES} numbers, above 0 and up to {_SCALE}",
        )
        _need(isinstance(self.flip, bool), "flip: true or false")
        _need(
            edge is None or (type(edge) is int and 0 < edge <= _EDGE),
            f"long_edge: null, or 1 to {_EDGE} pixels",
        )
        bands = [] if self.bands is None else self.bands
        _need(
            isinstance(bands, list) and all(type(n) is int and 0 < n <= _SIZE for n in bands),
            f"bands: null, or numbers of 1 to {_SIZE}",
        )
        _need(all(low < high for low, high in self.stretch), "stretch: pairs of rising numbers")
        for name in ("trained_on", "recipe", "metrics", "about"):
            _need(isinstance(getattr(self, name), dict), f"{name}: an object")
        _need(isinstance(self.gate, dict | None), "gate: an object, or null")


class Pretrained(nn.Module):
    """A network that files and the hub hold; the base of `HMSA`."""

    fusion: str
    card: Card
    external: tuple[str, ...] = ()  # prefixes of the tensors that a checkpoint does not store
    locate: Callable[[str | Path], str | Path] = staticmethod(lambda source: source)  # of names

    @property
    def id2label(self) -> dict[int, str]:
        return self.card.id2label

    @classmethod
    def from_pretrained(cls, source: str | Path, *, network: Any = None, **hub: Any) -> Self:
        """The network, in eval mode on the CPU, with its card in `.card`.

        source: a .safetensors file, a run folder (best.safetensors, else last.safetensors), a
        folder of `save_pretrained`, the name of a network that comes with hmsa, or an id on the
        Hugging Face hub such as owner/name. network:
        your own network, if the checkpoint holds scale attention around it. hub: revision, token,
        cache_dir, local_files_only, as in huggingface_hub. Raises ValueError for anything else.
        """
        file, tensors, card = read_checkpoint(cls.locate(source), **hub)
        # No checkpoint makes us read another file of weights
        arguments = {"fusion": "hierarchical"} | card.network
        fusion, _ = arguments.pop("fusion"), arguments.pop("pretrained", None)
        # Reversed: a class comes before those that inherit its fusion
        kinds = {kind.fusion: kind for kind in reversed(_with_subclasses(cls))}
        if str(fusion) not in kinds:
            raise ValueError(f"{file} holds fusion {fusion!r}, which {cls.__name__} is not")
        try:
            kind, made = kinds[fusion], arguments.get("network")
            if network is None and isinstance(made, dict) and "reference" in made:
                network = kind.describe(made)  # its weights lie elsewhere
            with _no_larger_than(tensors):
                model = kind(**arguments | ({} if network is None else {"network": network}))
            own = {n: t for n, t in model.state_dict().items() if n.startswith(model.external)}
            model.load_state_dict(tensors | own)
        except Exception as error:  # a card may be anybody's
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            known = isinstance(error, ValueError)
            reason = reason if known else f"its network cannot be rebuilt ({reason})"
            raise ValueError(f"{file}: {reason}") from None
        model.card = card
        return model.eval()  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and README.md, the model card, into `folder`."""
        folder = Path(folder)
        data, name = ModelCardData(), folder.resolve().name  # the template has all that is needed
        page = ModelCard.from_template(data, str(TEMPLATE), card=self.card, name=name)
        save(folder / WEIGHTS, self)
        _replace(folder / README, str(page.content).encode())

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


def _find(source: str | Path, **hub: Any) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        if path.parent.is_dir():  # else it may be owner/name
            raise ValueError(
                f"no checkpoint {source}; give a file, a run folder, a hub id or a "
                "name that hmsa models lists"
            )
        try:
            path = Path(snapshot_download(path.as_posix(), allow_patterns=[WEIGHTS, CONFIG], **hub))
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{source} is no file or folder, nor on the hub ({reason})") from None
    for name in (WEIGHTS, BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{source} is a folder without {WEIGHTS}, {BEST} or {LAST}")


def read_checkpoint(source: str | Path, **hub: Any) -> tuple[Path, dict[str, Tensor], Card]:
    """File, weights and card of what `Pretrained.from_pretrained` takes. Raises ValueError."""
    path = _find(source, **hub)
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path} is not a checkpoint of hmsa but a pickle, which can run code; give a run "
            "folder or a .safetensors file (hmsa convert makes one of an official checkpoint)"
        )
    try:
        with path.open("rb") as opened:  # by its number: safetensors takes names in UTF-8 alone
            utf8 = str(path).encode("utf-8", "replace") == os.fsencode(path)
            file = safe_open(path if utf8 else f"/dev/fd/{opened.fileno()}", framework="pt")
        with file:
            text = (file.metadata() or {}).get("hmsa")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint ({error})") from None
    if text is None:
        raise ValueError(f"{path} holds weights but no hmsa header; it was not written by hmsa")
    require_finite(tensors, path)
    config = path.with_name(CONFIG)
    if path.name == WEIGHTS and config.is_file():
        with config.open("rb") as content:
            return path, tensors, Card.from_json(content.read(_TEXT + 1), config)
    return path, tensors, Card.from_json(text, path)


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], card: Card) -> None:
    """Write the file `path`, and config.json beside it if it is named model.safetensors."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": "pt", "hmsa": card.to_json()}
    _replace(path, to_bytes(stored, header))
    if path.name == WEIGHTS:
        _replace(path.with_name(CONFIG), f"{card.to_json(indent=2)}\n".encode())


def save(path: Path, model: Pretrained) -> None:
    """Write `model` to the file `path`; an older file there stays whole until it is replaced."""
    stored = {n: t for n, t in model.state_dict().items() if not n.startswith(model.external)}
    write_checkpoint(path, stored, model.card)


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"needed is {what}")


def _integers(value: Any, depth: int = 0) -> Iterator[int]:
    """All integers in JSON. Raises ValueError if it is nested too deeply."""
    _need(depth <= _DEPTH, f"JSON that is nested {_DEPTH} times at most")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _integers(each, depth + 1)
    elif isinstance(value, int):
        yield value


@contextmanager
def _no_larger_than(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Raises ValueError if networks are built inside that are much larger than `weights`.

    The trunk is built twice, and timm first builds layers that are then left out.
    """
    left = _SLACK + 4 * sum(max(tensor.numel(), _LEAST) for tensor in weights.values())

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal left
        left -= _LEAST if tensor is None else max(tensor.numel(), _LEAST)
        _need(left >= 0, "a card whose network has the size of its weights; this one is larger")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _with_subclasses(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(k for below in kind.__subclasses__() for k in _with_subclasses(below))]


def _replace(path: Path, content: bytes) -> None:
    """`hmsa.runs.replace`, again because `hmsa.model` imports nothing else of hmsa."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".hmsa-{os.getpid()}-{path.name}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
