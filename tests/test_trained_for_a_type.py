"""A checkpoint that was trained for Q4_0 and published in BF16: it is seen, said and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from bitquilt import inspect, quantize
from bitquilt.config import SearchConfig
from bitquilt.models import open_checkpoint
from bitquilt.qtypes.qtype import Packed
from bitquilt.targets import GGUF
from tests.factories import VOCABULARY, tiny_checkpoint
from tests.ggml import ggml_dequantizes, ggml_quantizes
from tests.quick import QUICK


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama all of whose matrices lie on Q4_0, with codes that rarely reach the lowest."""
    where = tiny_checkpoint(
        tmp_path_factory.mktemp("trained"), "llama", layers=1, hidden=128, dtype=torch.bfloat16
    )
    tensors = load_file(where / "model.safetensors")
    for name, weight in tensors.items():
        if weight.ndim == 2:
            blocks = weight.float().unflatten(-1, (-1, 32))
            scale = (blocks.square().mean(-1, keepdim=True).sqrt() / 2.5).half().float()
            bent = (blocks / scale).round().clamp(-8, 7) * scale
            tensors[name] = bent.flatten(-2).bfloat16()
    save_file(tensors, where / "model.safetensors", {"format": "pt"})
    return where


def logits(where: Path, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """What transformers predicts of some tokens with these weights in the model's place."""
    model = LlamaForCausalLM.from_pretrained(where, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    tokens = torch.randint(0, VOCABULARY, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(tokens).logits.log_softmax(-1)


def test_a_file_keeps_what_the_checkpoint_was_trained_for(trained: Path, tmp_path: Path) -> None:
    made = quantize(
        trained, bits=4.6, output=tmp_path, search=SearchConfig(method="knapsack"), **QUICK
    ).outputs[0]
    assert set(made.allocation.values()) == {"Q4_0"}
    kept = {name: w for name, w in GGUF.read_weights(made.path).items() if w.ndim == 2}
    original = load_file(trained / "model.safetensors")
    nearest = {}
    for name in kept:
        blocks = ggml_quantizes("Q4_0", original[name].float().numpy())
        nearest[name] = torch.from_numpy(ggml_dequantizes("Q4_0", blocks))
    truth, ours, theirs = (logits(trained, weights) for weights in ({}, kept, nearest))
    kl, of_nearest = ((truth.exp() * (truth - each)).sum(-1).mean() for each in (ours, theirs))
    assert 0 <= kl < of_nearest / 20


def test_a_ternary_checkpoint_takes_less_than_two_bits(tmp_path: Path) -> None:
    """One scale for a matrix, as in BitNet b1.58; the embedding is an ordinary one."""
    where = tiny_checkpoint(tmp_path, "llama", layers=1, dtype=torch.bfloat16)
    tensors = load_file(where / "model.safetensors")
    for name, weight in tensors.items():
        if weight.ndim == 2 and "embed" not in name:
            scale = weight.float().abs().mean()
            tensors[name] = ((weight / scale).round().clamp(-1, 1) * scale).bfloat16()
    save_file(tensors, where / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(where)
    blocks = [module for module in checkpoint.matrices if "layers" in module]
    assert checkpoint.levels == dict.fromkeys(blocks, "TQ1_0")
    made = quantize(
        where, bits=3.0, output=tmp_path, search=SearchConfig(method="knapsack"), **QUICK
    ).outputs[0]
    assert {made.allocation[module] for module in blocks} == {"TQ1_0"}
    kept = GGUF.read_weights(made.path)
    for module in blocks:
        torch.testing.assert_close(
            kept[f"{module}.weight"], tensors[f"{module}.weight"].float(), rtol=5e-3, atol=0
        )


def test_a_gguf_source_in_bf16_lies_there_too(trained: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(trained)

    def packed(module: str, qtype: str) -> Packed:
        assert qtype == "BF16"
        return {"weight": checkpoint.load(f"{module}.weight").bfloat16()}

    path = tmp_path / "trained.gguf"
    GGUF.write(checkpoint, dict.fromkeys(checkpoint.matrices, "BF16"), packed, path, "{}")
    assert open_checkpoint(path).levels == dict.fromkeys(checkpoint.matrices, "Q4_0")


def test_inspect_says_it(trained: Path, tmp_path: Path) -> None:
    count = len(open_checkpoint(trained).matrices)
    (found,) = (one for one in inspect(str(trained)).findings if one.subject == "levels")
    assert f"{count} of {count} matrices have only values that Q4_0 can hold" in found.message
    ordinary = inspect(str(tiny_checkpoint(tmp_path, "llama", layers=1, dtype=torch.bfloat16)))
    assert not [one for one in ordinary.findings if one.subject == "levels"]


def test_other_matrices_are_not_meant(trained: Path) -> None:
    checkpoint = open_checkpoint(trained)
    assert checkpoint.sampler is not None

    def sampler(name: str) -> torch.Tensor:
        rows = checkpoint.sampler(name)  # type: ignore[misc]
        return rows + 1e-4 * torch.rand(rows.shape) if "mlp" in name else rows

    mixed = replace(checkpoint, sampler=sampler)
    assert {module for module in mixed.matrices if module not in mixed.levels} == {
        module for module in mixed.matrices if "mlp" in module
    }
