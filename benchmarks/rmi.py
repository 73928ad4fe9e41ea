"""The RMI loss, forward and backward: ours beside a plain transcription of the formula.

    python benchmarks/rmi.py [--size 512 1024]

19 classes, one picture. `saved`: bytes of tensors that are alive before backward, those
given left out. Official: what the official code was measured to take on two CPU cores for 512x1024.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hmsa.runs.machine import keep_memory
from hmsa.runs.memory import Alive
from hmsa.training.groups import whole
from hmsa.training.losses import cross_entropy
from hmsa.training.rmi import region_mutual_information

CLASSES = 19
OFFICIAL = {"rmi": (0.206, 239), "cross_entropy": (0.017, 42)}  # seconds, MiB


def plain(logits: Tensor, label: Tensor) -> Tensor:
    """The formula as the paper of the loss writes it, one operation after the other."""
    k = logits.shape[1]
    valid = (label >= 0) & (label < k)
    mask = valid[:, None].to(logits.dtype)
    truth = F.one_hot(torch.where(valid, label, 0), k).permute(0, 3, 1, 2).to(logits.dtype) * mask
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    bce = (each * mask).sum() / (valid.sum() + 1)
    predicted = logits.sigmoid() * mask + 1e-6
    pooled = [F.avg_pool2d(maps, 4, 4, 2) for maps in (truth, predicted)]
    h, w = (side - 2 for side in pooled[0].shape[-2:])
    y, p = (
        torch.stack([maps[..., i : i + h, j : j + w] for i in range(3) for j in range(3)], 2)
        .flatten(3)
        .double()
        for maps in pooled
    )
    y, p = y - y.mean(3, keepdim=True), p - p.mean(3, keepdim=True)
    eye = 5e-4 * torch.eye(9, dtype=torch.float64, device=logits.device)
    inverse = torch.inverse(p @ p.mT + eye)
    left = y @ y.mT - y @ p.mT @ inverse @ (y @ p.mT).mT
    root = torch.linalg.cholesky(left + eye)
    logdet = 2 * (root.diagonal(dim1=-2, dim2=-1) + 1e-8).log().sum(-1)
    return 0.5 * bce + 0.5 * ((0.5 * logdet).mean(0).float() / 9).sum()


def ours(logits: Tensor, label: Tensor) -> Tensor:
    return region_mutual_information(whole(logits), label).loss


def entropy(logits: Tensor, label: Tensor) -> Tensor:
    return cross_entropy(whole(logits), label)


def measure(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, label: Tensor
) -> dict[str, float]:
    with Alive() as alive:
        logits.detach(), label.detach()  # counts them, so that they can be left out
        given = alive.now
        value = loss(logits, label)
        saved = alive.now - given
    times = []
    for _ in range(15):
        start = time.perf_counter()
        torch.autograd.grad(loss(logits, label), logits)
        if logits.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {
        "value": value.item(),
        "seconds": statistics.median(times),
        "saved_mib": saved / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024))
    size = parser.parse_args().size
    keep_memory()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    blocks = torch.randint(0, CLASSES, (1, size[0] // 16, size[1] // 16), device=device)
    label = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    logits = 3 * torch.randn(1, CLASSES, *label.shape[1:], device=device)
    logits.requires_grad_()
    found = {
        name: measure(loss, logits, label)
        for name, loss in (("plain", plain), ("ours", ours), ("cross_entropy", entropy))
    }
    what = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(
        f"1 x {CLASSES} x {size[0]} x {size[1]}, fp32, {what}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    print(f"{'':>16}{'seconds':>12}{'of plain':>10}{'MiB saved':>12}{'of plain':>10}{'value':>14}")
    for name, row in found.items():
        shares = [row[key] / found["plain"][key] for key in ("seconds", "saved_mib")]
        print(
            f"{name:>16}{row['seconds']:12.4f}{shares[0]:10.2f}{row['saved_mib']:12.1f}"
            f"{shares[1]:10.2f}{row['value']:14.6f}"
        )
    for name, (seconds, mib) in OFFICIAL.items():
        print(f"{'official ' + name[:6]:>16}{seconds:12.3f}{'':>10}{mib:12.0f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
