"""Checkpoints of the official multi-scale attention code: how to read them, what is what."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runs.errors import InputError

_BLOCK = r"ocr\.ocr_distri_head\.object_context_block\."
# In turn: the first that matches a whole key names it
_NAMES = [
    (r"backbone\.layer0\.0\.", "trunk.extractor.conv1."),
    (r"backbone\.layer0\.1\.", "trunk.extractor.bn1."),
    (r"backbone\.", "trunk.extractor."),
    (r"ocr\.conv3x3_ocr\.0\.", "head.pixels.0."),
    (r"ocr\.conv3x3_ocr\.1\.0\.", "head.pixels.1."),
    (r"ocr\.aux_head\.0\.", "head.aux.0.0."),
    (r"ocr\.aux_head\.1\.0\.", "head.aux.0.1."),
    (r"ocr\.aux_head\.2\.", "head.aux.1."),
    (_BLOCK + r"f_pixel\.0\.", "head.query.0.0."),
    (_BLOCK + r"f_pixel\.1\.0\.", "head.query.0.1."),
    (_BLOCK + r"f_pixel\.2\.", "head.query.1.0."),
    (_BLOCK + r"f_pixel\.3\.0\.", "head.query.1.1."),
    (_BLOCK + r"f_object\.0\.", "head.key.0.0."),
    (_BLOCK + r"f_object\.1\.0\.", "head.key.0.1."),
    (_BLOCK + r"f_object\.2\.", "head.key.1.0."),
    (_BLOCK + r"f_object\.3\.0\.", "head.key.1.1."),
    (_BLOCK + r"f_down\.0\.", "head.value.0."),
    (_BLOCK + r"f_down\.1\.0\.", "head.value.1."),
    (_BLOCK + r"f_up\.0\.", "head.context.0."),
    (_BLOCK + r"f_up\.1\.0\.", "head.context.1."),
    (r"ocr\.ocr_distri_head\.conv_bn_dropout\.0\.", "head.merge.0."),
    (r"ocr\.ocr_distri_head\.conv_bn_dropout\.1\.0\.", "head.merge.1."),
    (r"ocr\.cls_head\.", "head.semantic."),
    (r"aspp\.features\.", "head.dilated."),
    (r"aspp\.img_conv\.", "head.pooled."),
    (r"bot_fine\.", "head.reduce_fine."),
    (r"bot_aspp\.", "head.reduce."),
    (r"(?:final|seg_head|cls_head)\.0\.", "head.semantic.0.0."),
    (r"(?:final|seg_head|cls_head)\.1\.", "head.semantic.0.1."),
    (r"(?:final|seg_head|cls_head)\.3\.", "head.semantic.1.0."),
    (r"(?:final|seg_head|cls_head)\.4\.", "head.semantic.1.1."),
    (r"(?:final|seg_head|cls_head)\.6\.", "head.semantic.2."),
    (r"scale_attn\.conv2\.", "attention.2."),
    (r"scale_attn\.conv([01])\.", r"attention.\1.0."),
    (r"scale_attn\.bn([01])\.", r"attention.\1.1."),
    (r"scale_attn\.0\.", "attention.0.0."),
    (r"scale_attn\.1\.", "attention.0.1."),
    (r"scale_attn\.3\.", "attention.1.0."),
    (r"scale_attn\.4\.", "attention.1.1."),
    (r"scale_attn\.6\.", "attention.2."),
]
# Where attention is two bare convolutions
_SHORT_NAMES = [(r"scale_attn\.([02])\.", r"attention.\1.")]


def our_name(key: str, arch: str) -> str:
    """Our key for an official one, with or without the `module.` of a parallel wrapper."""
    key = key.removeprefix("module.")
    first = _SHORT_NAMES if NETWORKS[arch].get("short") else []
    for pattern, name in first + _NAMES:
        renamed, found = re.subn(f"^{pattern}", name, key)
        if found:
            return renamed
    raise InputError(f"{key!r} is no weight of the official networks that are known here")


_HRNET: dict[str, Any] = {"trunk": "hrnet_w48"}
_DEEPLAB: dict[str, Any] = {"trunk": "resnet50", "head": "deeplab", "stride": 8}
_SCALES = [0.5, 1.0, 2.0]
# The network, as `build` takes it, for each `arch` of an official checkpoint
NETWORKS: dict[str, dict[str, Any]] = {
    "ocrnet.HRNet_Mscale": {"fusion": "hierarchical", "head": "ocr"} | _HRNET,
    "ocrnet.HRNet": {"fusion": "average", "head": "ocr"} | _HRNET,
    "mscale.HRNet": {"fusion": "hierarchical", "head": "stacked"} | _HRNET,
    "basic.HRNet": {"fusion": "average", "head": "stacked"} | _HRNET,
    "mscale.DeepV3R50": {"fusion": "hierarchical"} | _DEEPLAB,
    "mscale2.DeepV3R50": {"fusion": "pair"} | _DEEPLAB,
    "deepv3.DeepV3PlusR50": {"fusion": "average"} | _DEEPLAB,
    "attnscale.DeepV3R50": {"fusion": "explicit", "scales": _SCALES, "short": True} | _DEEPLAB,
    "attnscale.DeepV3R50B": {"fusion": "explicit", "scales": _SCALES} | _DEEPLAB,
}


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """`arch` and weights, under our names, of an official checkpoint; no code of it ever runs.

    The file may be of the old serialisation, hold a numpy number, an optimizer, and keys with the
    `module.` of a parallel wrapper: all as the official code writes it.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    numpy_scalar = getattr(np, "_core", None) or np.core
    harmless: list[Any] = [
        (numpy_scalar.multiarray.scalar, "numpy.core.multiarray.scalar"),
        (numpy_scalar.multiarray.scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        np.dtypes.Float64DType,
        np.dtypes.Float32DType,
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no checkpoint that is safe to read ({reason})") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{path} has no state_dict; an official checkpoint is needed")
    arch = str(content.get("arch"))
    if arch not in NETWORKS:
        raise InputError(f"{path} is of arch {arch!r}; known here: {', '.join(NETWORKS)}")
    return arch, {our_name(key, arch): t for key, t in content["state_dict"].items()}
