"""Trunk: any timm feature extractor, as a list of feature levels.

Contract: `forward(image [B,3,H,W])` with H and W multiples of `multiple` returns one map per level,
`[B, channels[i], H / strides[i], W / strides[i]]`, finest first. For example, with 64x128 pixels:

    trunk               channels               strides       levels
    hrnet_w18_small     16, 32, 64, 128        4 8 16 32     16x32, 8x16, 4x8, 2x4
    resnet50            256, 512, 1024, 2048   4 8 16 32     16x32, 8x16, 4x8, 2x4
    resnet50, stride 8  512, 1024, 2048        8 8 8         8x16, 8x16, 8x16   (dilated)
    the same, finest 4  256, 512, 1024, 2048   4 8 8 8       16x32, 8x16, 8x16, 8x16
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import timm
from timm.models.hrnet import HighResolutionModule
from torch import Tensor, nn

from .fusion import resize
from .weights import Weights, find, hashed, require_all

# Arguments that make some families take any image size (ViT, Swin). Tried in turn: timm refuses an
# argument that a family does not know.
_ANY_SIZE: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]


class Trunk(nn.Module):
    """timm network `name`, its levels of stride `finest` and coarser; stride 8 dilates it.

    pretrained: False, True (ImageNet weights, see `weights`), or the path of a local weight file.
    finest: `stride` unless given. official: HRNet and ResNet to the digit as in the official code:
    branches brought up bilinearly, every 3x3 of a dilated layer dilated, nothing ever padded.
    in_channels: of the image; pretrained weights of the first convolution are widened to them.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        stride: int = 4,
        finest: int | None = None,
        official: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        probe = _create(name, stride)
        reductions = probe.feature_info.reduction()
        wanted = [i for i, s in enumerate(reductions) if s >= (finest or stride)]
        try:
            weights = find(name, pretrained, probe.state_dict())
            self.extractor = _create(
                name, stride, weights, out_indices=tuple(wanted), in_chans=in_channels
            )
        except ValueError:
            raise
        except Exception as error:  # a file that is damaged or not safe may raise anything
            reason = " ".join(f"{type(error).__name__} {error}".split())[:160]
            raise ValueError(
                f"pretrained: {pretrained} cannot be read as weights of {name} ({reason}); give a "
                "file of its state_dict, or false"
            ) from None
        self.origin: dict[str, str] = {}  # of its weights: source, license, sha256
        if weights:
            require_all(self.extractor, weights)
            self.origin = {
                "source": weights.source, "license": weights.license,
                "sha256": hashed(self.extractor.state_dict()),
            }  # fmt: skip
        normal = timm.get_pretrained_cfg(name.split("/")[-1])
        # Of the images that its weights were trained on; timm repeats weights for further channels
        channels = [channel % 3 for channel in range(in_channels)]
        self.mean: Sequence[float] = [normal.mean[channel] for channel in channels]
        self.std: Sequence[float] = [normal.std[channel] for channel in channels]
        self.channels: list[int] = self.extractor.feature_info.channels()
        self.strides: list[int] = self.extractor.feature_info.reduction()
        self.multiple = max(self.strides)
        if official:
            self.multiple = 1
            _as_official(self.extractor)
        self._channels_last_output = str(getattr(self.extractor, "output_fmt", "")).endswith("NHWC")

    def forward(self, image: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.extractor(image)
        if self._channels_last_output:  # Swin and its relatives give [B,h,w,C]
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return levels


class _BilinearFusion(HighResolutionModule):  # type: ignore[misc]
    """timm's HRNet module, but that coarser branches come up bilinearly, to the size they meet."""

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [branch(level) for branch, level in zip(self.branches, x, strict=True)]
        if self.num_branches == 1:
            return x
        fused = []
        for i, row in enumerate(self.fuse_layers):
            parts = [
                resize(step[:-1](x[j]), x[i].shape[-2:]) if j > i else step(x[j])
                for j, step in enumerate(row)
            ]
            fused.append(self.fuse_act(sum(parts)))
        return fused


def _as_official(extractor: Any) -> None:
    for name, module in extractor.named_modules():
        if isinstance(module, HighResolutionModule):
            module.__class__ = _BilinearFusion
        # timm leaves the first 3x3 of a dilated layer as it was before the dilation
        dilation = {"layer3": 2, "layer4": 4}.get(name.split(".")[0])
        dilated = dilation and isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        if dilated and name.endswith("conv2") and extractor.feature_info.reduction()[-1] == 8:
            module.dilation = module.padding = (dilation, dilation)


def _create(name: str, stride: int, weights: Weights | None = None, **arguments: Any) -> Any:
    arguments["features_only"] = True
    if stride == 8:
        arguments["output_stride"] = 8
    if weights:
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": weights.cfg}
    if not timm.is_model(name.split("/")[-1]):
        known = {re.sub(r"[\W_]", "", known): known for known in timm.list_models()}
        near = difflib.get_close_matches(re.sub(r"[\W_]", "", name.lower()), known, 3)
        hint = f"; did you mean {', '.join(known[n] for n in near)}?" if near else ""
        raise ValueError(f"trunk {name!r} is not a timm model{hint}")
    if name.startswith("hrnet"):  # the four branches rather than the classifier's features
        arguments["feature_location"] = ""
    refusal: Exception | None = None
    for any_size in _ANY_SIZE:
        try:
            return timm.create_model(name, **arguments, **any_size)
        except (TypeError, AssertionError, NotImplementedError) as error:
            refusal = error
    reason = f": {refusal}" if str(refusal) else ""
    raise ValueError(
        f"trunk {name!r} cannot be built with stride {stride}{reason}; try the other (4 or 8)"
    )
