"""A file is checked before it takes its place; whatever fails, an earlier good one stays."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import ClosingTeacher, weights_metrics
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import GGUF, MLX
from bitquilt.targets.engine_check import run_in_engine
from bitquilt.targets.export import export
from tests.factories import VOCABULARY

TYPES = {GGUF: "Q8_0", MLX: "8bit-g32"}


def contents(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class Case:
    """A tiny model, a text that it has read, and where its files go."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder / "out"
        tokens = torch.from_numpy(np.random.default_rng(0).integers(0, VOCABULARY, (8, 32)))
        with WorkDir(folder / "work", {}) as work:
            self.closing = ClosingTeacher(OriginalModel(model.checkpoint, work).on(tokens), 5)

    def path(self, target):
        return self.folder / f"tiny{target.suffix}"

    def export(self, target, check=lambda *_: (None, "not run"), recipe="{}", packed=None):
        allocation = self.model.on(TYPES[target])
        return export(
            target,
            self.model.checkpoint,
            allocation,
            packed or self.model.packed,
            self.path(target),
            recipe_json=recipe,
            total_bytes=target.plan(self.model.checkpoint, allocation).total_bytes,
            closing=self.closing,
            engine_check=check,
            progress=Progress(),
        )


@pytest.fixture
def case(model, tmp_path):
    return Case(model, tmp_path)


@pytest.fixture(params=[GGUF, MLX], ids=str)
def target(request):
    return request.param


def test_what_is_written_is_what_write_writes(case, target, tmp_path):
    case.export(target)
    again = tmp_path / "again" / case.path(target).name
    allocation = case.model.on(TYPES[target])
    target.write(case.model.checkpoint, allocation, case.model.packed, again, "{}")
    ours = contents(case.folder)
    assert contents(again.parent).items() <= ours.items()
    beside = set(ours) - set(contents(again.parent))
    assert beside == ({"tiny.recipe.json"} if target is GGUF else set())


@pytest.mark.parametrize("raised", [UserError("bad"), KeyboardInterrupt(), KeyError("ours")])
def test_a_check_that_fails_leaves_the_earlier_file(case, target, raised):
    case.export(target)
    before = contents(case.folder)

    def fail(*_):
        raise raised

    with pytest.raises(type(raised)):
        case.export(target, fail, recipe='{"other": 1}')
    assert contents(case.folder) == before
    assert {p.name for p in case.folder.iterdir()} <= {case.path(target).name, "tiny.recipe.json"}


def test_a_check_that_fails_leaves_nothing_where_nothing_was(case, target):
    def fail(path, *_):
        raise UserError(f"{path}: the engine cannot load it")

    with pytest.raises(UserError) as why:
        case.export(target, fail)
    assert str(why.value) == f"{case.path(target)}: the engine cannot load it"
    assert list(case.folder.iterdir()) == []


def test_bytes_that_differ_from_what_was_meant_are_found_before_the_rename(case, target):
    case.export(target)
    before, asked = contents(case.folder), []

    def unlike(module, qtype):
        """Another matrix when it is asked for again."""
        asked.append(module)
        parts = case.model.packed(module, qtype)
        if asked.count(module) > 1:
            return {n: (part.view(torch.uint8) ^ 1).view(part.dtype) for n, part in parts.items()}
        return parts

    with pytest.raises(UserError, match=r"tiny.*: the bytes of .* differ"):
        case.export(target, packed=unlike)
    assert contents(case.folder) == before


def test_the_engine_opens_the_file_by_its_temporary_name(case, target):
    if target is MLX:
        pytest.importorskip("mlx_lm")
    exported = case.export(target, run_in_engine)
    assert exported.engine is not None, exported.note
    in_engine, in_torch = exported.engine.in_engine, exported.engine.in_torch
    assert in_engine.kl.mean < 0.1
    kinds = exported.figures.kinds
    assert list(kinds) == ["unlike", "like"]
    assert [one.tokens for one in kinds.values()] == [5 * 31, 3 * 31]
    assert in_engine.tokens == in_torch.tokens <= 8 * 31


class Spoiled:
    """An engine whose logits are spoiled."""

    def __init__(self, engine, spoil):
        self._engine, self._spoil = engine, spoil

    def tokenize(self, text, add_special=False):
        return self._engine.tokenize(text, add_special=add_special)

    def logits(self, tokens):
        for window in self._engine.logits(tokens):
            yield self._spoil(np.array(window))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._engine.close()


def one(value, place):
    def spoil(logits):
        logits[place] = value
        return logits

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        lambda logits: logits * np.nan,
        one(np.nan, (3, 7)),
        one(np.nan, (-1, 0)),
        one(np.inf, (3, 7)),
        one(-np.inf, (0, 1)),
    ],
    ids=["all", "one", "last", "infinity", "minus infinity"],
)
def test_an_engine_that_computes_nan_is_refused(case, monkeypatch, spoil):
    opened = type(GGUF).open_engine
    monkeypatch.setattr(
        type(GGUF), "open_engine", lambda self, path: Spoiled(opened(self, path), spoil)
    )
    sentence = r"tiny\.gguf: llama\.cpp computes NaN or infinity at token \d+ of the text.*quantize"
    with pytest.raises(UserError, match=sentence):
        case.export(GGUF, run_in_engine)
    assert list(case.folder.iterdir()) == []


def test_weights_that_compute_nan_are_refused(case):
    checkpoint = case.model.checkpoint

    def weights(name):
        weight = checkpoint.load(name).clone()
        if name == "model.norm.weight":
            weight[0] = float("nan")
        return weight

    with pytest.raises(UserError, match=r"model\.gguf: torch computes NaN or infinity at token 0"):
        weights_metrics(case.closing.teacher, checkpoint, weights, "model.gguf")
    assert case.closing.original_figures().headline.perplexity.mean > 0
