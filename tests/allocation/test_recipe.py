"""Recipes: what they say, what they refuse, and that they say the same thing twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bitquilt.allocation.recipe import (
    Recipe,
    from_allocation,
    parse_recipe,
    pins,
    read_recipe,
    resolve_recipe,
)
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from tests.shapes import shaped_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
MOBILELLM = EXAMPLES / "mobilellm-r1-950m" / "config.json"
ISSUE_RECIPE = {
    "default": "Q4_K",
    "rules": [{"match": "attn_v|ffn_down", "type": "Q6_K"}],
    "pin": {"token_embd": "Q8_0"},
}


def block(layer: int, part: str) -> str:
    return f"model.layers.{layer}.{part}"


def test_rules_default_and_pins() -> None:
    mix = resolve_recipe(parse_recipe(ISSUE_RECIPE, "r"), shaped_checkpoint(), "gguf")
    assert mix == {
        "model.embed_tokens": "Q8_0",
        **{
            block(layer, part): qtype
            for layer in range(2)
            for part, qtype in {
                "self_attn.q_proj": "Q4_K",
                "self_attn.k_proj": "Q4_K",
                "self_attn.v_proj": "Q6_K",
                "self_attn.o_proj": "Q4_K",
                "mlp.gate_proj": "Q4_K",
                "mlp.up_proj": "Q4_K",
                "mlp.down_proj": "Q6_K",
            }.items()
        },
    }


def test_every_matrix_is_resolved_in_file_order() -> None:
    checkpoint = shaped_checkpoint(tied=False)
    assert list(resolve_recipe(parse_recipe({"default": "Q8_0"}, "r"), checkpoint, "gguf")) == list(
        checkpoint.matrices
    )


@pytest.mark.parametrize(
    "match",
    [
        r"^blk\.1\.attn_q$",
        r"^blk\.1\.attn_q\.weight$",
        r"layers\.1\.self_attn\.q_proj$",
        r"^model\.layers\.1\.self_attn\.q_proj\.weight$",
    ],
)
def test_a_rule_may_use_any_of_the_names(match: str) -> None:
    recipe = parse_recipe({"default": "Q4_K", "rules": [{"match": match, "type": "Q8_0"}]}, "r")
    mix = resolve_recipe(recipe, shaped_checkpoint(), "gguf")
    assert [m for m, qtype in mix.items() if qtype == "Q8_0"] == [block(1, "self_attn.q_proj")]


@pytest.mark.parametrize(
    "name",
    [
        "blk.1.attn_q",
        "blk.1.attn_q.weight",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj.weight",
    ],
)
def test_a_pin_may_use_any_of_the_names(name: str) -> None:
    recipe = parse_recipe({"pin": {name: "Q8_0"}}, "r")
    assert pins(recipe, shaped_checkpoint(), "gguf") == {block(1, "self_attn.q_proj"): "Q8_0"}


def test_the_first_matching_rule_wins_and_a_pin_beats_it() -> None:
    recipe = parse_recipe(
        {
            "default": "Q2_K",
            "rules": [{"match": "attn", "type": "Q4_K"}, {"match": "attn_v", "type": "Q6_K"}],
            "pin": {"blk.0.attn_v": "Q8_0"},
        },
        "r",
    )
    mix = resolve_recipe(recipe, shaped_checkpoint(), "gguf")
    assert mix[block(0, "self_attn.v_proj")] == "Q8_0"
    assert mix[block(1, "self_attn.v_proj")] == "Q4_K"
    assert mix[block(1, "mlp.up_proj")] == "Q2_K"


def test_one_file_serves_both_targets() -> None:
    recipe = parse_recipe(
        {
            "default": {"gguf": "Q4_K", "mlx": "4bit-g64"},
            "rules": [{"match": "attn_v", "type": {"gguf": "Q6_K", "mlx": "6bit-g64"}}],
            "pin": {"token_embd": {"gguf": "Q8_0", "mlx": "8bit-g64"}},
        },
        "r",
    )
    checkpoint = shaped_checkpoint()
    pairs = {"Q4_K": "4bit-g64", "Q6_K": "6bit-g64", "Q8_0": "8bit-g64"}
    as_gguf, as_mlx = (resolve_recipe(recipe, checkpoint, target) for target in ("gguf", "mlx"))
    assert {m: pairs[qtype] for m, qtype in as_gguf.items()} == as_mlx


def test_a_finished_mix_is_written_down_and_read_back() -> None:
    checkpoint = shaped_checkpoint(tied=False)
    qtypes = ("Q4_K", "Q4_K", "Q6_K", "Q3_K")
    mix = {module: qtypes[i % 4] for i, module in enumerate(checkpoint.matrices)}
    recipe = from_allocation(mix, checkpoint)
    assert recipe.default == "Q4_K"
    assert "output" in recipe.pin
    assert resolve_recipe(parse_recipe(recipe.to_json(), "again"), checkpoint, "gguf") == mix
    shuffled = dict(sorted(mix.items(), reverse=True))
    assert from_allocation(shuffled, checkpoint).to_json() == recipe.to_json()


@pytest.mark.parametrize("said", [None, True, False])
def test_a_recipe_says_whether_blocks_make_up_for_those_before(said: bool | None) -> None:
    checkpoint = shaped_checkpoint()
    recipe = from_allocation(dict.fromkeys(checkpoint.matrices, "Q4_K"), checkpoint, said)
    assert ("sequential" in recipe.to_json()) == (said is not None)
    assert parse_recipe(recipe.to_json(), "again").sequential is said


def test_json_is_canonical() -> None:
    text = parse_recipe(ISSUE_RECIPE, "r").to_json()
    assert text == (
        '{"default":"Q4_K","rules":[{"match":"attn_v|ffn_down","type":"Q6_K"}],'
        '"pin":{"token_embd":"Q8_0"}}'
    )
    backwards = json.dumps(dict(reversed(ISSUE_RECIPE.items())), indent=4)
    assert parse_recipe(backwards, "r").to_json() == text
    assert Recipe().to_json() == "{}"


def test_a_file_may_say_its_format_and_model_files_do_not() -> None:
    assert parse_recipe({"format": 2, **ISSUE_RECIPE}, "r") == parse_recipe(ISSUE_RECIPE, "r")
    assert "format" not in json.loads(parse_recipe({"format": 2, **ISSUE_RECIPE}, "r").to_json())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('{"default": "Q4_K",\n "rules": [}', ["not JSON", "line 2", "column"]),
        ("[]", ["must be a JSON object"]),
        ('{"default": "Q4_K", "default": "Q6_K"}', ['"default" twice']),
        (
            '{"defualt": "Q4_K"}',
            ['unknown key "defualt"', "default, format, pin, rules, seq"],
        ),
        ('{"default": "Q4_L"}', ['"default": there is no type', "Q4_L", "4bit-g64"]),
        ('{"default": null}', ['"default" must be a type']),
        ('{"default": 4}', ['"default" must be a type']),
        ('{"default": {}}', ['"default" must be a type']),
        ('{"default": {"onnx": "Q4_K"}}', ['unknown key "onnx"', "gguf, mlx"]),
        ('{"default": {"mlx": 4}}', ['"mlx" must be the name of a type']),
        ('{"rules": {}}', ['"rules" must be a list']),
        ('{"rules": ["Q4_K"]}', ["rule 1 must be an object"]),
        ('{"rules": [{"match": "attn"}]}', ["rule 1 needs both"]),
        ('{"rules": [{"match": "a", "type": "Q4_K", "x": 1}]}', ['rule 1 has an unknown key "x"']),
        ('{"rules": [{"match": "a", "type": "Q9"}]}', ["rule 1: there is no type"]),
        ('{"rules": [{"match": "attn_(", "type": "Q4_K"}]}', ["rule 1", "not a regular expr"]),
        ('{"rules": [{"match": "a", "grid": "Q4_K"}]}', ["rule 1", '"grid" to "type"', "0.1"]),
        ('{"format": 1}', ["format 1", '"grid" to "type"', '"format": 2']),
        ('{"format": 3}', ["format 3", "reads format 2", "pip install --upgrade bitquilt"]),
        ('{"format": "2"}', ['"format" must be the number 2']),
        ('{"format": true}', ['"format" must be the number 2']),
        ('{"sequential": "yes"}', ['"sequential" must be true or false']),
        ('{"sequential": null}', ['"sequential" must be true or false']),
        ('{"pin": []}', ['"pin" must be an object']),
        ('{"pin": {"token_embd": "Q9"}}', ['pin "token_embd": there is no type']),
    ],
)
def test_what_is_no_recipe_is_refused(source: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(source, "mine.json")
    assert str(caught.value).startswith("mine.json")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (
            {"default": "Q4_K", "rules": [{"match": "atn_v", "type": "Q6_K"}]},
            "gguf",
            ['"atn_v" matches no matrix', "ffn_down", "; did you mean attn_v?"],
        ),
        ({"pin": {"token_embed": "Q8_0"}}, "gguf", ['"token_embed"', "; did you mean token_embd?"]),
        (
            {"pin": {"norm": "Q8_0"}},
            "gguf",
            ['"norm", which is not a matrix', "names like token_embd"],
        ),
        (
            {"pin": {"token_embd": "Q8_0", "model.embed_tokens": "Q6_K"}},
            "gguf",
            ["model.embed_tokens twice"],
        ),
        (
            {"rules": [{"match": "attn", "type": "Q6_K"}]},
            "gguf",
            ["does not give model.embed_tokens a type", "default"],
        ),
        (
            {"default": "Q4_K"},
            "mlx",
            ["Q4_K on model.embed_tokens", "mlx files cannot", "4bit-g64"],
        ),
        ({"default": "4bit-g64"}, "gguf", ["4bit-g64", "gguf files cannot hold it", "Q4_K"]),
        ({"default": {"mlx": "4bit-g64"}}, "gguf", ["in mlx files only", 'add one for "gguf"']),
    ],
)
def test_a_recipe_that_does_not_suit_the_model_is_refused(
    source: dict[str, object], target: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        resolve_recipe(parse_recipe(source, "mine.json"), shaped_checkpoint(), target)
    assert "mine.json" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_qtype_that_the_width_cannot_take_is_refused_with_those_that_fit() -> None:
    narrow = shaped_checkpoint(width=576, heads=9, kv_heads=3)
    with pytest.raises(
        UserError, match=r"Q4_K on model.embed_tokens, whose rows of 576 .* 256"
    ) as caught:
        resolve_recipe(parse_recipe({"default": "Q4_K"}, "r"), narrow, "gguf")
    choices = str(caught.value).split("choose one of ")[1].split(", ")
    assert "Q5_0" in choices
    assert "Q6_K" not in choices
    assert "4bit-g64" not in choices


def test_a_search_sees_a_recipes_typing_errors_too() -> None:
    recipe = parse_recipe({"rules": [{"match": "atn_v", "type": "Q6_K"}]}, "r")
    with pytest.raises(UserError, match="atn_v"):
        pins(recipe, shaped_checkpoint(), "gguf")


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"default": "Q4_K"}', "utf-8-sig")
    assert read_recipe(path).default is not None


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_recipe(tmp_path / "none.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"GGUF\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_recipe(binary)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_suit_mobilellm(path: Path) -> None:
    checkpoint = open_checkpoint(MOBILELLM)
    targets = ("mlx",) if path.stem.startswith("mlx-") else ("gguf", "mlx")
    for target in targets:
        assert list(resolve_recipe(read_recipe(path), checkpoint, target)) == list(
            checkpoint.matrices
        )


def test_the_published_mlx_port_is_a_recipe() -> None:
    """752 MiB of embedding, 358 to 359 MiB of 4-bit codes, 45 MiB of scales and biases."""
    checkpoint = open_checkpoint(MOBILELLM)
    mix = resolve_recipe(read_recipe(EXAMPLES / "mlx-published-950m.json"), checkpoint, "mlx")
    weights = {module: rows * columns for module, (rows, columns) in checkpoint.matrices.items()}
    four_bit = sum(weights[module] for module, qtype in mix.items() if qtype == "4bit-g64")
    assert Counter(mix.values()) == {"4bit-g64": 153, "8bit-g64": 1, "F32": 1}
    assert round(weights["model.embed_tokens"] * 4 / 2**20) == 752
    assert 358 < four_bit / 2 / 2**20 < 359
    assert round((sum(weights.values()) - weights["model.embed_tokens"]) / 64 * 4 / 2**20) == 45
