"""Tuning: scales and norms move, codes do not, and what is kept is never worse."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

from bitquilt import qtypes
from bitquilt.metrics.kl import logits
from bitquilt.metrics.kl_loss import kl_loss
from bitquilt.metrics.teacher import Teacher, token_metrics, weights_metrics
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.tuning import distill
from bitquilt.rounding.tuning.learned import StoredRange
from bitquilt.rounding.tuning.student import Student
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import GGUF, MLX
from tests.factories import tiny_checkpoint
from tests.progress import Recorded

WINDOWS, LENGTH = 232, 8
APART = distill.DEFAULT_SCHEDULE.validation
MLX_TYPES = ("3bit-g64", "2bit-g32", "mxfp4", "BF16")
GGUF_TYPES = ("Q2_K", "Q3_K", "Q4_1", "IQ3_S", "Q8_0", "BF16")
INTEGERS = {("Q2_K", "scales"), ("Q2_K", "mins"), ("Q3_K", "scales")}
"""Fields that are stored in integers and may move, as far as their few steps allow."""


class Case:
    """A tiny model, its matrices rounded to the nearest, and what it says of random tokens."""

    def __init__(self, directory, family="llama4_text", names=("Q2_K",), **shape):
        self.directory = directory
        self.checkpoint = open_checkpoint(tiny_checkpoint(directory, family, **shape))
        matrices = list(self.checkpoint.matrices)
        self.allocation = {module: names[i % len(names)] for i, module in enumerate(matrices)}
        self.packed = cache(self._round)
        random = torch.Generator().manual_seed(1)
        tokens = torch.randint(3, 200, (WINDOWS, LENGTH), generator=random)
        model = BlockwiseModel(self.checkpoint)
        self.teacher = Teacher(tokens, model.last_hidden(tokens), model.head())

    def _round(self, module, qtype):
        on = qtypes.get(qtype)
        return on.pack(fit(on, self.checkpoint.load(f"{module}.weight"), None))

    def tune(self, directory=None, schedule=distill.DEFAULT_SCHEDULE):
        """In a new work directory if none is given."""
        self.said, self.steps = [], []
        work = WorkDir(directory or Path(tempfile.mkdtemp(dir=self.directory)), {})
        return distill.tune(
            self.checkpoint,
            self.allocation,
            self.packed,
            self.teacher,
            work,
            Recorded(self.steps, self.said),
            schedule,
        )

    def kl(self, tuned):
        """On the windows set apart, from what a file would hold."""
        apart = self.teacher.first(APART, LENGTH)

        def weights(name):
            module = name.removesuffix(".weight")
            if module not in self.allocation:
                return tuned.checkpoint.load(name)
            return qtypes.get(self.allocation[module]).dequantize(
                tuned.packed(module, self.allocation[module])
            )

        student = BlockwiseModel(self.checkpoint, weights)
        found = logits(student.last_hidden(apart.tokens), student.head())
        return token_metrics(apart, found).kl.mean()


@pytest.fixture(scope="module")
def on_gguf(tmp_path_factory):
    case = Case(tmp_path_factory.mktemp("gguf"), names=GGUF_TYPES, layers=1)
    return case, case.tune()


@pytest.fixture(scope="module")
def on_mlx(tmp_path_factory):
    case = Case(tmp_path_factory.mktemp("mlx"), names=MLX_TYPES, layers=1, tied=False)
    return case, case.tune()


@pytest.fixture(params=["gguf", "mlx"])
def tuned(request):
    return request.getfixturevalue(f"on_{request.param}")


def test_the_windows_set_apart_come_closer(tuned):
    case, result = tuned
    untuned = distill.Tuned(
        before=0, after=0, source=case.checkpoint, rounded=case.packed, learned={}
    )
    assert result.after < 0.97 * result.before
    assert len(case.steps) == distill.DEFAULT_SCHEDULE.steps(WINDOWS)
    assert f"{result.after:.4g} after it" in case.said[0]
    assert case.kl(result) < 0.97 * case.kl(untuned)


def test_codes_stay_and_files_are_ordinary(tuned):
    case, result = tuned
    for module, name in case.allocation.items():
        qtype = qtypes.get(name)
        before, parts = qtype.unpack(case.packed(module, name)), result.packed(module, name)
        after = qtype.unpack(parts)
        for field, numbers in before.items():
            moves = numbers.is_floating_point() and field != "codes"
            moved = not torch.equal(after[field], numbers)
            assert moved == moves or (name, field) in INTEGERS, (module, field)
            assert after[field].dtype == numbers.dtype
        again = qtype.pack(after)
        assert all(torch.equal(again[part], parts[part]) for part in parts)


def test_integer_scales_of_k_quants_move(on_gguf):
    case, result = on_gguf
    moved = set()
    for module, name in case.allocation.items():
        qtype = qtypes.get(name)
        before = qtype.unpack(case.packed(module, name))
        after = qtype.unpack(result.packed(module, name))
        moved |= {(name, f) for f, own in before.items() if not torch.equal(after[f], own)}
    assert moved & INTEGERS  # few steps hardly move four bits


def test_of_what_is_no_matrix_only_norms_change(tmp_path):
    case = Case(tmp_path, "qwen2", ("2bit-g64",), layers=1)
    result = case.tune()
    for name, shape in case.checkpoint.shapes.items():
        if len(shape) == 1:
            found = result.checkpoint.load(name)
            moved = not torch.equal(found, case.checkpoint.load(name))
            assert moved == name.endswith("norm.weight")
            assert not moved or torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_the_written_file_is_the_tuned_model(tmp_path, family):
    """Through llama.cpp's order of rows and Gemma's norms on top of one."""
    case = Case(tmp_path, family, ("Q4_0",), layers=1)
    result = case.tune()
    path = tmp_path / "tuned.gguf"
    GGUF.write(result.checkpoint, case.allocation, result.packed, path, "{}")
    GGUF.check(path, result.checkpoint, case.allocation, result.packed)
    weights = GGUF.read_weights(path)
    assert torch.allclose(
        weights["model.norm.weight"],
        result.learned["model.norm.weight/weight"],
        atol=1e-6,
    )
    found = weights_metrics(case.teacher.first(APART, LENGTH), case.checkpoint, weights.__getitem__)
    assert found.kl.mean() == pytest.approx(case.kl(result), rel=1e-3)


def test_the_mlx_directory_is_the_tuned_model(tmp_path, on_mlx):
    case, result = on_mlx
    MLX.write(result.checkpoint, case.allocation, result.packed, tmp_path / "tuned", "{}")
    weights = MLX.read_weights(tmp_path / "tuned")
    found = weights_metrics(case.teacher.first(APART, LENGTH), case.checkpoint, weights.__getitem__)
    assert found.kl.mean() == pytest.approx(case.kl(result), rel=1e-5)


def test_the_same_every_time(tmp_path):
    case = Case(tmp_path, names=("Q2_K", "Q3_K"), layers=1)
    first, second = case.tune(), case.tune()
    assert (first.before, first.after) == (second.before, second.after)
    assert first.learned.keys() == second.learned.keys()
    assert all(
        torch.equal(second.learned[name], numbers) for name, numbers in first.learned.items()
    )


def test_what_was_learned_is_taken_again(tmp_path):
    case = Case(tmp_path, names=("Q2_K",), layers=1)
    first = case.tune(tmp_path / "work")
    said = case.said
    second = case.tune(tmp_path / "work")
    assert case.steps == []
    assert case.said == said
    assert (first.before, first.after) == (second.before, second.after)
    assert all(
        torch.equal(second.learned[name], numbers) for name, numbers in first.learned.items()
    )
    keys = {
        distill._key(case.allocation, packed, case.teacher.tokens, distill.DEFAULT_SCHEDULE)
        for packed in (case.packed, first.packed)
    }
    assert len(keys) == 2  # for other matrices it would not serve


def test_what_does_not_help_is_not_kept(tmp_path):
    case = Case(tmp_path, names=("Q4_K",), layers=1)
    result = case.tune(schedule=distill.TuningSchedule(rate=10.0))
    assert result.after == result.before
    assert "so the scales stay" in case.said[0]
    assert len(case.steps) < distill.DEFAULT_SCHEDULE.steps(WINDOWS)  # it stopped early
    assert result.packed("model.embed_tokens", "Q4_K") is case.packed("model.embed_tokens", "Q4_K")
    norm = "model.norm.weight"
    assert torch.equal(result.checkpoint.load(norm), case.checkpoint.load(norm))


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_divergence(tmp_path, tied):
    """Recomputed blocks and logits in parts, against differences."""
    case = Case(tmp_path, names=("4bit-g64",), layers=1, tied=tied)
    # numbers as they are learned, not as they are stored: rounding has no differences
    student = Student(case.checkpoint, case.allocation, case.packed, compute_device())
    for own in student._learned.values():
        for one in own:
            one.stored = StoredRange(torch.float32)
    model = BlockwiseModel(case.checkpoint, student.weight)
    few = case.teacher.first(4, LENGTH)
    kl_loss(model, few).backward()
    changes = student.changes()
    direction = [change.grad.clone() for change in changes]
    slope = sum(float(g.square().sum()) for g in direction)
    reach = 1e-3 / slope**0.5

    @torch.no_grad()
    def moved(by):
        for change, g in zip(changes, direction, strict=True):
            change.copy_(by * g)
        return float(kl_loss(model, few))

    assert (moved(reach) - moved(-reach)) / (2 * reach) == pytest.approx(slope, rel=0.02)
