"""Names that are nearly right, as they are typed: what was meant is in the sentence."""

from __future__ import annotations

import json
import re

import pytest

from tests.quick import invoke


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("quantise", "demo"), "Did you mean 'quantize'? See bitquilt --help"),
        (("plan", "demo", "--bitts", "4"), "Did you mean"),
        (
            ("publish", "demo", "--against", "demo", "--repo", "a/b", "--dry-run"),
            "without --upload, publish only says what it would do: it needs no dry run; see",
        ),
        (("compare", "demo"), "compare takes two files, not 1; see bitquilt compare --help"),
        (("inspect", ""), "the model's name is empty; give a hub id, a directory, a GGUF file or"),
        (("chat", "demo", "--votes", "3"), "'--votes' here, but `bitquilt run` has it; see"),
        (("plan", "demo", "--bits", "4", "--to", "GGUF"), "did you mean gguf? See bitquilt plan"),
        (("quantize", "demo", "--bits", "4", "--search", "Knapsak"), "did you mean knapsack?"),
        (("plan", "demo", "--recipe", "q4-k-m"), "; did you mean Q4_K_M?"),
        (("plan", "demo", "--recipe", "4bit_g64"), "4bit-g64 is a preset of MLX, not of GGUF; use"),
        (("plan", "demo", "--recipe", "4bit-g64"), "use --to mlx"),
        (("plan", "Demo", "--bits", "4"), "there is no model Demo; did you mean demo?"),
        (("tasks", "demo", "--tasks", "GSM8k"), "there is no task GSM8k; did you mean gsm8k?"),
        (("plan", "Model-4bit.gguf", "--bits", "4"), "; did you mean model-4bit.gguf?"),
        (("bench", "model-4bit.ggf"), "; did you mean model-4bit.gguf?"),
        (("eval", "model_4bit.gguf", "--against", "demo"), "; did you mean model-4bit.gguf?"),
        (("plan", "demo", "--recipe", "Mine.json"), "did you mean mine.json?"),
        (("report", "demo.wrk"), "did you mean demo.work?"),
        (
            ("run", "demo", "Hi", "--top-p", "2"),
            "2 is not between 0 and 1; see bitquilt run",
        ),
        (("run", "demo", "Hi", "--seed", "-1"), "-1 is not at least 0; see bitquilt run --help"),
    ],
)
def test_what_was_meant_is_said(capfd, tmp_path, monkeypatch, arguments, meant):
    for name in ("model-4bit.gguf", "mine.json"):
        (tmp_path / name).touch()
    (tmp_path / "demo.work").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert invoke(*arguments) == 2
    said = capfd.readouterr().err
    assert meant in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "meant"),
    [
        ({"defualt": "Q4_K"}, "; did you mean default?"),
        ({"default": "q4_k"}, "; did you mean Q4_K?"),
        ({"default": "Q4_K", "pin": {"token_embed": "Q8_0"}}, "; did you mean token_embd?"),
        ({"default": "Q4_K", "rules": [{"match": "ffn_dwn", "type": "Q6_K"}]}, "mean ffn_down?"),
        ("{default: Q4_K}", 'correct it, or begin with a file that holds {"default": "Q4_K"}'),
    ],
)
def test_names_in_a_recipe(capfd, tmp_path, recipe, meant):
    path = tmp_path / "mine.json"
    path.write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))
    assert invoke("plan", "demo", "--recipe", path) == 2
    assert meant in capfd.readouterr().err


def test_help_says_limits_in_words_where_they_help(capfd):
    said = ""
    for verb in ("run", "quantize", "serve", "eval", "bench", "tasks"):
        assert invoke(verb, "--help") == 0
        said += " ".join(capfd.readouterr().out.split())
    assert not re.search(r"x ?[<>]|[<>]=? ?x", said)
    assert "[between 0 and 1]" in said
    assert "at least 1024]" in said
    assert "at least 0" not in said
