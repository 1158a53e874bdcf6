"""Copies between devices keep names, order and numbers."""

import torch

from bitquilt.runtime.transfer import moved


def test_every_group_arrives_in_its_order():
    groups = [{"data": torch.arange(n), "scales": torch.ones(n)} for n in range(20)]
    there = moved(groups, torch.device("cpu"))
    assert [group.keys() for group in there] == [group.keys() for group in groups]
    for before, after in zip(groups, there, strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_type_of_another_device_is_taken_there():
    (group,) = moved([{"data": torch.zeros(3)}], torch.device("meta"))
    assert group["data"].device.type == "meta"
