"""What a converter made of a model's parameters is listed: by `inspect`, and by name."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bitquilt.bases.converter import convert
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.quick import invoke


@needs_converter
def test_inspect_lists_what_each_matrix_of_a_base_is_from(tmp_path: Path, capsys) -> None:
    directory = unknown_checkpoint(tmp_path, "granitemoe", torch.bfloat16)
    file = tmp_path / "base.gguf"
    convert(directory, file)
    assert invoke("inspect", directory, "--base", file, "--json") == 0
    listed = json.loads(capsys.readouterr().out)["base"]
    found = {one["matrices"]: (one["count"], one["parameters"], one["relation"]) for one in listed}
    block = "model.layers.*."
    # llama.cpp's converter turns rows of q and k, and cuts each expert's two halves apart
    turned = "other rows or another order of them"
    assert found["blk.*.attn_q.weight"] == (2, [f"{block}self_attn.q_proj.weight"], turned)
    assert found["blk.*.attn_v.weight"] == (2, [f"{block}self_attn.v_proj.weight"], "equal")
    _, (gate,), relation = found["blk.*.ffn_gate_exps.weight"]
    _, (up,), sliced = found["blk.*.ffn_up_exps.weight"]
    assert gate == up
    assert (relation, sliced) == ("a stack of 4, a slice", "a stack of 4, a slice")
    assert invoke("inspect", directory, "--base", file) == 0
    said = capsys.readouterr().out
    assert "blk.*.attn_q" in said
    assert "a stack of 4, a slice" in said


def test_a_base_that_is_not_there_is_one_sentence(capsys) -> None:
    assert invoke("inspect", "demo", "--base", "nowhere.gguf") == 2
    assert "nowhere.gguf" in capsys.readouterr().err
