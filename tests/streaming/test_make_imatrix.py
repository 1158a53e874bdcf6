"""The matrix that is made has llama.cpp's names, and the moments of hooks on the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, get_tensor_name_map
from transformers import AutoModelForCausalLM

import bitquilt
from bitquilt import UserError
from bitquilt.cli.main import main
from bitquilt.gguf.imatrix import read_imatrix
from tests.factories import FAMILIES, tiny_checkpoint
from tests.quick import QUICK

TEXT = {name: QUICK[name] for name in ("text_budget", "calibration")}


def reference(directory: Path, tokens: torch.Tensor) -> dict[str, np.ndarray]:
    """Sums of squares before every linear layer of transformers' whole model, by llama.cpp's
    name.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 9)
    sums = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue

        def add(_, inputs, name=name):
            sums[f"{names.get_name(name)}.weight"] = inputs[0].flatten(0, -2).square().sum(0)

        module.register_forward_pre_hook(add)
    with torch.no_grad():
        model(tokens)
    return {name: total.numpy() for name, total in sums.items()}


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"llama4_text"}))
def test_moments_are_those_of_hooks_on_the_whole_model(family: str, tmp_path, monkeypatch) -> None:
    from bitquilt.streaming import make_imatrix as verb

    drawn = []
    windows = verb.token_windows
    monkeypatch.setattr(
        verb, "token_windows", lambda *given: drawn.append(windows(*given)) or drawn[-1]
    )
    directory = tiny_checkpoint(tmp_path, family, tied=False)
    path = tmp_path / "imatrix.gguf"
    bitquilt.make_imatrix(directory, output=path, progress=bitquilt.Silent(), **TEXT)
    found, (tokens,) = read_imatrix(path), drawn
    expected = reference(directory, tokens)
    assert found.entries.keys() == expected.keys()
    for name, entry in found.entries.items():
        np.testing.assert_allclose(entry.sums[0], expected[name], rtol=2e-3)
        assert entry.counts.tolist() == [tokens.numel()]
    assert (found.chunks, found.chunk_size) == tuple(tokens.shape)


def test_a_tied_head_goes_by_the_embeddings_name(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", tied=True)
    path = tmp_path / "imatrix.dat"
    bitquilt.make_imatrix(directory, output=path, progress=bitquilt.Silent(), **TEXT)
    assert {"token_embd.weight", "blk.1.ffn_down.weight"} < read_imatrix(path).entries.keys()
    assert path.read_bytes()[:4] != b"GGUF"


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys) -> None:
    directory = tiny_checkpoint(tmp_path, "llama")
    path = tmp_path / "made.gguf"
    words = ["imatrix", str(directory), "-o", str(path), "--calibration", str(QUICK["calibration"])]
    main([*words, "--json"], text_budget=QUICK["text_budget"])
    assert json.loads(capsys.readouterr().out) == {"path": str(path), "entries": 15, "tokens": 128}
    main(words, text_budget=QUICK["text_budget"])  # its own file may be replaced
    assert "importance of 15 matrices, from 128 tokens" in capsys.readouterr().out


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt exists, and is not an importance matrix"):
        bitquilt.make_imatrix("demo", output=path)
    with pytest.raises(UserError, match="is a directory where a file should go"):
        bitquilt.make_imatrix("demo", output=tmp_path)
    assert path.read_text() == "mine"
