"""Each engine draws from the distribution that the weights and the settings say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitquilt.engines import Engine, GenerationRequest
from tests.engines.conftest import ENGINES, open_in
from tests.engines.draws import DRAWS, SETTINGS, chi_square, expected
from tests.factories import SPECIAL_TOKENS, tiny_checkpoint

ROWS = 200


def of_one_mind(directory: Path) -> npt.NDArray[np.float32]:
    """Make a checkpoint predict the same whatever it reads, and never an end; its logits [V]."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embedding[:] = embedding[0].clone()
    hidden = embedding[0] / embedding[0].square().mean().sqrt() * weights["model.norm.weight"]
    head.normal_(std=2 / float(hidden.norm()), generator=torch.Generator().manual_seed(1))
    head[-len(SPECIAL_TOKENS) :] = -9 * hidden / float(hidden.norm() ** 2)
    save_file(weights, path, metadata={"format": "pt"})
    logits: npt.NDArray[np.float32] = (head @ hidden).numpy()
    return logits


@pytest.fixture(scope="module", params=ENGINES)
def known(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, npt.NDArray[np.float32]]]:
    """The same model in each of the engines, and its logits."""
    directory = tmp_path_factory.mktemp("model")
    source = tiny_checkpoint(
        directory, "llama", layers=1, tied=False, hidden=64, heads=2, kv_heads=1
    )
    logits = of_one_mind(source)
    with open_in(request.param, source, directory) as engine:
        yield engine, logits


def test_draws(known: tuple[Engine, npt.NDArray[np.float32]]) -> None:
    """With all filters at once: each for itself is tested on the sampler, which is the same."""
    engine, logits = known
    settings = SETTINGS["all"]
    seeded = (dataclasses.replace(settings, seed=seed) for seed in range(ROWS))
    requests = [
        GenerationRequest(tokens=[1, 2, 3], sampling=sampling, max_tokens=DRAWS // ROWS)
        for sampling in seeded
    ]
    with engine.stream(requests) as stream:
        drawn = [piece.token for _, piece in stream]
    assert len(drawn) == DRAWS
    assert chi_square(drawn, expected(logits, settings)) > 0.001
