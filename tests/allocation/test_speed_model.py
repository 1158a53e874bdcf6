"""Seconds of files whose paces are known, with noise: what the model learns and how sure it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitquilt.allocation.space import Candidate
from bitquilt.allocation.speed_model import SpeedModel, TimedFile, TypedShape

SHAPES = {(256, 256): 28, (768, 256): 28, (256, 768): 14, (8192, 256): 1}
QTYPES = {"fast": 1.0, "medium": 1.5, "slow": 2.5}
BASE = 2e-4


class Machine:
    """Paces that depend on the type, and a little on the shape."""

    def __init__(self, seed, noise):
        self.rng, self.noise = np.random.default_rng(seed), noise
        self.own = {
            (shape, qtype): 1e-9 * pace * self.rng.uniform(0.9, 1.1)
            for shape in SHAPES
            for qtype, pace in QTYPES.items()
        }

    def seconds(self, mix, blocks=1.0):
        counts = {s: n if n == 1 else n * blocks for s, n in SHAPES.items()}
        return BASE + sum(counts[s] * s[0] * s[1] * self.own[s, qtype] for s, qtype in mix.items())

    def random_mix(self):
        return {shape: str(self.rng.choice(list(QTYPES))) for shape in SHAPES}

    def timed(self, mix, blocks=1.0):
        matrices = {
            TypedShape(*s, g): round(SHAPES[s] * (blocks if SHAPES[s] > 1 else 1))
            for s, g in mix.items()
        }
        disturbed = self.seconds(mix, blocks) * (1 + self.noise * self.rng.standard_normal())
        return TimedFile(matrices, disturbed)


def predicted(model, mix):
    return model.base + sum(model.paces[TypedShape(*s, g)] * SHAPES[s] for s, g in mix.items())


@pytest.mark.parametrize("blocks", [(1.0,), (0.5, 1.0)])
def test_other_mixes_are_predicted(blocks):
    machine = Machine(0, noise=0.02)
    runs = [machine.timed(machine.random_mix(), blocks[n % len(blocks)]) for n in range(12)]
    model = SpeedModel.fit(runs)
    off = [
        predicted(model, mix) / machine.seconds(mix) - 1
        for mix in (machine.random_mix() for _ in range(50))
    ]
    assert np.sqrt(np.mean(np.square(off))) < 0.05
    assert 0.005 < model.error < 0.1


def test_noise_is_told():
    calm, busy = (
        SpeedModel.fit([m.timed(m.random_mix()) for _ in range(16)]).error
        for m in (Machine(1, 0.01), Machine(1, 0.3))
    )
    assert calm < 0.08
    assert busy > 0.15


def test_no_time_is_negative_however_busy_the_machine():
    """Timings that say nothing: a Gaussian model of them has negative paces."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        machine = Machine(seed, 0.0)
        runs = [
            replace(machine.timed(machine.random_mix()), seconds=1e-3 * random.lognormal(0, 2.0))
            for _ in range(12)
        ]
        model = SpeedModel.fit(runs)
        assert model.base >= 0
        assert min(model.paces.values()) > 0


def test_choices_get_their_seconds():
    machine = Machine(2, 0.0)
    model = SpeedModel.fit([machine.timed(machine.random_mix()) for _ in range(12)])
    sets = {name: [Candidate(g, 1, 0.5) for g in QTYPES] for name in ("read", "looked up")}
    timed = model.timed(sets, {"read": (768, 256)})
    assert [c.seconds for c in timed["looked up"]] == [0.0, 0.0, 0.0]
    assert [c.seconds for c in timed["read"]] == [
        model.paces[TypedShape(768, 256, g)] for g in QTYPES
    ]
    assert timed["read"][0].predicted_kl == 0.5
