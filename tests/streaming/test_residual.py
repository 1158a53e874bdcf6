"""The share of the residual stream that a sublayer writes, against a stream that is simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitquilt.gguf.imatrix import ImportanceEntry, ImportanceMatrix
from bitquilt.streaming.costs import MatrixErrors
from bitquilt.streaming.importance import importance_of
from bitquilt.streaming.residual import ResidualStream
from bitquilt.streaming.source import GgufSource
from tests.streaming.models import WIDTH, write_model

TOKENS = 4000


def model(loudness: list[float]) -> dict[str, np.ndarray]:
    """A model whose block ``n`` writes ``loudness[n]`` times what the first one does."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) * shape[-1] ** -0.5

    found = {"token_embd.weight": normal(512, WIDTH) * WIDTH**0.5}
    for index, loud in enumerate(loudness):
        found[f"blk.{index}.ffn_up.weight"] = normal(512, WIDTH)
        found[f"blk.{index}.ffn_down.weight"] = loud * normal(WIDTH, 512)
    return found


def simulated(
    weights: dict[str, np.ndarray], enormous: bool
) -> tuple[ImportanceMatrix, list[float]]:
    """Run random inputs through the matrices that write; one token may be enormous.

    Returns:
        what they read, and of each block its share of the stream of an ordinary token.
    """
    rng = np.random.default_rng(1)
    stream = weights["token_embd.weight"][rng.integers(0, 512, TOKENS)].astype(np.float64)
    entries, shares = {}, []
    for index in range(len(weights) // 2):
        inputs = rng.standard_normal((TOKENS, 512)) * np.exp(rng.standard_normal(512))
        inputs /= np.sqrt(np.square(inputs).mean())
        if enormous and index == 0:
            inputs[0] = 0
            inputs[0, 3] = 1e5
        written = inputs @ weights[f"blk.{index}.ffn_down.weight"].T
        if enormous and index == 0:
            written[0] *= np.arange(WIDTH) == 7  # it goes to one column
        stream += written
        own, after = (np.square(x[1:]).mean() for x in (written, stream))  # of ordinary tokens
        shares.append(float(own / after))
        entries[f"blk.{index}.ffn_down.weight"] = ImportanceEntry(
            np.square(inputs).sum(0, keepdims=True).astype(np.float32),
            np.array([TOKENS], np.float32),
        )
    return ImportanceMatrix(entries=entries), shares


def followed(folder: Path, weights: dict[str, np.ndarray], matrix: ImportanceMatrix):
    source = GgufSource(write_model(folder / "m.gguf", weights))
    stream = ResidualStream(source, importance_of(source, matrix, "i.gguf"))
    assert set(stream.writers()) == set(matrix.entries)
    for name in stream.writers():
        stream.measure(name)
    stream.follow()

    def share(name: str) -> float:
        """What a relative error of 1 costs, over the sensitivity."""
        return stream.nats(source.matrices[name], MatrixErrors(2.0, {}), 2.0) / 1.2

    return share


def test_shares_are_those_of_a_simulated_stream(tmp_path: Path) -> None:
    weights = model([1, 0.3, 2])
    matrix, shares = simulated(weights, enormous=False)
    share = followed(tmp_path, weights, matrix)
    for index, expected in enumerate(shares):
        for part in ("up", "down"):
            assert share(f"blk.{index}.ffn_{part}.weight") == pytest.approx(expected, rel=0.1)


def test_an_enormous_token_does_not_drown_the_others(tmp_path: Path) -> None:
    weights = model([1, 0.3, 2])
    for row in range(WIDTH):  # the input that is enormous reaches one column
        weights["blk.0.ffn_down.weight"][row, 3] *= row == 7
    matrix, shares = simulated(weights, enormous=True)
    share = followed(tmp_path, weights, matrix)
    for index, expected in enumerate(shares):
        assert share(f"blk.{index}.ffn_up.weight") == pytest.approx(expected, rel=0.1)
    assert share("blk.0.ffn_down.weight") > 0.9  # it makes nearly all of the mean power
