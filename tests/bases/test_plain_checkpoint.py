"""Converters and transformers read the same weights, however a directory stores them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitquilt.bases import plain_checkpoint
from bitquilt.bases.importance import load_transformers_model
from bitquilt.bases.plain_checkpoint import PlainTensors, as_converters_read, room_to_convert
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.safetensors import INDEX, SINGLE
from tests.bases.models import unknown_checkpoint
from tests.factories import tiny_checkpoint
from tests.models.sources.quantized.checkpoints import SMALL, quantized
from tests.models.sources.quantized.test_gptq import AWQ, random_awq
from tests.models.sources.quantized.test_scaled import FP8, by_modelopt, fp8

Change = Callable[[Path], None]


def copied(directory: Path, beside: Path, *methods: str) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors and the config that a converter sees, by the index as converters do."""
    with as_converters_read(directory, beside, methods) as seen:
        assert seen.name == directory.name
        files = [seen / SINGLE]
        if (seen / INDEX).exists():
            places = json.loads((seen / INDEX).read_text())["weight_map"]
            files = [seen / name for name in sorted(set(places.values()))]
        found = {name: one.clone() for file in files for name, one in load_file(file).items()}
        if (seen / INDEX).exists():
            assert found.keys() == places.keys()
        config = json.loads((seen / "config.json").read_text())
        assert (seen / "tokenizer.json").exists()
    assert seen == directory or not seen.exists()
    assert not list(beside.parent.glob(".*.part"))
    return found, config


def shards(directory: Path, index: Callable[[dict[str, str]], dict[str, str]] | None) -> None:
    """Put the weights into two files, with an index of another time, or none."""
    weights = load_file(directory / SINGLE)
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(weights)}
    for file in set(places.values()):
        inside = {name: one for name, one in weights.items() if places[name] == file}
        save_file(inside, directory / file)
    (directory / SINGLE).unlink()
    if index is not None:
        (directory / INDEX).write_text(json.dumps({"weight_map": index(places)}))


def renamed(rename: Callable[[str], str]) -> Change:
    def change(directory: Path) -> None:
        found = {rename(name): one for name, one in load_file(directory / SINGLE).items()}
        save_file(found, directory / SINGLE)

    return change


def stale(directory: Path) -> None:
    """An index of files that are no longer there, beside the whole."""
    (directory / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "old"}}))


ODD: dict[str, Change] = {
    "stale index": stale,
    "no index": lambda directory: shards(directory, None),
    "short index": lambda directory: shards(
        directory, lambda places: dict(list(places.items())[2:])
    ),
    "compiled": renamed(lambda name: f"_orig_mod.{name}"),
    "compiled inside": renamed(lambda name: name.replace(".mlp.", "._orig_mod.mlp.")),
    "trained in parallel": renamed(lambda name: f"module.{name}"),
    "out of a wrapper": renamed(lambda name: f"language_model.{name}"),
}


@pytest.mark.parametrize("what", ODD)
def test_whatever_is_odd_both_read_the_same_model(what: str, tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    wanted = load_file(directory / SINGLE)
    ODD[what](directory)
    found, _ = copied(directory, tmp_path / "made.gguf")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], one) for name, one in wanted.items())
    parameters = dict(load_transformers_model(directory).named_parameters())
    assert all(torch.equal(parameters[name], one) for name, one in wanted.items())


def test_what_is_as_it_should_be_is_not_copied(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", **SMALL)
    with as_converters_read(directory, tmp_path / "made", ()) as seen:
        assert seen == directory
    plain = room_to_convert(directory, ())
    assert plain == sum(one.nbytes for one in load_file(directory / SINGLE).values())
    stale(directory)
    assert room_to_convert(directory, ()) == 2 * plain


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (AWQ, random_awq),
        (FP8 | {"weight_block_size": [64, 32]}, fp8((64, 32))),
        ({"quant_method": "modelopt"}, lambda weight: by_modelopt(weight)[0]),
    ],
)
def test_what_a_converter_does_not_dequantize_is_dequantized_for_it(
    settings: dict[str, object], make, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(plain_checkpoint, "SHARD_BYTES", 1 << 17)
    directory = quantized(tmp_path, settings, make)
    checkpoint = open_checkpoint(directory)
    found, config = copied(directory, tmp_path / "made.gguf", "mxfp4")
    assert "quantization_config" not in config
    assert found.keys() == checkpoint.shapes.keys()
    assert all(torch.equal(one, checkpoint.load(name)) for name, one in found.items())
    with as_converters_read(directory, tmp_path / "made", [str(settings["quant_method"])]) as seen:
        assert seen == directory


def test_weights_are_dequantized_to_the_type_of_those_that_are_not(tmp_path: Path) -> None:
    directory = quantized(tmp_path, AWQ, random_awq)
    stored = load_file(directory / SINGLE)
    stored["model.embed_tokens.weight"] = stored["model.embed_tokens.weight"].half()
    save_file(stored, directory / SINGLE)
    tensors = PlainTensors(directory)
    assert tensors.widest == "F16"
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.float16


def test_wrappers_keep_their_names(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "mistral3", torch.bfloat16)
    names = safetensors.scan(safetensors.files(directory)).keys()
    assert PlainTensors(directory).keys() == names


def test_the_padding_token_keeps_its_embedding(tmp_path: Path) -> None:
    """Transformers' class of Youtu makes it 0, and then the converted matrix has no partner."""
    directory = unknown_checkpoint(tmp_path, "youtu", torch.bfloat16)
    stored = load_file(directory / SINGLE)["model.embed_tokens.weight"]
    table = load_transformers_model(directory).get_input_embeddings()
    assert stored[table.padding_idx].any()
    assert torch.equal(table.weight, stored.to(table.weight.dtype))


def test_an_adapter_and_a_model_without_a_head_are_named_so(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    weights = load_file(directory / SINGLE)
    del weights["lm_head.weight"]
    save_file(weights, directory / SINGLE, {"format": "pt"})
    with pytest.raises(UserError, match=r"no lm_head.weight, .* set tie_word_embeddings if"):
        load_transformers_model(directory)
    (directory / SINGLE).unlink()
    adapter = {"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 2)}
    save_file(adapter, directory / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"LoRA adapter, .* merge_and_unload"):
        PlainTensors(directory)


def test_a_copy_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", **SMALL)
    stale(directory)
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"copy cannot be written beside .*another -o"),
        as_converters_read(directory, tmp_path / "file" / "made", ()),
    ):
        pass
