"""Scale attention for a network that others made: a small head learns, the network stays as it is.

network = smp.Unet("resnet18", classes=11)        # any nn.Module; see `networks`
model = ScaleAttention(network.eval(), classes=11)  # an HMSA: one inference path for all
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.files import CONFIG, Card, hashed
from ..checkpoint.networks import Known, find, known, logits_of, rebuild
from ..runs.errors import InputError, first_line
from .fusion import wide
from .heads import Head, Reading, predictor
from .hmsa import HMSA
from .variants import PairAttention, build

STRIDE = 4  # the finest grid, in pixels a cell, that the attention head works on
CONFIDENCE = 3  # channels of `confidence_of`


def confidence_of(logits: Tensor) -> Tensor:
    """logits `[B,K,h,w]` -> how sure they are, `[B,3,h,w]`, all in 0..1: entropy, the top
    probability, and its margin over the second."""
    share = wide(logits).softmax(1)
    entropy = torch.special.entr(share).sum(1) / math.log(max(2, share.shape[1]))
    top = share.topk(min(2, share.shape[1]), 1).values
    return torch.stack([entropy, top[:, 0], top[:, 0] - top[:, -1]], 1)


class Outer(nn.Module):
    """A network that others made, in place of a trunk: image `[B,3,h,w]`, normalised ->
    features `[B,C,h',w']` or None, and logits.

    looked_at: what attention looks at beside confidence: the output of a module of the network,
    such as decoder.blocks.4, or its input, decoder.blocks.4:input; "auto" is the input of the last
    convolution that makes K channels, None nothing.
    """

    def __init__(
        self, module: nn.Module, multiple: int, classes: int | None, looked_at: str | None
    ) -> None:
        super().__init__()
        if module.training:
            raise InputError(
                "the network is in training mode, in which its norms change as it looks; give "
                "network.eval()"
            )
        self.module = module.requires_grad_(False)
        self.looked_at = None if looked_at == "auto" else looked_at
        image = self._blank(4 * multiple)
        features, logits = self._first_look(image, multiple)
        self.classes = logits.shape[1]
        if classes not in (None, self.classes):
            raise InputError(
                f"the network returns {self.classes} classes (logits {list(logits.shape)}), "
                f"{classes} are wanted; give one that was trained for these"
            )
        if looked_at == "auto" and (name := self._last_maker(image)):
            self.looked_at = f"{name}:input"
            features, _ = self._first_look(image, multiple)
        own = _stride(image, logits, "logits")
        looked = own if features is None else _stride(image, features, "features")
        grid = math.lcm(own, looked)
        self.grid = grid * -(-STRIDE // grid)  # of what attention works on
        # Cells of the grid to those of features, of logits
        self.pooled = self.grid // looked, self.grid // own
        self.multiple = math.lcm(multiple, self.grid)
        self.strides = [own, self.multiple]
        self.channels = 0 if features is None else features.shape[1]

    def forward(self, image: Tensor, attended: bool = True) -> tuple[Tensor | None, Tensor]:
        if not attended or not self.looked_at:
            return None, logits_of(self.module(image))
        name, _, which = self.looked_at.partition(":")
        found: list[Any] = []

        def note(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            found.append(given[0] if which == "input" else made)

        with _hooked([self._part(name)], [note]):
            logits = logits_of(self.module(image))
        features = found[-1] if found else None
        if not isinstance(features, Tensor) or features.ndim != 4:
            came = "nothing" if not found else type(features).__name__
            if isinstance(features, Tensor):
                came = f"a tensor {list(features.shape)}"
            raise InputError(
                f"features: {self.looked_at} of the network gave {came}; it must be maps "
                "[B,C,h,w]; name another module, or none"
            )
        return features, logits

    def train(self, mode: bool = True) -> Self:
        """Never: its norms, too, stay what they are."""
        return super().train(False)

    @torch.no_grad()
    def _first_look(self, image: Tensor, multiple: int) -> tuple[Tensor | None, Tensor]:
        try:
            features, logits = self(image)
        except InputError:
            raise
        except Exception as error:  # somebody else's code may raise anything
            raise InputError(
                f"the network fails on a picture {list(image.shape)} ({type(error).__name__}: "
                f"{first_line(error)}); is it true that it takes multiples of {multiple} pixels?"
            ) from None
        return features, logits

    @torch.no_grad()
    def _last_maker(self, image: Tensor) -> str | None:
        """The last convolution to run that makes K channels."""
        ran: list[str] = []
        named = {
            name: part for name, part in self.module.named_modules()
            if isinstance(part, nn.Conv2d) and part.out_channels == self.classes
        }  # fmt: skip
        notes = [lambda *_, n=name: ran.append(n) for name in named]  # type: ignore[misc]
        with _hooked(named.values(), notes):
            self.module(image)
        return ran[-1] if ran else None

    def _part(self, name: str) -> nn.Module:
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            parts = [n for n, _ in self.module.named_children()]
            raise InputError(
                f"features: the network has no module {name!r}; it is made of {', '.join(parts)}, "
                "whose parts are written like backbone.layer4"
            ) from None

    def _blank(self, side: int) -> Tensor:
        weight = next(self.module.parameters(), torch.zeros(()))
        return torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)


@contextmanager
def _hooked(parts: Iterable[nn.Module], notes: Iterable[Callable[..., None]]) -> Iterator[None]:
    """Each part's note is told what goes in and out, every time that the part runs."""
    handles = [part.register_forward_hook(note) for part, note in zip(parts, notes, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Ours(nn.Module):
    """An HMSA as such a network."""

    def __init__(self, model: HMSA) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model.see(image, attended=False).logits
        return logits


def of_ours(model: HMSA) -> Known:
    """What is known of a network of ours; of an attended one, of the network inside."""
    if isinstance(model, ScaleAttention):
        return Known(
            model.trunk.module, model.card.network["network"], model.card.network["multiple"],
            tuple(model.mean.flatten().tolist()), tuple(model.std.flatten().tolist()),
            tuple(model.card.names),
        )  # fmt: skip
    return Known(
        _Ours(model),
        {"library": "hmsa", "network": model.card.network},
        math.lcm(model.multiple, *model.strides),
        tuple(model.mean.flatten().tolist()), tuple(model.std.flatten().tolist()),
        tuple(model.card.names),
    )  # fmt: skip


def find_network(source: str | Path) -> Known:
    """As `networks.find`, and a checkpoint of ours: a file, a run folder."""
    path = Path(source)
    ours = [path / name for name in ("best.safetensors", "last.safetensors")]
    told = path / CONFIG
    if path.suffix == ".safetensors" or any(file.is_file() for file in ours) or (
        told.is_file() and '"fusion"' in told.read_text(encoding="utf-8", errors="replace")
    ):  # fmt: skip
        return of_ours(HMSA.from_pretrained(path))
    return find(str(source))


class ScaleAttention(HMSA):
    """Multi-scale attention around `network`, which is frozen and stays in eval mode.

    network: an nn.Module, what is `Known` of one, or what `Known.made` says. classes: K, to be
    checked. features: see `Outer`. confidence: whether the head also looks at how sure a scale
    is. per_class: K attention maps rather than one. width: channels in the head. multiple, mean,
    std, names: where they are others than `known` says.
    """

    fusion = "attention"

    def __init__(
        self,
        network: nn.Module | Known | Mapping[str, Any],
        classes: int | None = None,
        *,
        features: str | None = "auto",
        confidence: bool = True,
        per_class: bool = False,
        width: int = 64,
        multiple: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        nn.Module.__init__(self)  # a trunk and a head of our own are not what this is made of
        about = _known(network)
        self.trunk = outer = Outer(about.module, multiple or about.multiple, classes, features)
        self.classes = k = outer.classes
        if not outer.channels and not confidence:
            raise InputError(
                "attention has nothing to look at: neither features nor confidence; name a module "
                "whose output it may look at, or allow confidence"
            )
        if "reference" in about.made:
            self.elsewhere = "trunk.module."
        self.confidence, self.maps = confidence, k if per_class else 1
        self.head = Head()
        self.head.features = outer.channels + CONFIDENCE * confidence
        self.attention = self._attention(self.head.features, width)
        self._normalise_by(mean or about.mean, std or about.std)
        names = names or about.names or [f"class {i}" for i in range(k)]
        self.card = Card(
            network={
                "fusion": self.fusion, "network": dict(about.made), "classes": k,
                "features": outer.looked_at, "confidence": confidence, "per_class": per_class,
                "width": width, "multiple": multiple or about.multiple,
            },
            names=list(names),
        )  # fmt: skip

    def _attention(self, inputs: int, width: int) -> nn.Sequential:
        # Features come as they are, of any size: the first norm makes them alike
        return nn.Sequential(nn.BatchNorm2d(inputs), predictor(inputs, width, self.maps))

    def see(self, image: Tensor, attended: bool = True, context: Tensor | None = None) -> Reading:
        features, logits = self.trunk(image, attended)
        if not attended:
            return Reading(None, logits)
        far, near = self.trunk.pooled
        parts = [] if features is None else [F.avg_pool2d(features, far)]
        if self.confidence:
            sure = F.avg_pool2d(confidence_of(logits), near)
            parts.append(sure.to(parts[0] if parts else sure))
        return Reading(torch.cat(parts, 1), logits)


class PairScaleAttention(ScaleAttention, PairAttention):
    """The same, but that the attention of a pair of scales looks at both of them: no gate."""

    fusion = "attention of pairs"

    def _attention(self, inputs: int, width: int) -> nn.Sequential:
        return super()._attention(2 * inputs, width)


def _stride(image: Tensor, maps: Tensor, what: str) -> int:
    """Pixels a cell. InputError: it is not a whole number, or not the same both ways."""
    found = {side / cells for side, cells in zip(image.shape[-2:], maps.shape[-2:], strict=True)}
    if len(found) > 1 or min(found) % 1 or min(found) < 1:
        raise InputError(
            f"the network makes {what} {list(maps.shape)} of a picture {list(image.shape)}; one "
            "cell must stand for as many pixels both ways, a whole number of them"
        )
    return round(found.pop())


def _known(network: nn.Module | Known | Mapping[str, Any]) -> Known:
    if isinstance(network, Known):
        return network
    if isinstance(network, HMSA):
        return of_ours(network)
    if isinstance(network, nn.Module):
        return known(network)
    if network.get("library") == "hmsa":
        return of_ours(build(**network["network"]).eval())
    if "reference" in network:
        about = find_network(network["reference"])
        if hashed(about.module.state_dict()) != network["sha256"]:
            raise InputError(
                f"{network['reference']} is another network now than the one that this attention "
                "was trained for; train it anew with hmsa attend"
            )
        return Known(**vars(about) | {"made": network})
    return Known(rebuild(network).eval(), network)
