"""Kernels for GPUs do what the torch operations do: on a GPU, or compiled as C++, row by row."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from contextlib import nullcontext
from importlib.resources import files

import pytest
import torch

from bitquilt import qtypes
from bitquilt.qtypes.iquants import Codebook
from bitquilt.qtypes.qtype import registered
from bitquilt.rounding import coordinate_descent, gptq, kernels
from bitquilt.rounding.fits.iquants import QUICK
from bitquilt.rounding.fits.shortlists import PatternVectors, shortlists
from bitquilt.rounding.group_quantizer import group_quantizer_of
from bitquilt.rounding.hessian import diagonal_blocks
from bitquilt.rounding.kernels import KernelQuantizer
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.round_matrices import RoundingJob, round_matrices
from bitquilt.rounding.row_batches import Rows
from tests.rounding.inputs import cost, factor_of, second_moment, weights

CODEBOOKS = [name for name, qtype in registered().items() if isinstance(qtype, Codebook)]
SIGNED = [name for name in CODEBOOKS if qtypes.get(name).signed]
ROWS = 160
"""No whole number of a kernel's threads."""
COMPILER = shutil.which("c++")
AS_CPP = """
#include <cmath>
#define __global__
#define __device__
struct float4 { float x, y, z, w; };
struct Index { long x, y; };
static Index blockIdx, blockDim, threadIdx, gridDim;
extern "C" void at(long block, long input, long inputs, long size, long thread) {
    blockIdx = {block, input};
    blockDim = {size, 1};
    threadIdx = {thread, 0};
    gridDim = {1, inputs};
}
"""


