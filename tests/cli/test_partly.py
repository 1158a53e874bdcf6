"""One budget of several is impossible: the others are made, and it is told which one, and why."""

from __future__ import annotations

import re

import pytest

from bitquilt import PartlyRefusedError, UserError, plan
from tests.factories import tiny_checkpoint
from tests.quick import invoke

KNAPSACK = ("--search", "knapsack")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama", layers=1)


def test_the_possible_ones_are_made_and_the_impossible_one_is_named(capfd, model, tmp_path):
    assert invoke("quantize", model, "--bits", "1,6", "-o", tmp_path, *KNAPSACK) == 2
    said = capfd.readouterr()
    assert [path.name for path in tmp_path.glob("*.gguf")] == [f"{model.name}-6bit.gguf"]
    assert f"{model.name}-6bit.gguf" in said.out
    first, *_, last = said.err.splitlines()
    why = (
        r"1bit in gguf: .* too small: the smallest possible gguf file has [\d,]+ bytes; ask for --"
    )
    assert re.match(why, first)
    assert first.endswith("The others will be made")
    assert re.match(f"bitquilt: {why}", last)


def test_one_format_of_two(capfd, model, tmp_path):
    assert invoke("quantize", model, "--recipe", "Q8_0", "--to", "both", "-o", tmp_path) == 2
    said = capfd.readouterr()
    assert [path.name for path in tmp_path.glob("*.gguf")] == [f"{model.name}-Q8_0.gguf"]
    assert 'Q8_0 in mlx: there is no preset "Q8_0" for mlx' in said.err.splitlines()[-1]


def test_search_writes_the_possible_recipes(capfd, model, tmp_path):
    assert invoke("search", model, "--bits", "1,6", "-o", tmp_path, *KNAPSACK) == 2
    said = capfd.readouterr()
    assert said.out.startswith(str(tmp_path / f"{model.name}-6bit-gguf.recipe.json"))
    assert said.err.splitlines()[-1].startswith("bitquilt: 1bit in gguf: ")


def test_python_gets_what_was_made(model):
    with pytest.raises(PartlyRefusedError, match=r"^1bit in gguf: .*or bits=") as caught:
        plan(model, bits=[1, 6])
    assert [made.label for made in caught.value.made] == ["6bit"]


def test_where_none_is_possible_nothing_is_made(capfd, model, tmp_path):
    assert invoke("quantize", model, "--bits", "1.563,1.564", "--to", "both", "-o", tmp_path) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count(" too small: ") == 4
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError) as caught:
        plan(model, bits=1.563)
    assert not isinstance(caught.value, PartlyRefusedError)


def test_plan_takes_what_quantize_takes(capfd, model, tmp_path):
    options = (
        "--bits",
        "6",
        "--tune",
        "--sequential",
        "-o",
        tmp_path / "x",
        "--work-dir",
        tmp_path,
    )
    assert invoke("plan", model, *options, "--rounding", "nearest", "--seed", "3", *KNAPSACK) == 0
    said = capfd.readouterr()
    assert "bits per weight" in said.out
    assert list(tmp_path.iterdir()) == []
    assert plan(model, bits=6, tune=True)[0].layout == plan(model, bits=6)[0].layout
