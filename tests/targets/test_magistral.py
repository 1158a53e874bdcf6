"""Magistral Small as published, in small, all the way: its files run in stock engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from bitquilt.models import open_checkpoint
from bitquilt.models.inspection import inspect
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.targets import GGUF, MLX
from bitquilt.targets.same_tokens import refuse_other_tokens
from tests.bases.parity import difference, llamacpp_logits, mlx_logits, transformers_logits
from tests.magistral import RESERVED, SHARDS, magistral_checkpoint
from tests.targets.conftest import Model


@pytest.fixture(scope="module")
def magistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return magistral_checkpoint(tmp_path_factory.mktemp("magistral"))


def test_it_opens_with_what_is_odd_about_it(magistral: Path) -> None:
    assert len(list(magistral.glob("*.safetensors"))) == SHARDS
    subjects = {finding.subject for finding in inspect(str(magistral)).findings}
    assert {"tekken.json", "SYSTEM_PROMPT.txt", "model_type"} <= subjects


def test_its_text_has_transformers_logits_in_llamacpp_and_in_mlx_lm(
    magistral: Path, tmp_path: Path
) -> None:
    original = AutoModelForImageTextToText.from_pretrained(magistral, dtype=torch.float32).eval()
    wanted = transformers_logits(original)
    checkpoint = open_checkpoint(magistral)
    model = Model(magistral, checkpoint)
    file, directory = tmp_path / "m.gguf", tmp_path / "m-mlx"
    GGUF.write(checkpoint, model.on("F32"), model.packed, file, "{}")
    MLX.write(checkpoint, model.on("F32"), model.packed, directory, "{}")
    assert difference(wanted, llamacpp_logits(file)) < 1e-3
    assert difference(wanted, mlx_logits(directory)) < 1e-3


def test_its_thinking_is_control_tokens_that_engines_read_alike(magistral: Path) -> None:
    checkpoint = open_checkpoint(magistral)
    assert refuse_other_tokens(checkpoint, [GGUF, MLX]) == []
    tokens = load_tokenizer(checkpoint.tokenizer_dir)
    assert tokens.encode("[THINK]a[/THINK]", add_special_tokens=False) == [
        22,
        RESERVED + ord("a"),
        23,
    ]
