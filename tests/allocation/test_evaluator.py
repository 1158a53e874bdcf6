"""The evaluator against a plain pass over every mix, whatever mixes share or however it batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitquilt import qtypes
from bitquilt.allocation import evaluator
from bitquilt.allocation.evaluator import Evaluator
from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import weights_metrics
from bitquilt.models import open_checkpoint
from bitquilt.rounding.nearest import fit
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint


class Model:
    """A tiny model, its original's hidden states, and its matrices rounded to nearest."""

    def __init__(self, place, family, **shape):
        self.checkpoint = open_checkpoint(tiny_checkpoint(place, family, **shape))
        tokens = torch.randint(3, 500, (5, 24), generator=torch.Generator().manual_seed(0))
        with WorkDir(place / "work", {}) as work:
            self.teacher = OriginalModel(self.checkpoint, work).on(tokens)
        self.decoded = []

    def packed(self, module, qtype):
        self.decoded.append((module, qtype))
        weight = self.checkpoint.load(f"{module}.weight")
        return qtypes.get(qtype).pack(fit(qtypes.get(qtype), weight, torch.ones(weight.shape[1])))

    def mix(self, **changes):
        """Q8_0 but for the modules whose names end so."""
        mix = dict.fromkeys(self.checkpoint.matrices, "Q8_0")
        for end, qtype in changes.items():
            (module,) = [m for m in mix if m.replace(".", "_").endswith(end)]
            mix[module] = qtype
        return mix

    def plainly(self, mix):
        """KL of one mix, [N, L − 1]."""

        def load(name):
            module = name.removesuffix(".weight")
            if module not in mix:
                return self.checkpoint.load(name)
            return qtypes.get(mix[module]).dequantize(self.packed(module, mix[module]))

        return weights_metrics(self.teacher, self.checkpoint, load).kl


FAMILIES = {
    "llama4_text": {},
    "llama": {"tied": False},
    "qwen2": {},
    "gemma3_text": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    return Model(place, request.param, **FAMILIES[request.param])


@pytest.fixture(scope="module")
def mixes(model):
    return [
        model.mix(),
        model.mix(layers_1_mlp_down_proj="Q4_0"),
        model.mix(layers_0_self_attn_v_proj="Q4_0", layers_1_mlp_down_proj="Q4_0"),
        model.mix(embed_tokens="Q4_0"),
        model.mix(),
    ]


@pytest.mark.parametrize("at_once", [24, 72, 1 << 13])
def test_equals_a_plain_pass_over_each_mix(model, mixes, monkeypatch, at_once):
    monkeypatch.setattr("bitquilt.models.blockwise.LOGIT_TOKENS", 10)
    evaluate = Evaluator(model.checkpoint, model.packed, tokens_at_once=at_once)
    found = evaluate(model.teacher, mixes, range(5))
    for kl, mix in zip(found, mixes, strict=True):
        np.testing.assert_allclose(kl, model.plainly(mix), rtol=2e-3, atol=2e-5)


def test_windows_come_in_the_order_asked_for(model, mixes):
    evaluate = Evaluator(model.checkpoint, model.packed)
    every, some = (evaluate(model.teacher, mixes[:2], w) for w in (range(5), [4, 1]))
    np.testing.assert_allclose(some, every[:, [4, 1]], rtol=1e-4, atol=1e-6)


def test_a_matrix_is_decoded_once_for_all_mixes(model, mixes):
    model.decoded.clear()
    Evaluator(model.checkpoint, model.packed)(model.teacher, mixes, [0])
    assert len(model.decoded) == len(set(model.decoded)) == len(model.checkpoint.matrices) + 3


def test_decoded_matrices_make_room_for_others(model, mixes):
    evaluate = Evaluator(model.checkpoint, model.packed, decoded_bytes=1)
    first = evaluate(model.teacher, mixes, [0])
    np.testing.assert_array_equal(evaluate(model.teacher, mixes, [0]), first)


def test_mixes_share_the_blocks_they_agree_on(model, monkeypatch):
    """Of three mixes that differ in the last block, the first block is computed once."""
    mixes = [model.mix(layers_1_mlp_down_proj=qtype) for qtype in ("Q8_0", "Q4_0", "Q5_0")]
    windows = []
    through = evaluator._Stacked.through

    def counted(self, index, hidden):
        windows.append((index, len(hidden)))
        return through(self, index, hidden)

    monkeypatch.setattr(evaluator._Stacked, "through", counted)
    Evaluator(model.checkpoint, model.packed)(model.teacher, mixes, [0, 1])
    assert windows == [(0, 2), (1, 6)]


def test_precise_where_mixes_are_nearly_the_original():
    """A KL of 1e-6 is lost in float32 if it is a difference of large logits."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(300, 16, generator=generator)
    teacher = 5 * torch.randn(500, 16, generator=generator)
    student = teacher + 1e-3 * torch.randn(500, 16, generator=generator)
    found = evaluator._kl(teacher, head, [student], head)[0]
    p, q = ((x.double() @ head.double().T).log_softmax(-1) for x in (teacher, student))
    expected = (p.exp() * (p - q)).sum(-1)
    assert expected.mean() < 3e-6
    assert float(found.double().mean()) == pytest.approx(float(expected.mean()), rel=0.01)


def test_a_broken_mix_is_very_bad_and_finite():
    head = torch.eye(8) * 200
    teacher, student = torch.eye(8)[:3], torch.eye(8)[3:6]
    found = evaluator._kl(teacher, head, [student], head)
    assert found.isfinite().all()
    assert (found > 50).all()


def test_the_noise_of_fast_products_is_measured(model, mixes, monkeypatch):
    evaluate = Evaluator(model.checkpoint, model.packed)
    assert evaluate.noise(model.teacher, mixes[3], [0, 1]) == pytest.approx(
        0.0, abs=1e-4 if evaluate.precision == "highest" else 0.1
    )
    evaluate.precision, seen = "medium", []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    evaluate.noise(model.teacher, mixes[3], [0])
    assert seen == ["medium", "highest", "highest", "highest"]
    assert evaluate.precision == "medium"


def test_a_failing_measurement_of_the_noise_leaves_the_precision_as_it_was(
    model, mixes, monkeypatch
):
    evaluate = Evaluator(model.checkpoint, model.packed)
    evaluate.precision = "medium"
    on_windows = Evaluator._on_windows

    def failing(self, *asked):
        if self.precision == "highest":
            raise MemoryError
        return on_windows(self, *asked)

    monkeypatch.setattr(Evaluator, "_on_windows", failing)
    with pytest.raises(MemoryError):
        evaluate.noise(model.teacher, mixes[3], [0])
    assert evaluate.precision == "medium"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    model = Model(tmp_path, "llama", layers=1)
    sound = model.packed

    def packed(module, qtype):
        parts = sound(module, qtype)
        if qtype == "Q4_0":
            parts["data"].view(torch.float16)[0, 0] = value  # a scale
        return parts

    evaluator = Evaluator(model.checkpoint, packed)
    mixes = [model.mix(), model.mix(mlp_down_proj="Q4_0")]
    with pytest.raises(UserError, match=r"tiny-llama computes NaN .* in Q4_0 and Q8_0"):
        evaluator(model.teacher, mixes, range(2))
    assert np.isfinite(evaluator(model.teacher, mixes[:1], range(2))).all()
