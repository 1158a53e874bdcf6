"""Files are timed once, in their engine; a limit of speed holds, or is refused before any work."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bitquilt.allocation import speed_profile
from bitquilt.allocation.timing import TimingSchedule, token_seconds
from bitquilt.models import open_checkpoint
from bitquilt.runtime.progress import Progress
from bitquilt.targets import GGUF, MLX
from tests.factories import tiny_checkpoint
from tests.quick import invoke

CANDIDATES = ("Q4_0", "Q8_0")
BRIEF = TimingSchedule(rounds=1, repeats=1, most_error=1e9, answer_seconds=0.0, answer_tokens=4)


@pytest.fixture(autouse=True)
def brief(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tied"), layers=2)


def limit(checkpoint, names=CANDIDATES, target=GGUF, **schedule):
    candidates = dict.fromkeys(checkpoint.matrices, names)
    brief = replace(BRIEF, **schedule)
    return speed_profile.speed_limit(1.0, checkpoint, target, candidates, Progress(), brief)


def test_qtypes_are_timed_once(tied, monkeypatch):
    checkpoint, timed = open_checkpoint(tied), []

    def counted(path, schedule):
        timed.append(path)
        return token_seconds(path, schedule)

    monkeypatch.setattr(speed_profile, "token_seconds", counted)
    first = limit(checkpoint)
    assert len(timed) == 2
    assert all(not path.exists() for path in timed)
    assert 0 < 1 / first.predicted(dict.fromkeys(checkpoint.matrices, "Q4_0")) < 1
    assert limit(checkpoint).model == first.model
    assert len(timed) == 2
    limit(checkpoint, [*CANDIDATES, "Q5_0"])  # one that is new
    assert len(timed) == 3


def test_timings_of_a_busy_machine_are_not_kept(tied, monkeypatch, capfd):
    checkpoint, timed = open_checkpoint(tied), []

    def disturbed(path, schedule):
        timed.append(path)
        return by_size(path) * (1 if len(timed) % 2 else 3)

    monkeypatch.setattr(speed_profile, "token_seconds", disturbed)
    for _ in range(2):
        limit(checkpoint, rounds=4, most_error=0.1)
    assert len(timed) == 16
    assert "too busy for" in capfd.readouterr().err


def test_mlx_too(tied):
    pytest.importorskip("mlx")
    checkpoint = open_checkpoint(tied)
    found = limit(checkpoint, ["4bit-g64"], MLX)
    assert 0 < 1 / found.predicted(dict.fromkeys(checkpoint.matrices, "4bit-g64")) < 1


def by_size(path, schedule=None):
    """An engine whose time is the file's size."""
    return path.stat().st_size * 1e-8


def test_a_large_model_is_timed_with_fewer_blocks(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "llama", layers=6, tied=False))
    in_blocks = sum(r * c for m, (r, c) in checkpoint.matrices.items() if ".layers." in m)
    ends = sum(r * c for m, (r, c) in checkpoint.matrices.items() if ".layers." not in m)
    monkeypatch.setattr(speed_profile, "token_seconds", by_size)
    layers = []
    original = speed_profile._timed

    def seen(sample, *how):
        layers.append(sample.layers)
        return original(sample, *how)

    monkeypatch.setattr(speed_profile, "_timed", seen)
    found = limit(checkpoint, rounds=4, most_weights=ends + in_blocks * 4 // 6)
    assert layers == [4, 2] * 4
    assert set(found.shapes) == set(checkpoint.matrices) - {"model.embed_tokens"}
    for qtype in CANDIDATES:  # all of the model, more blocks than were timed
        mix = dict.fromkeys(checkpoint.matrices, qtype)
        nbytes = GGUF.plan(checkpoint, mix).total_bytes
        assert 1 / found.predicted(mix) == pytest.approx(nbytes * 1e-8, rel=0.03)


class TestCommand:
    """Where an engine takes time by bytes, a limit of speed is one of bytes."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(speed_profile, "token_seconds", by_size)
        monkeypatch.setattr("bitquilt.pipeline.token_seconds", by_size)

    def test_the_file_is_as_fast_as_asked(self, tied, tmp_path, capfd):
        asked = ["quantize", tied, "--bits", "6", "-o", tmp_path, "--rounding", "nearest", "--json"]
        assert invoke(*asked) == 0
        (free,) = json.loads(capfd.readouterr().out)["outputs"]
        rate = 1.02 / (free["nbytes"] * 1e-8)
        assert invoke(*asked, "--min-tokens-per-second", str(rate)) == 0
        captured = capfd.readouterr()
        (fast,) = json.loads(captured.out)["outputs"]
        assert 0.9 * free["nbytes"] < fast["nbytes"] < free["nbytes"] / 1.02 * 1.01
        assert "tokens a second predicted" in captured.err
        assert "tokens a second measured" in captured.err

    def test_what_no_mix_reaches_is_refused_before_rounding(self, tied, tmp_path, capfd):
        asked = ["--bits", "6", "-o", tmp_path, "--min-tokens-per-second", "1e6"]
        assert invoke("search", tied, *asked) == 2
        said = capfd.readouterr().err
        assert "no file of that size reaches 1e+06 tokens a second on this machine" in said
        assert "Rounding" not in said

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            (["5", "--bits", "6", "--search", "evopress"], "EvoPress cannot keep to a speed"),
            (["5", "--recipe", "Q4_K_M"], "a recipe leaves nothing to choose by speed"),
            (["0", "--bits", "6"], "0 is not greater than 0"),
        ],
    )
    def test_what_makes_no_sense(self, tied, tmp_path, capfd, asked, words):
        options = ["-o", tmp_path, "--min-tokens-per-second", *asked]
        assert invoke("search", tied, *options) == 2
        assert words in " ".join(capfd.readouterr().err.split())
