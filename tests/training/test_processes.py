"""Several processes learn what one would learn from their joined batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hmsa.runs.folder import read_curves
from hmsa.training.trainer import read_state
from samples import TINY_RECIPE

PARTS = """
import sys
import torch
from torch import distributed
from torch.nn.functional import conv2d
from hmsa.config.recipe import Stage
from hmsa.model import Output
from hmsa.model.hmsa import Attended, Grid
from hmsa.training.losses import objective

file, rank = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
K, pixels, classes = 3, torch.randn(4, 3, 32, 32).double(), torch.randint(0, 3, (4, 32, 32))
classes[0] = classes[1, 4:] = classes[2, 20:] = 255  # each process has its own share of labels
start = torch.randn(7, 3, 1, 1).double()

def loss_and_slope(images, factor, batch=None, **settings):
    kernel = start.clone().requires_grad_()
    hi = conv2d(pixels[images], kernel)
    lo = hi[:, :, ::2, ::2]
    grid = lambda maps: Grid(maps, maps.shape[-2:], maps.shape[-2:])
    trust = grid(lo[:, 6:].sigmoid())
    scales = {0.5: Attended(grid(lo[:, :K]), trust, grid(lo[:, K:6])),
              1.0: Attended(grid(hi[:, :K]), None, grid(hi[:, K:6]))}
    output = Output(scales, (32, 32))
    stage = Stage(steps=1, scales=(0.5, 1), auxiliary=0.4, supervision=0.1, penalty=0.3, **settings)
    weight = torch.tensor([0.2, 1.0, 3.0]).double()
    loss = objective(output, classes[images], stage, weight, batch)["loss"]
    (loss * factor).backward()
    return loss.detach(), kernel.grad

LOSSES = ("cross_entropy", "ohem", "rmi")
joined = [loss_and_slope(slice(0, 4), 1, loss=loss) for loss in LOSSES]
for name, whole in zip(LOSSES, joined):  # a batch in two parts; each has hard pixels of its own
    parts = [loss_and_slope(i, 1, classes, loss=name) for i in (slice(0, 1), slice(1, 4))]
    for one, two, both in zip(*parts, whole):
        assert torch.allclose(one + two, both, rtol=1e-12, atol=1e-14) == (name != "ohem"), name
distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
for name, (loss, slope) in zip(LOSSES, joined):
    own_loss, own_slope = loss_and_slope(slice(2 * rank, 2 * rank + 2), 2, loss=name)
    for own in (own_loss, own_slope):
        distributed.all_reduce(own)
    torch.testing.assert_close(own_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(own_slope / 2, slope, rtol=1e-9, atol=1e-14)
distributed.destroy_process_group()
"""

# The command line in float64, with norms that keep their statistics; only the first process writes
EXACT = """
import os
import sys
import torch
from torch import nn
from hmsa import __main__ as cli
from hmsa.runs import machine
torch.set_default_dtype(torch.float64)
machine._FABRIC["fp32"] = "64-true"
nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
def refuse(event, arguments):
    if event == "open" and run in str(arguments[0]) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        raise RuntimeError(f"the second process writes {arguments[0]}")
run = sys.argv[sys.argv.index("--out") + 1]
if os.environ.get("LOCAL_RANK", "0") == "1":
    sys.addaudithook(refuse)
sys.exit(cli.run())
"""


# The command line, in which the second process gets a signal before its third step
SIGNALLED = """
import os, sys
from hmsa import __main__ as cli
from hmsa.training import trainer
rate = trainer.set_learning_rate
def signalled(optimizer, stage, step):
    if (step, os.environ.get("LOCAL_RANK")) == (2, "1"):
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return rate(optimizer, stage, step)
trainer.set_learning_rate = signalled
sys.exit(cli.run())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    ("number", "code", "step", "says"),
    [
        (signal.SIGTERM, 130, 3, "stopped and saved: joint, step 3; go on with"),
        (signal.SIGKILL, 1, 2, "RuntimeError: another process of this training has ended"),
    ],
)
def test_one_process_is_told_to_stop_or_dies(recipe, tmp_path, number, code, step, says):
    """Both end, with one line of the first; what was saved is whole."""
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    words = ["train", recipe, "--out", tmp_path / "run", "--set", "accelerator=cpu"]
    command = [sys.executable, tmp_path / "signalled.py", *words, "--set", "devices=2"]
    environment = os.environ | {"SIGNAL": str(int(number))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert read_state(tmp_path / "run" / "resume.pt")["state"]["step"] == step


def test_every_part_of_the_loss_is_a_share_of_the_joined_one(tmp_path):
    commands = [[sys.executable, "-c", PARTS, str(tmp_path / "meet"), str(r)] for r in (0, 1)]
    both = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    told = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "".join(told)


@pytest.mark.parametrize(
    ("loss", "scales", "split"),  # split: processes, batch of each, parts of that
    [
        ("cross_entropy", [0.5, 1.0], (2, 2, 2)),
        ("cross_entropy", [0.5, 1.0], (1, 4, 3)),
        ("rmi", [1.0], (2, 2, 1)),
    ],
)
def test_weights_are_those_of_one_process(scenes, tmp_path, loss, scales, split):
    """Ten steps of AdamW, in float64: equal but for rounding. The same scores on val."""
    (tmp_path / "exact.py").write_text(EXACT)

    def trained(devices, batch, accumulate):
        stage = {"steps": 10, "batch": batch, "loss": loss, "validate_every": 10, "penalty": 0.1}
        stage |= {"scales": scales, "accumulate": accumulate}
        content = TINY_RECIPE | {
            "data": {"dataset": str(scenes), "workers": 0}, "joint": TINY_RECIPE["joint"] | stage,
            "attention": {"steps": 0}, "devices": devices, "accelerator": "cpu",
            "class_balance": 0.5,
        }  # fmt: skip
        recipe, run = (tmp_path / f"{accumulate}-{devices}{end}" for end in (".yaml", ""))
        recipe.write_text(yaml.safe_dump(content))
        command = [sys.executable, tmp_path / "exact.py", "train", recipe, "--out", run]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        miou = [row["val_miou"] for row in read_curves(run)]
        return load_file(run / "last.safetensors"), miou

    (one, scores), (two, again) = trained(1, 4, 1), trained(*split)
    assert scores == again != []
    assert one["mean"].dtype == torch.float64
    assert max(float((two[name] - value).abs().max()) for name, value in one.items()) < 1e-9
