"""Hugging Face directories: dtypes, shards, and every way in which they are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bitquilt.engines import open_engine
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from tests.factories import tiny_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path, "llama", hidden=64, heads=2, layers=1)


def change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(directory: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add, or with None remove tensors; ``__`` stands for a dot."""
    path = directory / "model.safetensors"
    changed = load_file(path) | {name.replace("__", "."): t for name, t in tensors.items()}
    save_file({name: t for name, t in changed.items() if t is not None}, path)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "F32"), (torch.bfloat16, "BF16"), (torch.float16, "F16")],
)
def test_every_dtype_is_read_as_float32(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", hidden=64, heads=2, layers=1, dtype=dtype)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.source_dtype == name
    for tensor, stored in load_file(directory / "model.safetensors").items():
        loaded = checkpoint.load(tensor)
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, stored.float())
        assert checkpoint.source_bytes[tensor] == stored.nbytes


def test_shards_read_like_one_file(llama: Path, tmp_path: Path) -> None:
    whole = open_checkpoint(llama)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    for file in llama.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / "sharded").mkdir(exist_ok=True)
            (tmp_path / "sharded" / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    sharded = open_checkpoint(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert sharded.shapes == whole.shapes
    assert all(torch.equal(sharded.load(name), whole.load(name)) for name in whole.shapes)


def test_a_loaded_tensor_is_ones_own(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    checkpoint.load(Q).zero_()
    assert checkpoint.load(Q).abs().sum() > 0


def test_what_comes_with_the_weights(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    assert checkpoint.name == "tiny-llama"
    assert checkpoint.tokenizer_dir == llama
    assert "boxed" in (checkpoint.chat_template or "")
    assert checkpoint.generation_config["eos_token_id"] == [507, 510, 511]


def test_template_inside_the_tokenizer_config(llama: Path) -> None:
    (llama / "chat_template.jinja").unlink()
    path = llama / "tokenizer_config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"chat_template": "{{ messages }}"}))
    assert open_checkpoint(llama).chat_template == "{{ messages }}"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    path.write_text(json.dumps(stored | {"chat_template": named}))
    assert open_checkpoint(llama).chat_template == "d"
    path.write_text(json.dumps(stored))  # as processors of models that also see have it
    (llama / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    assert open_checkpoint(llama).chat_template == "{{ 1 }}"
    with open_engine(llama) as engine:
        assert engine.info.chat_template == "{{ 1 }}"


def test_fingerprint_follows_the_weights_not_the_place(llama: Path, tmp_path: Path) -> None:
    before = open_checkpoint(llama).fingerprint
    moved = llama.rename(tmp_path / "moved")
    assert open_checkpoint(moved).fingerprint == before
    change_weights(moved, **{Q.replace(".", "__"): torch.ones(128, 64)})
    assert open_checkpoint(moved).fingerprint != before


def test_truncated_weights(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read .*truncated"):
        open_checkpoint(llama)


def test_weights_replaced_while_open(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    change_weights(llama, **{Q.replace(".", "__"): None})
    with pytest.raises(UserError, match=rf"{Q} cannot be read from .*model\.safetensors"):
        checkpoint.load(Q)


@pytest.mark.parametrize("place", ["", "../", "/tmp/"])
def test_a_shard_that_is_missing_or_elsewhere(llama: Path, place: str) -> None:
    (llama.parent / "model-00001-of-00002.safetensors").write_bytes(b"somebody else's")
    index = {"weight_map": {Q: f"{place}model-00001-of-00002.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    (llama / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors, which is not in"):
        open_checkpoint(llama)


def test_a_shard_of_a_name_that_no_file_can_have(llama: Path) -> None:
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {Q: "é" * 128}}))
    (llama / "model.safetensors").unlink()
    with pytest.raises(UserError, match="does not say in weight_map which file"):
        open_checkpoint(llama)


def test_shape_against_the_config(llama: Path) -> None:
    change_config(llama, intermediate_size=160)
    with pytest.raises(UserError, match=r"mlp.*\[128, 64\].*\[160, 64\] by intermediate_size"):
        open_checkpoint(llama)


def test_shape_names_the_published_field(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, hidden=64, heads=2, layers=1)
    change_config(directory, intermediate_size_mlp=160)
    with pytest.raises(UserError, match=r"feed_forward.*by intermediate_size_mlp"):
        open_checkpoint(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(llama: Path, value: float) -> None:
    broken = load_file(llama / "model.safetensors")[Q]
    broken[3, :2] = value
    change_weights(llama, **{Q.replace(".", "__"): broken})
    checkpoint = open_checkpoint(llama)
    with pytest.raises(UserError, match=rf"{Q} .* holds 2 NaN or infinite values of 8192"):
        checkpoint.load(Q)


def test_large_values_are_no_damage(llama: Path) -> None:
    """Their sum overflows float32, which a quick check must not take for infinity."""
    change_weights(llama, **{Q.replace(".", "__"): torch.full((128, 64), 3e38)})
    assert open_checkpoint(llama).load(Q).min() == torch.tensor(3e38)


def test_missing_tensor(llama: Path) -> None:
    change_weights(llama, **{Q.replace(".", "__"): None})
    with pytest.raises(UserError, match=f"1 of the 11 tensors .* {Q}"):
        open_checkpoint(llama)


def test_tensor_without_a_place(llama: Path) -> None:
    change_weights(llama, model__layers__0__mlp__router__weight=torch.ones(4, 4))
    with pytest.raises(UserError, match=r"router.weight .*no place in a llama model"):
        open_checkpoint(llama)


def test_inert_tensors_are_named(llama: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(llama, **{name.replace(".", "__"): torch.ones(32)})
    findings = {finding.subject: finding.message for finding in open_checkpoint(llama).findings}
    assert "rope_theta" in findings[name]


def test_a_stored_head_of_a_tied_model(llama: Path) -> None:
    embedding = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    change_weights(llama, lm_head__weight=embedding.clone())
    findings = {finding.subject for finding in open_checkpoint(llama).findings}
    assert "lm_head.weight" in findings
    change_weights(llama, lm_head__weight=embedding + 1)
    with pytest.raises(
        UserError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"
    ):
        open_checkpoint(llama)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_tokenizer(llama: Path, file: str) -> None:
    (llama / file).unlink()
    with pytest.raises(UserError, match=f"has no {file}"):
        open_checkpoint(llama)


def test_unreadable_config(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read as JSON"):
        open_checkpoint(llama)


def test_pickled_weights(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"python -c .*M.from_pretrained\('{llama}'\).save_pre"):
        open_checkpoint(llama)


def test_integer_weights(llama: Path) -> None:
    change_weights(llama, **{Q.replace(".", "__"): torch.ones(128, 64, dtype=torch.int8)})
    with pytest.raises(UserError, match="stores weights as I8"):
        open_checkpoint(llama)


def test_a_config_alone_has_shapes(llama: Path, tmp_path: Path) -> None:
    expected = open_checkpoint(llama).shapes
    alone = tmp_path / "alone"
    alone.mkdir()
    (llama / "config.json").rename(alone / "config.json")
    for reference in (alone, alone / "config.json"):
        checkpoint = open_checkpoint(reference)
        assert checkpoint.shapes == expected
        assert checkpoint.name == "alone"
        assert checkpoint.tokenizer_dir is None


@pytest.mark.parametrize(
    ("wrapper", "family", "prefix"),
    [
        ("gemma3", "gemma3_text", "language_model."),
        ("mistral3", "mistral", "model.language_model."),
    ],
)
def test_the_text_half_of_a_multimodal_model(
    tmp_path: Path, wrapper: str, family: str, prefix: str
) -> None:
    directory = tiny_checkpoint(tmp_path, family, hidden=64, heads=2, layers=1)
    weights = load_file(directory / "model.safetensors")
    text = json.loads((directory / "config.json").read_text())
    config = {"model_type": wrapper, "text_config": text, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps(config))
    inner = {
        prefix + (name if prefix == "language_model." else name.removeprefix("model.")): tensor
        for name, tensor in weights.items()
    }
    inner["vision_tower.patch.weight"] = torch.ones(2, 2)
    save_file(inner, directory / "model.safetensors")
    wrapped = open_checkpoint(directory)
    assert wrapped.config["model_type"] == family
    assert wrapped.shapes.keys() == weights.keys()
    assert all(torch.equal(wrapped.load(name), weights[name]) for name in weights)
    assert {"model_type", "vision_tower.patch.weight"} <= {f.subject for f in wrapped.findings}


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (5, "neither a text nor a list with a default"),
        ([{"template": "t"}], "neither a text nor a list with a default"),
        ({"default": "{{ none + 'x' }}"}, "refuses a question without a system message"),
        ("{% nonsense %}", "cannot be rendered"),
        ("{% for m in messages %}" * 30 + "{% endfor %}" * 30, "cannot be rendered"),
    ],
)
def test_no_chat_template_keeps_a_model_from_opening(llama: Path, stated: Any, said: str) -> None:
    (llama / "chat_template.jinja").unlink()
    path = llama / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": stated}))
    found = [f.message for f in open_checkpoint(llama).findings if f.subject == "chat_template"]
    assert said in found[0]


def test_a_chat_template_of_other_bytes(llama: Path) -> None:
    (llama / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    checkpoint = open_checkpoint(llama)
    assert checkpoint.chat_template is None
    assert any("neither a text" in finding.message for finding in checkpoint.findings)