class Emulated:
    """A kernel called for one thread after the other."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.at, self.function = library.at, library[name]

    def __call__(self, qtype, block, arguments):
        given = [
            ctypes.c_void_p(own.data_ptr()) if isinstance(own, torch.Tensor) else ctypes.c_int(own)
            for own in arguments
        ]
        for of_input in range(qtype[1]):
            for own in range(qtype[0]):
                for thread in range(block[0]):
                    self.at(own, of_input, qtype[1], block[0], thread)
                    self.function(*given)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    source = files("bitquilt.rounding").joinpath("kernels.cu").read_text()
    (folder / "kernels.cpp").write_text(AS_CPP + source)
    # as torch computes: no product and sum become one unless they say so
    flags = ["-shared", "-fPIC", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas"]
    subprocess.run([COMPILER, *flags, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    if request.param == "cpu":
        library = request.getfixturevalue("library")
        monkeypatch.setattr(kernels, "_kernel", lambda name, _: Emulated(library, name))
    elif not torch.cuda.is_available():
        pytest.skip("needs a GPU that runs CUDA")
    return request.param


def moved(parts, device):
    return [part.to(device) for part in parts]


class Block:
    """A block of columns of two inputs' rows, and what feedback and descent know of it."""

    def __init__(self, name: str, columns: int) -> None:
        """Take the second 128 columns, or fewer of them: parts of larger tensors, as there."""
        qtype = qtypes.get(name)
        self.factor = factor_of(second_moment(256), second_moment(256, seed=2))
        runs = []
        for i in range(2):
            weight = weights(ROWS, 256, seed=i)
            runs.append([Rows(qtype, weight, fit(qtype, weight, self.factor.importance[i]))])
        self.quantizer = group_quantizer_of(runs, self.factor.groups)
        self.own, self.groups = slice(128, 128 + columns), slice(16, 16 + columns // 8)
        self.weight = self.factor.ordered(torch.stack([run[0].weight.T for run in runs]))
        self.targets = self.weight[:, self.own] + 0.1 * weights(columns, ROWS, seed=5)
        shape = (2, 32, self.quantizer.width, ROWS)
        self.codes = torch.zeros(shape, dtype=torch.int16)
        self.levels, self.errors = torch.zeros(2, 256, ROWS), torch.zeros(2, 256, ROWS)
        self.cost = torch.ones(2, ROWS)

    def part(self, numbers):
        """The block's columns, or groups, of a tensor."""
        return numbers[:, self.groups if numbers.shape[1] == 32 else self.own]

    def fed_back(self, function, quantizer, device):
        """Call a function that feeds back; return codes, levels, errors and costs."""
        whole = [own.clone().to(device) for own in (self.codes, self.levels, self.errors)]
        cost = self.cost.clone().to(device)
        carry = self.factor.carry.to(device)[:, self.own, self.own]
        triangles = self.part(self.factor.triangles.to(device))
        weight, targets = self.part(self.weight.to(device)), self.targets.clone().to(device)
        found = (*map(self.part, whole), cost)
        function(*quantizer, weight, targets, (carry, triangles), found)
        return [own.cpu() for own in (*whole, cost)]

    def descended(self, function, quantizer, device, before):
        """Call a function that descends from codes, levels and errors; return them."""
        whole = [own.clone().to(device) for own in before]
        hessian = self.factor.hessian
        blocks = diagonal_blocks(hessian)
        inverses = torch.linalg.inv(blocks)
        pull = torch.bmm(hessian[:, self.own], before[2]).to(device)
        metric = (
            hessian.to(device)[:, self.own, self.own],
            self.part(self.factor.triangles.to(device)),
            self.part(inverses.to(device)),
        )
        function(*quantizer, pull, metric, tuple(map(self.part, whole)))
        return [own.cpu() for own in whole]

    def in_kernel(self, device):
        """What kernels know of the quantizer."""
        own = self.quantizer.in_kernel(self.groups)
        there = [one.to(device) if isinstance(one, torch.Tensor) else one for one in own.arguments]
        return (KernelQuantizer(own.name, there),)


TYPES = ["Q4_K", "Q3_K", "Q8_0", "4bit-g32", "IQ4_XS", "mxfp4", "mxfp8", *CODEBOOKS]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("columns", [8, 128])
def test_feedback(name, columns, device):
    block = Block(name, columns)
    torchs = block.fed_back(gptq._by_torch, (block.quantizer, block.groups), "cpu")
    found = block.fed_back(kernels.feed_back, block.in_kernel(device), device)
    assert_same(block, found, torchs)
    assert not found[1][:, :128].any()  # nothing else was touched


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("columns", [8, 128])
def test_descent(name, columns, device):
    block, wide = Block(name, columns), Block(name, 128)
    of_torch = block.quantizer, block.groups
    codes, levels, _, _ = wide.fed_back(gptq._by_torch, (wide.quantizer, wide.groups), "cpu")
    levels[:, :128] = block.weight[:, :128]
    before = codes, levels, block.weight - levels
    torchs = block.descended(coordinate_descent._by_torch, of_torch, "cpu", before)
    found = block.descended(kernels.descend_block, block.in_kernel(device), device, before)
    assert_same(block, found, torchs)
    changed = (found[1] != levels).any(1)
    assert changed.any()
    if columns == 8 and qtypes.get(name).bits < 5:  # levels lie so far apart that some rows stay
        assert not changed.all()


def assert_same(block, found, torchs):
    """One group is the same; over many, sums in another order can turn what is nearly equal."""
    same = (found[0] == torchs[0]).all(1).all(1)  # rows [L, N]
    assert same.float().mean() > (0.9 if len(block.targets[0]) > 8 else 0.99)
    for own, other in zip(found[1:], torchs[1:], strict=True):
        rows = own if own.ndim == 2 else own.movedim(1, 2)
        others = other if other.ndim == 2 else other.movedim(1, 2)
        torch.testing.assert_close(rows[same], others[same], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SIGNED)
def test_cheapest_patterns(name, device):
    qtype = qtypes.get(name)
    blocks, sub_blocks = 3, 256 // qtype.sub_block
    magnitudes, shares = (
        weights(5 * blocks * 32, 8).abs(),
        weights(5 * blocks * 32, 8, seed=1).abs(),
    )
    vectors = [own.view(5, -1, 8) for own in (magnitudes, shares)]
    listed = 0.05 * (1 + weights(5 * blocks, sub_blocks, seed=2).sigmoid())
    listed = listed.view(5, blocks, sub_blocks) * vectors[0].amax()
    tried = [listed, 1.1 * listed]
    torchs = shortlists(PatternVectors(qtype, *vectors), listed, QUICK)
    there = kernels.cheapest_patterns(
        qtype, QUICK, tuple(moved(vectors, device)), *moved([listed, torch.stack(tried)], device)
    )
    for place, steps in enumerate(tried):
        expected = torchs.cheapest(steps)
        codes, product, square = (own[place].cpu() for own in there)
        same = codes == expected.codes
        assert same.float().mean() > 0.99  # two may cost the same but for the order of sums
        torch.testing.assert_close(product[same], expected.product[same])
        torch.testing.assert_close(square[same], expected.square[same])


def test_dots(device):
    a, b = weights(3 * 20 * 5, 16).view(3, 20, 5, 16), weights(20, 7 * 16, seed=1).view(20, 7, 16)
    share = b[:, 2:]  # part of a longer row
    found = kernels.dots(a.to(device), b.to(device)[:, 2:]).cpu()
    torch.testing.assert_close(found, torch.linalg.vecdot(a, share))


@pytest.mark.parametrize("name", ["Q4_K", "4bit-g32", "IQ4_XS", "IQ3_S", "IQ2_XXS", "IQ1_S"])
def test_a_whole_rounding(name, library, monkeypatch):
    """What feedback, descent and refit hand to kernels lies in memory as kernels take it."""
    factor = factor_of(second_moment(256))
    job = RoundingJob(weights(40, 256), qtypes.get(name))
    (expected,) = round_matrices([job], factor, "full")
    asked = set()

    def kernel(name, _):
        asked.add(name)
        return Emulated(library, name)

    monkeypatch.setattr(kernels, "_kernel", kernel)
    monkeypatch.setattr(kernels, "available_for", lambda _: True)
    (found,) = round_matrices([job], factor, "full")
    assert "dots" in asked
    assert {kind.partition("_")[0] for kind in asked} > {"feed", "descend"}
    assert (name[:3] in ("IQ2", "IQ3")) == any("cheapest" in kind for kind in asked)
    same = found.fields["codes"] == expected.fields["codes"]
    assert same.float().mean() > 0.995  # sums in another order can turn what is nearly equal
    errors = [job.qtype.decode(own.fields) - job.weight for own in (found, expected)]
    mine, torchs = (cost(error, factor.natural[0]).sum().item() for error in errors)
    assert mine == pytest.approx(torchs, rel=1e-3)


def test_without_a_compiler_the_first_line_of_its_words_is_the_trouble(monkeypatch):
    def fail(name, device):
        raise OSError("Could not find any NVRTC library\nand more")

    monkeypatch.setattr(kernels, "_kernel", fail)
    monkeypatch.setattr(kernels, "_find_compiler", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert kernels.compile_error.__wrapped__() == "Could not find any NVRTC library"


def test_an_older_torch_is_trouble_too(monkeypatch):
    from torch.cuda import _utils

    monkeypatch.delattr(_utils, "_nvrtc_compile", raising=False)
    monkeypatch.setattr(kernels, "compiling", kernels.compiling.__wrapped__)
    monkeypatch.setattr(kernels, "_find_compiler", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    kernels._kernel.cache_clear()
    kernels._module.cache_clear()
    assert "_nvrtc_compile" in kernels.compile_error.__wrapped__()


def test_the_cpu_is_never_served():
    assert not kernels.available_for(torch.zeros(1))
