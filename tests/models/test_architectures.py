"""A family is one value: with it Granite, which bitquilt does not know, goes all the way."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import bitquilt
from bitquilt import qtypes
from bitquilt.engines.llamacpp import open_llamacpp
from bitquilt.gguf.container import MetadataValue
from bitquilt.gguf.header import GgufHeader
from bitquilt.models import Checkpoint, architectures, open_checkpoint
from bitquilt.models.architectures.architecture import Architecture
from bitquilt.models.architectures.conditions import ROPE_SCALING, SWIGLU, no_bias
from bitquilt.models.architectures.tensors import ATTENTION, MLP, NORMS
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.qtypes.qtype import Packed
from bitquilt.rounding.nearest import fit
from bitquilt.targets.gguf import GGUF
from tests.factories import VOCABULARY, tiny_tokenizer
from tests.models.reference import TOKENS, canonical_logits, original_logits

PACKAGE = Path(bitquilt.__file__).parent

MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}
"""Field of config.json → llama.cpp's key."""


def _keys(config: dict[str, Any]) -> dict[str, MetadataValue]:
    return {key: float(config[field]) for field, key in MULTIPLIERS.items()}


def _fields(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    return {field: header.required(key) for field, key in MULTIPLIERS.items()}


GRANITE = Architecture(
    model_type="granite",
    gguf_architecture="granite",
    block={**ATTENTION, **MLP, **NORMS},
    conditions=(SWIGLU, *ROPE_SCALING, no_bias("granite")),
    interleaved=True,
    embedding_scale=lambda config: float(config["embedding_multiplier"]),
    logit_scale=lambda config: 1 / float(config["logits_scaling"]),
    alone={"embedding_multiplier": 1.0},
    plain_residual=False,
    gguf_keys=_keys,
    gguf_fields=_fields,
)
"""What would be models/architectures/granite.py; the last of it is docs/add-an-architecture.md."""


@pytest.fixture
def granite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random Granite, and its line in the registry."""
    monkeypatch.setitem(architectures.ARCHITECTURES, "granite", GRANITE)
    monkeypatch.setitem(architectures.GGUF_ARCHITECTURES, "granite", GRANITE)
    config = transformers.GraniteConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.22,
        attention_multiplier=0.1,
        bos_token_id=VOCABULARY - 6,
        eos_token_id=VOCABULARY - 1,
    )
    torch.manual_seed(0)
    model = transformers.GraniteForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "granite")
    tiny_tokenizer().save_pretrained(tmp_path / "granite")
    return tmp_path / "granite"


def _written(source: Path, path: Path) -> Path:
    checkpoint = open_checkpoint(source)
    mix = dict.fromkeys(checkpoint.matrices, "F32")

    def packed(module: str, qtype: str) -> Packed:
        on = qtypes.get(qtype)
        return on.pack(fit(on, checkpoint.load(f"{module}.weight"), None))

    GGUF.write(checkpoint, mix, packed, path, json.dumps(mix))
    return path


def _blockwise_logits(checkpoint: Checkpoint) -> torch.Tensor:
    model = BlockwiseModel(checkpoint)
    return model.last_hidden(TOKENS) @ model.head().T


def test_a_new_family_computes_the_same_block_by_block(granite: Path) -> None:
    expected = original_logits(granite)
    checkpoint = open_checkpoint(granite)
    assert (canonical_logits(checkpoint) - expected).abs().max() <= 1e-4
    assert (_blockwise_logits(checkpoint) - expected).abs().max() <= 1e-4


def test_a_new_family_runs_in_llama_cpp(granite: Path, tmp_path: Path) -> None:
    path = _written(granite, tmp_path / "granite.gguf")
    expected = original_logits(granite).numpy()
    with open_llamacpp(path, exact=True, threads=1) as engine:
        found = np.stack(list(engine.logits(TOKENS.numpy())))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_a_new_family_is_read_back(granite: Path, tmp_path: Path) -> None:
    before = open_checkpoint(granite)
    after = open_checkpoint(_written(granite, tmp_path / "granite.gguf"))
    assert after.shapes == before.shapes
    for name in before.shapes:
        assert torch.equal(after.load(name), before.load(name))
    compared = before.config.keys() & after.config.keys()
    compared -= {"architectures", "dtype", "head_dim", "pad_token_id"}
    assert {k: after.config[k] for k in compared} == {k: before.config[k] for k in compared}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_only_the_family_s_file_knows_the_family(path: Path) -> None:
    """No other module compares a model_type, or a GGUF architecture, with a name."""
    if path.parent.name == "architectures":
        return
    names = {*architectures.ARCHITECTURES, *architectures.REWRITES, *architectures.WRAPPERS}
    names |= architectures.GGUF_ARCHITECTURES.keys()
    compared = [
        (node.lineno, part.value)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in names
    ]
    assert compared == []
