"""Scores of the borders between classes, whatever the insides of the classes are.

Ignored pixels, in both scores: they are not counted, and their truth is taken to be what was
predicted. So a border that runs on into an ignored region is not broken there, and one that the
truth hides in it is met by one that was predicted in it or beside it. The rim of an ignored region
is no border itself: a pixel counts only for a border between pixels that have a label.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.spatial import KDTree
from torch import Tensor

from .confusion import Ids, checked

Map = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Boundary:
    """`counts` `[K,7]` int64: boundary pixels of the truth, those of them met, boundary pixels of
    the prediction, those of them met; pixels in both bands, in the truth's, in the prediction's.

    A boundary pixel of a class has one of its four neighbours in another class (the frame of the
    image is none). It is met by a boundary pixel of the same class in the other map at a Euclidean
    distance below `tolerance` times the image's diagonal. Csurka et al., "What is a good evaluation
    measure for semantic segmentation?", BMVC 2013, also for the default; but they average over
    images, here pixels are pooled over the split, as for IoU.

    The band of a class is its mask less the mask's erosion by `width` times the image's diagonal
    (rounded, at least 1 pixel; a square neighbourhood); beyond the frame is outside of every mask,
    so that the band runs along the frame too. Cheng et al., "Boundary IoU", CVPR 2021 (arXiv
    2103.16562) and their public code, also for the default of 2 %.
    """

    def __init__(self, classes: int, tolerance: float = 0.0075, width: float = 0.02) -> None:
        self.tolerance, self.width = tolerance, width
        self.counts = torch.zeros(classes, 7, dtype=torch.int64)

    def add(self, label: Ids, predicted: Ids) -> None:
        """label, predicted: one image's train ids `[H,W]`, 255 in label = ignore."""
        if label.ndim != 2:
            raise ValueError(f"one image [H,W] at a time, this has shape {[*label.shape]}")
        k = len(self.counts)
        ids, guess, known = (each.numpy() for each in checked(k, label, predicted))
        truth, everywhere = np.where(known, ids, guess), np.ones_like(known)
        diagonal = math.hypot(*truth.shape)
        limit, reach = (self.tolerance * diagonal) ** 2, max(1, round(self.width * diagonal))
        found: list[Map] = []  # the class of each counted pixel, for each column
        for mine, other in ((truth, guess), (guess, truth)):
            line = _outline(mine, known)
            met = _near(_points(mine, line), _points(other, _outline(other, everywhere)), limit)
            found += [mine[line], mine[line][met]]
        counted = known & (_band(truth, known, reach) | _band(guess, known, reach))
        bands = [counted & _band(each, everywhere, reach) for each in (truth, guess)]
        both = bands[0] & bands[1] & (truth == guess)
        found += [truth[both], truth[bands[0]], guess[bands[1]]]
        self.counts += torch.tensor(np.stack([np.bincount(ids, minlength=k) for ids in found], 1))

    def f1(self) -> Tensor:
        """`[K]` float64: harmonic mean of precision and recall; nan where neither map has a
        boundary, 0 where only one has."""
        true, met, guessed, right = self.counts[:, :4].double().unbind(1)
        precision, recall = (right / guessed).nan_to_num(), (met / true).nan_to_num()
        score = (2 * precision * recall / (precision + recall)).nan_to_num()
        score[(true + guessed) == 0] = math.nan
        return score

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1, nan where neither map has a band of the class."""
        both, true, guessed = self.counts[:, 4:].double().unbind(1)
        return both / (true + guessed - both)

    def mean_f1(self) -> float:
        return float(self.f1().nanmean())

    def mean_iou(self) -> float:
        return float(self.iou().nanmean())


def _outline(ids: Map, known: Mask) -> Mask:
    """`[H,W]`: pixels with one of four neighbours of another class, both of them known."""
    found = np.zeros_like(known)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        step = (ids[here] != ids[there]) & known[here] & known[there]
        found[here] |= step
        found[there] |= step
    return found


def _points(ids: Map, where: Mask) -> NDArray[np.int64]:
    """Row, column and class of pixels `[N,3]`; pixels of two classes are never near each other."""
    apart = 4 * sum(ids.shape)
    return np.stack([*np.nonzero(where), ids[where].astype(np.int64) * apart], 1)


def _near(points: NDArray[np.int64], targets: NDArray[np.int64], limit: float) -> Mask:
    """`[N]`: points with a target at a squared distance below limit."""
    distance, _ = KDTree(targets).query(points, distance_upper_bound=math.sqrt(limit) + 1)
    near: Mask = np.round(distance**2) < limit  # the squares are whole numbers
    return near


def _band(ids: Map, known: Mask, reach: int) -> Mask:
    """`[H,W]`: pixels with a known one of another class, or the outside of the image, at most
    `reach` rows and columns away. All classes at once: least and greatest id around differ."""
    around = {"size": 2 * reach + 1, "mode": "constant", "cval": 255}
    low = minimum_filter(np.where(known, ids, 255), **around)
    high = maximum_filter(np.where(known, ids, 0), **around)
    differ: Mask = low != high
    return differ
