"""What was recorded on a GPU computes what the function does, on any numbers of those shapes."""

import pytest
import torch

from bitquilt.runtime import cuda_graph
from bitquilt.runtime.cuda_graph import Replay

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that runs CUDA")


def work(numbers, total):
    """Overwrites what it is given, as rounding does."""
    numbers.mul_(2)
    total += numbers.sum(0)
    return numbers.round(), total


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_every_call_is_the_functions_own(device):
    replayed = Replay(work)
    total, expected_total = (torch.zeros(3, device=device) for _ in range(2))
    for rows in (5, 5, 5, 5, 2, 2, 2):  # called, recorded, played twice; the same on other shapes
        numbers = torch.randn(rows, 3, device=device)
        expected, expected_total = work(numbers.clone(), expected_total)
        rounded, total = replayed(numbers, total)
        assert torch.equal(rounded, expected)
        assert torch.equal(total, expected_total)


@GPU
def test_nobody_else_is_given_the_stream_of_recordings():
    others = {torch.cuda.Stream().cuda_stream for _ in range(64)}
    assert cuda_graph._stream().cuda_stream not in others
