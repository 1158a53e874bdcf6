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
from bitquilt.rounding import kernels
from bitquilt.rounding.coordinate_descent import better_codes
from bitquilt.rounding.fits.iquants import QUICK
from bitquilt.rounding.fits.shortlists import PatternVectors, shortlists
from bitquilt.rounding.group_quantizer import PatternQuantizer, group_quantizer_of
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.round_matrices import RoundingJob, round_matrices
from bitquilt.rounding.row_batches import Rows
from tests.rounding.inputs import cost, factor_of, second_moment, weights

CODEBOOKS = [
    name for name, qtype in registered().items() if isinstance(qtype, Codebook) and qtype.signed
]
ROWS = 160
"""No whole number of a kernel's threads."""
COMPILER = shutil.which("c++")
AS_CPP = """
#include <cmath>
#define __global__
#define __device__
struct float4 { float x, y, z, w; };
struct Index { long x, y; };
static Index blockIdx, blockDim, threadIdx;
extern "C" void at(long block, long input, long size, long thread) {
    blockIdx = {block, input};
    blockDim = {size, 1};
    threadIdx = {thread, 0};
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
                    self.at(own, of_input, block[0], thread)
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


def rows_on(name: str):
    """A rounder for two inputs' rows and what it is asked: scales, targets and metrics."""
    qtype, columns = qtypes.get(name), 256
    factor = factor_of(second_moment(columns), second_moment(columns, seed=2))
    runs = []
    for i in range(2):
        weight = weights(ROWS, columns, seed=i)
        runs.append([Rows(qtype, weight, fit(qtype, weight, factor.importance[i]))])
    quantizer = group_quantizer_of(runs, factor.groups)
    targets = factor.ordered(torch.stack([run[0].weight.T for run in runs]))
    scales = [scale[1] for scale in quantizer.scales(slice(0, 4))]
    # as feedback and descent give them: parts of larger tensors
    return quantizer, scales, targets[:, 8:16], factor.triangles[:, 1]


def moved(parts, device):
    return [part.to(device) for part in parts]


@pytest.mark.parametrize("name", ["Q4_K", "Q3_K", "Q8_0", "4bit-g32", "IQ4_XS", "mxfp4", "mxfp8"])
def test_levels(name, device):
    quantizer, scales, target, triangles = rows_on(name)
    codes, levels = quantizer.propose(scales, target, triangles)
    ends = moved([quantizer._low, quantizer._high], device)
    there = moved(scales, device), target.to(device), triangles.to(device)
    found, rounded = kernels.round_levels(*there, ends, quantizer._table)
    assert torch.equal(found.cpu(), codes)
    torch.testing.assert_close(rounded.cpu(), levels, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_patterns(name, device):
    quantizer, scales, target, triangles = rows_on(name)
    assert isinstance(quantizer, PatternQuantizer)
    codes, levels = quantizer.propose(scales, target, triangles)
    there = target.to(device), scales[0].to(device), triangles.to(device)
    found, rounded = kernels.round_patterns(quantizer._qtype, *there)
    assert torch.equal(found.cpu(), codes)
    torch.testing.assert_close(rounded.cpu(), levels, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CODEBOOKS)
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


@pytest.mark.parametrize("name", ["Q4_K", "IQ3_S"])
def test_only_what_is_better_is_kept(name, device):
    quantizer, scales, target, triangles = rows_on(name)
    hessian = triangles @ triangles.mT
    new = quantizer.propose(scales, target, triangles)
    shifted = target + 0.3 * weights(8, ROWS, seed=3)
    old = quantizer.propose(scales, shifted, triangles)
    larger = torch.zeros(2, 128, ROWS)
    larger[:, 8:16] = old[1]  # levels of many columns, of which these are eight
    codes, step = better_codes(hessian, target.contiguous(), (old[0], larger[:, 8:16]), new)
    there = hessian.to(device), target.contiguous().to(device)
    old = old[0].to(device), larger.to(device)[:, 8:16]
    found, moved_by = kernels.keep_better(*there, old, tuple(moved(new, device)))
    assert torch.equal(found.cpu(), codes)
    torch.testing.assert_close(moved_by.cpu(), step, rtol=1e-6, atol=1e-6)
    assert 0 < (step == 0).all(1).sum() < step[:, 0].numel()


def test_dots(device):
    a, b = weights(3 * 20 * 5, 16).view(3, 20, 5, 16), weights(20, 7 * 16, seed=1).view(20, 7, 16)
    share = b[:, 2:]  # part of a longer row
    found = kernels.dots(a.to(device), b.to(device)[:, 2:]).cpu()
    torch.testing.assert_close(found, torch.linalg.vecdot(a, share))


@pytest.mark.parametrize("name", ["Q4_K", "4bit-g32", "IQ4_XS", "IQ3_S", "IQ2_XXS"])
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
    assert {"keep_better", "dots"} < asked
    assert isinstance(job.qtype, Codebook) == any("cheapest" in name for name in asked)
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
