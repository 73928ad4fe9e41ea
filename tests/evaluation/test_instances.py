from __future__ import annotations

import math

import torch

from hmsa.evaluation.confusion import InstanceConfusion

ROAD, CAR, BUS = 0, 1, 2


def test_a_small_instance_weighs_as_much_as_a_large_one():
    label = torch.tensor([ROAD] * 4 + [CAR] * 10 + [BUS] * 2)
    instance = torch.tensor([0] * 4 + [7] * 8 + [9] * 2 + [5] * 2)
    predicted = label.clone()
    predicted[12:14] = ROAD  # the small car is missed
    predicted[0] = CAR  # and some road taken for one
    score = InstanceConfusion([math.nan, 5.0, 2.0])
    score.add(label, predicted, instance)
    assert score.shares.tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert score.iou()[ROAD].isnan()
    # 5 of 5 weighted pixels found of the large car, 0 of 5 of the small one, 1 in excess
    assert score.iou()[[CAR, BUS]].tolist() == [5 / (5 + 5 + 1), 1.0]
    assert score.confusion.iou()[CAR] == 8 / 11


def test_one_id_in_two_classes_and_ignored_pixels():
    label = torch.tensor([CAR, CAR, BUS, 255, 255])
    score = InstanceConfusion([math.nan, 1.0, 1.0])
    score.add(label, torch.tensor([CAR, BUS, BUS, CAR, CAR]), torch.full((5,), 3))
    assert score.shares.tolist() == [[0, 0, 0], [0, 0.5, 0.5], [0, 0, 1]]


def test_pixels_of_a_group_weigh_nothing():
    score = InstanceConfusion([math.nan, 1.0, 1.0])
    none = torch.zeros(2, dtype=torch.uint16)  # as their files hold it
    score.add(torch.tensor([CAR, CAR]), torch.tensor([CAR, BUS]), none)
    assert not score.shares.any()
    assert score.iou()[CAR].isnan()
    assert score.iou()[BUS] == 0, "predicted in excess"
