"""What is learned: changes by their effect, numbers as a file holds them."""

from __future__ import annotations

import torch

from bitquilt import qtypes
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.tuning.learned import Norm, Scales, StoredRange


def test_a_change_is_counted_in_what_it_does_to_the_weights():
    """A step's change leaves the offset's direction alone; either moves a block by its size."""
    qtype = qtypes.get("Q4_K")
    weight = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    fields = qtype.unpack(qtype.pack(fit(qtype, weight, None)))
    start = {name: fields.pop(name) for name in ("d", "dmin")}
    scales = Scales(start, lambda own: qtype.decode(fields | own), StoredRange(torch.float32))

    def blocks():
        return qtype.decode(fields | scales.values()).detach().unflatten(1, (2, 256))

    before, moves = blocks(), {}
    for name, change in scales.changes.items():
        with torch.no_grad():
            change.fill_(0.01)
        moves[name] = blocks() - before
        with torch.no_grad():
            change.zero_()
    for move in moves.values():
        ratio = move.norm(dim=-1) / before.norm(dim=-1)
        assert torch.allclose(ratio, torch.tensor(0.01), rtol=1e-2)
    overlap = torch.cosine_similarity(moves["d"], moves["dmin"], dim=-1)
    assert overlap.abs().max() < 1e-2


def test_what_is_zero_stays_zero():
    qtype = qtypes.get("4bit-g64")
    fields = qtype.unpack(qtype.pack(fit(qtype, torch.zeros(2, 64), None)))
    codes = fields.pop("codes")
    scales = Scales(
        fields, lambda own: qtype.decode({"codes": codes} | own), StoredRange(torch.bfloat16)
    )
    with torch.no_grad():
        for change in scales.changes.values():
            change.fill_(1.0)
    assert qtype.decode({"codes": codes} | scales.values()).abs().max() < 1e-5


def test_gemmas_norms_change_relative_to_one_more():
    norm = Norm(torch.tensor([0.0, 1.0]), 1.0, StoredRange(torch.float32))
    with torch.no_grad():
        norm.changes["weight"].fill_(0.5)
    assert norm.values()["weight"].tolist() == [0.5, 2.0]


def test_numbers_are_whole_and_in_range_and_gradients_pass():
    exact = torch.tensor([-40.0, 1.4, 99.0], requires_grad=True)
    stored = StoredRange(torch.int8, -32, 31)(exact)
    assert stored.tolist() == [-32, 1, 31]
    stored.sum().backward()
    assert exact.grad.tolist() == [1, 1, 1]
