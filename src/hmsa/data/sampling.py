"""Training order: which picture, cut how, at which position of an endless stream.

Every sample is a pure function of (data, seed, position), so a resumed run sees what the
uninterrupted one would have seen, whatever the number of loader processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..errors import InputError
from .datasets import Dataset
from .transforms import collate


@dataclass(frozen=True)
class TrainingStream(TorchDataset[tuple[Tensor, Tensor]]):
    """Position -> augmented sample. Each pass over the pictures is a new shuffle."""

    dataset: Dataset
    transform: v2.Transform
    seed: int

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(position, len(self.dataset))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))
        image, label = self.dataset.read(int(order[place]))
        with torch.random.fork_rng(devices=[]):
            draw = np.random.SeedSequence((self.seed, position)).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(draw))
            return self.transform(  # type: ignore[no-any-return]
                tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
                tv_tensors.Mask(torch.from_numpy(label)),
            )


def batches(
    stream: TrainingStream,
    steps: range,
    batch: int,
    workers: int,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One (image, label) batch for each step of `steps`; ranks share out the positions."""
    per_step = batch * processes
    order = [
        list(range(step * per_step + rank * batch, step * per_step + (rank + 1) * batch))
        for step in steps
    ]
    loader = DataLoader(
        stream,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from loader
    except InputError as error:
        # A loader process wraps the message in its own traceback; the last line is ours.
        message = str(error).strip().splitlines()[-1]
        raise InputError(message.removeprefix("hmsa.errors.InputError: ")) from None
