"""Equal to the official networks: logits computed with the official code, weights by a rule.

The golden arrays are float32 roundings of a float64 run; ours runs in float64, tolerance 1e-5.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from golden.rule import blocky_labels, image, weight
from hmsa.checkpoint.official import NETWORKS, our_name
from hmsa.config.recipe import Joint
from hmsa.model import HMSA, build
from hmsa.model.fusion import resize
from hmsa.training.losses import objective

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"A": (0, (64, 128)), "B": (1, (96, 160)), "C": (2, (83, 125))}  # C is odd on purpose
MODES = {
    "one": (1.0,),
    "two": (0.5, 1.0),
    "n3": (0.5, 1.0, 2.0),
    "n5": (0.25, 0.5, 1.0, 1.5, 2.0),
}
WHOLE = ["ocrnet.HRNet_Mscale", "mscale.DeepV3R50"]  # stored with every scale's maps
REST = [arch for arch in NETWORKS if arch not in WHOLE]


@functools.lru_cache(maxsize=3)
def by_rule(arch: str) -> HMSA:
    """An official network with the weights that the rule gives to its official names."""
    model = build(
        **NETWORKS[arch], classes=19, width=256, official=True, mean=(0, 0, 0), std=(1, 1, 1)
    )  # the golden pictures are white noise, not normalised
    keys = json.loads((GOLDEN / f"{arch.replace('.', '_')}_keys.json").read_text())["keys"]
    state = {}
    for entry in keys:
        made = weight(entry["key"], tuple(entry["shape"]))
        if "rule_first" in entry:
            assert float(made.ravel()[0]) == pytest.approx(entry["rule_first"], abs=1e-7)
        state[our_name(entry["key"], arch)] = torch.from_numpy(np.asarray(made))
    state |= {name: getattr(model, name) for name in ("mean", "std")}
    model.load_state_dict(state)  # strict: every weight has a name on both sides
    return model.double().eval()


def sampled(maps: torch.Tensor, step: int) -> np.ndarray:
    return maps[:, :, step // 2 :: step, step // 2 :: step].numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("arch", WHOLE)
def test_logits_and_attention_of_every_chain(arch, size):
    model = by_rule(arch)
    golden = np.load(GOLDEN / f"{arch.replace('.', '_')}_{size}.npz")
    seed, (h, w) = SIZES[size]
    picture = torch.from_numpy(image((1, 3, h, w), seed)).double()
    worst = 0.0
    for mode, scales in MODES.items():
        with torch.no_grad():
            output = model(picture, scales)
        logits = output.logits
        found = {"pred": logits}
        for scale, one in output.maps.items():
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
    if "fwd1|aux_out|s4" in golden.files:
        with torch.no_grad():
            aux = model.head(model.trunk(model.normalise(picture))).aux
        found = sampled(resize(aux, (h, w)), 4)
        np.testing.assert_allclose(found, golden["fwd1|aux_out|s4"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", REST)
def test_logits_of_every_other_network(arch):
    """Single scale, explicit attention, attention of pairs, HRNet without OCR."""
    model = by_rule(arch)
    golden = dict(np.load(GOLDEN / f"{arch.replace('.', '_')}_AC.npz"))
    assert len(golden) >= 4
    for key in golden:
        size, mode, tensor, kind = key.split("|")
        if kind == "argmax":
            continue
        seed, (h, w) = SIZES[size]
        with torch.no_grad():
            picture = torch.from_numpy(image((1, 3, h, w), seed)).double()
            logits = model(picture, MODES[mode]).logits
        found = sampled(logits, int(kind[1:]))
        np.testing.assert_allclose(found, golden[key], atol=1e-5, rtol=0, err_msg=key)
        agree = logits.argmax(1).numpy() == golden[f"{size}|{mode}|{tensor}|argmax"]
        assert agree.mean() > 0.9995


STEP = json.loads((GOLDEN / "train_loss.json").read_text())
RUNS = [name.split("|") for name in STEP["runs"]]


@pytest.mark.parametrize(("arch", "loss"), RUNS, ids=STEP["runs"])
def test_a_training_step(arch, loss):
    """The composed loss, the gradient norm of every weight, and what batch norms then hold."""
    run = STEP["runs"][f"{arch}|{loss}"]["fp64"]
    p = STEP["labels"]
    label = torch.from_numpy(
        blocky_labels(
            p["n"], p["h"], p["w"], p["num_classes"], p["block"], p["seed"], p["p_ignore"], 255
        )
    )
    picture = torch.from_numpy(image(tuple(STEP["input"]["shape"]), STEP["input"]["seed"])).double()
    model = copy.deepcopy(by_rule(arch)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    scales = (1.0,) if model.attention is None else (0.5, 1.0)
    kind = "cross_entropy" if loss == "ce" else loss
    stage = Joint(loss=kind, supervision=0.05 if len(scales) > 1 else 0.0)
    terms = objective(model(picture, scales), label, stage)
    assert terms["loss"].item() == pytest.approx(run["loss"], rel=1e-6)
    terms["loss"].backward()
    ours = dict(model.named_parameters())
    for key, expected in run["grad_norms"].items():
        gradient = ours[our_name(key, arch)].grad
        assert float(gradient.norm()) == pytest.approx(expected, rel=2e-6, abs=1e-6), key
    total = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    assert float(total) == pytest.approx(run["total_grad_norm"], rel=1e-6)
    held = dict(model.named_buffers())
    for key, expected in run["running_stats_l2"].items():
        if key.startswith("scale_attn."):
            continue  # the official code also runs attention at 1.0, and throws the map away
        assert float(held[our_name(key, arch)].norm()) == pytest.approx(expected, rel=1e-6), key
