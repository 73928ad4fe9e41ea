"""Equal to the official networks: logits computed with the official code, weights by a rule.

The golden arrays are float32 roundings of a float64 run; ours runs in float64, tolerance 1e-5.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from golden.rule import image, weight
from hmsa.model import HMSA
from hmsa.official import our_name

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"A": (0, (64, 128)), "C": (2, (83, 125))}  # C is odd on purpose
MODES = {"two": (0.5, 1.0), "n3": (0.5, 1.0, 2.0), "n5": (0.25, 0.5, 1.0, 1.5, 2.0)}
NETWORKS = {
    "ocrnet_HRNet_Mscale": {"trunk": "hrnet_w48", "head": "ocr"},
    "mscale_DeepV3R50": {"trunk": "resnet50", "head": "deeplab", "stride": 8},
}


def by_rule(name: str) -> HMSA:
    """An official network with the weights that the rule gives to its official names."""
    model = HMSA(
        19, width=256, official=True, mean=(0, 0, 0), std=(1, 1, 1), **NETWORKS[name]
    )  # the golden pictures are white noise, not normalised
    keys = json.loads((GOLDEN / f"{name}_keys.json").read_text())["keys"]
    state = {}
    for entry in keys:
        made = weight(entry["key"], tuple(entry["shape"]))
        if "rule_first" in entry:
            assert float(made.ravel()[0]) == pytest.approx(entry["rule_first"], abs=1e-7)
        state[our_name(entry["key"])] = torch.from_numpy(np.asarray(made))
    state |= {name: getattr(model, name) for name in ("mean", "std")}
    model.load_state_dict(state)  # strict: every weight has a name on both sides
    return model.double().eval()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return request.param, by_rule(request.param)


def sampled(maps: torch.Tensor, step: int) -> np.ndarray:
    return maps[:, :, step // 2 :: step, step // 2 :: step].numpy()


@pytest.mark.parametrize("size", SIZES)
def test_logits_and_attention_of_every_chain(network, size):
    name, model = network
    golden = np.load(GOLDEN / f"{name}_{size}.npz")
    seed, (h, w) = SIZES[size]
    picture = torch.from_numpy(image((1, 3, h, w), seed)).double()
    worst = 0.0
    for mode, scales in MODES.items():
        with torch.no_grad():
            logits, maps = model(picture, scales)
        found = {"pred": logits}
        for scale, one in maps.items():
            found |= {f"pred_{scale}x": one.logits, f"attn_{scale}x": one.attention}
        for key in golden.files:
            owner, tensor, kind = key.split("|")
            if owner != mode:
                continue
            if kind == "argmax":
                assert (logits.argmax(1).numpy() == golden[key]).mean() > 0.9995
            else:
                difference = np.abs(sampled(found[tensor], int(kind[1:])) - golden[key]).max()
                worst = max(worst, float(difference))
                assert difference < 1e-5, (key, difference)
    assert worst > 0, "compared something"
