"""Scores of the borders between classes, whatever the insides of the classes are.

Ignored pixels are not counted, and their truth is taken to be what was predicted: a border that
runs on into an ignored region is not broken there. The rim of an ignored region is no border.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.spatial import KDTree
from torch import Tensor

from ..data.labels import IGNORE
from .confusion import Ids

Map = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Boundary:
    """`counts` `[K,7]` int64: boundary pixels of the truth, those of them met, boundary pixels of
    the prediction, those of them met; pixels in both bands, in the truth's, in the prediction's.

    A boundary pixel has one of its four neighbours in another class. It is met by one of its class
    in the other map nearer than `tolerance` times the image's diagonal (Csurka et al., BMVC 2013;
    they average over images, here pixels of the split are pooled). The band of a class is its mask
    less the mask's erosion by `width` times the diagonal, at least 1 pixel, also along the frame
    (Cheng et al., "Boundary IoU", CVPR 2021, arXiv 2103.16562, and their public code).
    """

    def __init__(self, classes: int, tolerance: float = 0.0075, width: float = 0.02) -> None:
        self.tolerance, self.width = tolerance, width
        self.counts = torch.zeros(classes, 7, dtype=torch.int64)

    def add(self, label: Ids, predicted: Ids) -> None:
        """label, predicted: one image's train ids `[H,W]`, 255 in label = ignore."""
        guess, known = np.asarray(predicted), np.asarray(label) != IGNORE
        truth, everywhere = np.where(known, label, guess), np.ones_like(known)
        diagonal = math.hypot(*truth.shape)
        reach = max(1, round(self.width * diagonal))
        found: list[Map] = []  # the class of each counted pixel, for each column
        for mine, other in ((truth, guess), (guess, truth)):
            line, goals = _outline(mine, known), _outline(other, everywhere)
            met = _met(mine, line, other, goals, self.tolerance * diagonal)
            found += [mine[line], mine[line][met]]
        counted = known & (_band(truth, known, reach) | _band(guess, known, reach))
        bands = [counted & _band(each, everywhere, reach) for each in (truth, guess)]
        both = bands[0] & bands[1] & (truth == guess)
        found += [truth[both], truth[bands[0]], guess[bands[1]]]
        counts = [np.bincount(ids, minlength=len(self.counts)) for ids in found]
        self.counts += torch.tensor(np.stack(counts, 1))

    def f1(self) -> Tensor:
        """`[K]` float64 in 0..1: harmonic mean of precision and recall."""
        true, met, guessed, right = self.counts[:, :4].double().unbind(1)
        precision, recall = (right / guessed).nan_to_num(), (met / true).nan_to_num()
        score = (2 * precision * recall / (precision + recall)).nan_to_num()
        return score.where(true + guessed > 0, math.nan)

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1."""
        both, true, guessed = self.counts[:, 4:].double().unbind(1)
        return both / (true + guessed - both)


def _outline(ids: Map, known: Mask) -> Mask:
    """`[H,W]`: pixels with one of four neighbours of another class, both of them known."""
    found = np.zeros_like(known)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        step = (ids[here] != ids[there]) & known[here] & known[there]
        found[here] |= step
        found[there] |= step
    return found


def _met(mine: Map, line: Mask, other: Map, goals: Mask, limit: float) -> Mask:
    """For each pixel of a line: whether one of the goals has its class and is nearer than limit."""
    apart = np.int64(4 * sum(mine.shape))  # so far that other classes are never near
    lines, targets = (
        np.stack([*np.nonzero(where), ids[where] * apart], 1)
        for ids, where in ((mine, line), (other, goals))
    )
    distance, _ = KDTree(targets).query(lines, distance_upper_bound=limit + 1)
    return np.asarray(np.round(distance**2) < limit**2)  # the squares are whole numbers


def _band(ids: Map, known: Mask, reach: int) -> Mask:
    """`[H,W]`: pixels with a known one of another class, or the outside of the image, at most
    `reach` rows and columns away: least and greatest id around differ."""
    around = {"size": 2 * reach + 1, "mode": "constant", "cval": 255}
    low = minimum_filter(np.where(known, ids, 255), **around)
    high = maximum_filter(np.where(known, ids, 0), **around)
    return np.asarray(low != high)
