"""GGUF files: their size, their bytes, and what gguf-py finds in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf as reference
import pytest
import torch
from gguf import GGUFReader

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.qtypes.qtype import Packed
from bitquilt.targets import GGUF
from tests.factories import CHAT_TEMPLATE, FAMILIES, SPECIAL_TOKENS, tiny_tokenizer
from tests.targets.conftest import Model

MIXES = (
    ("F32",),
    ("Q8_0",),
    ("Q4_K", "Q6_K", "IQ4_XS"),
    ("Q2_K", "IQ3_S", "Q5_1", "BF16", "Q4_0"),
    ("Q2_0", "MXFP4"),
)


def write(model: Model, allocation: tuple[str, ...], path: Path) -> dict[str, str]:
    """Write a mix and return its assignment."""
    allocation = model.on(*allocation)
    recipe = json.dumps(allocation, indent=4)
    GGUF.write(model.checkpoint, allocation, model.packed, path, recipe)
    return allocation


@pytest.mark.parametrize("allocation", MIXES, ids="-".join)
def test_plan_is_the_size_on_disk(
    model: Model, allocation: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    layout = GGUF.plan(model.checkpoint, write(model, allocation, path))
    assert path.stat().st_size == layout.total_bytes
    assert layout.total_bytes == layout.fixed_bytes + sum(layout.tensor_bytes.values())
    assert layout.total_bytes == sum(layout.breakdown.values())


def test_bits_are_those_of_the_tensors_that_gguf_reads(model: Model, tmp_path: Path) -> None:
    """As llama-quantize's BPW counts them: no alignment, nothing of the header."""
    layout = GGUF.plan(model.checkpoint, write(model, MIXES[3], tmp_path / "model.gguf"))
    tensors = GGUFReader(tmp_path / "model.gguf").tensors
    nbytes = sum(int(tensor.n_bytes) for tensor in tensors)
    assert layout.bits == nbytes * 8 / sum(int(tensor.n_elements) for tensor in tensors)
    assert GGUF.data_bytes(tmp_path / "model.gguf") == nbytes
    assert GGUF.count_weights(tmp_path / "model.gguf") == model.checkpoint.weights


def test_sizes_are_additive(model: Model) -> None:
    layouts = [GGUF.plan(model.checkpoint, model.on(*allocation)) for allocation in MIXES]
    assert len({layout.fixed_bytes for layout in layouts}) == 1
    one_by_one = {
        module: GGUF.plan(model.checkpoint, model.on(qtype)).tensor_bytes[module]
        for module, qtype in model.on(*MIXES[3]).items()
    }
    assert one_by_one == layouts[3].tensor_bytes


def test_same_inputs_same_bytes(model: Model, tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    write(model, MIXES[2], first)
    write(model, MIXES[2], second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_weights_come_back(
    family: str, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    model = make_model(family, tied=False)
    path = tmp_path / "model.gguf"
    allocation = write(model, ("F32",), path)
    GGUF.check(path, model.checkpoint, allocation, model.packed)
    weights = GGUF.read_weights(path)
    assert set(weights) == set(model.checkpoint.shapes)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, model.checkpoint.load(name), rtol=0, atol=1e-6)


def test_quantized_weights_are_what_the_qtypes_say(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    allocation = write(model, MIXES[3], path)
    weights = GGUF.read_weights(path)
    for module, qtype in allocation.items():
        torch.testing.assert_close(weights[f"{module}.weight"], model.dequantized(module, qtype))


def test_a_type_that_gguf_py_decodes_otherwise_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, qtype = tmp_path / "model.gguf", qtypes.get("Q8_0")
    allocation = write(model, ("Q8_0",), path)
    right = qtype.decode
    monkeypatch.setattr(qtype, "decode", lambda fields: 2 * right(fields))
    weights = GGUF.read_weights(path)
    with pytest.raises(UserError, match=r"gguf-py decodes the Q8_0 at byte [\d,]+ to other num"):
        weights[f"{next(iter(allocation))}.weight"]


def test_header_as_gguf_py_reads_it(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    allocation = write(model, ("Q8_0",), path)
    fields = reference.GGUFReader(path).fields
    found = {key: field.contents() for key, field in fields.items()}
    tokenizer = tiny_tokenizer()
    assert found["general.architecture"] == "qwen3"
    assert found["general.file_type"] == reference.LlamaFileType.MOSTLY_Q8_0
    assert found["qwen3.attention.key_length"] == 64
    assert found["qwen3.rope.freq_base"] == 8e6
    assert found["tokenizer.ggml.pre"] == "llama-bpe"
    assert found["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert json.loads(found["bitquilt.recipe"]) == allocation
    named = {
        role: found["tokenizer.ggml.tokens"][found[f"tokenizer.ggml.{role}_token_id"]]
        for role in ("bos", "eos", "eot", "eom")
    }
    assert named == {
        "bos": SPECIAL_TOKENS[0],
        "eos": "<|eot_id|>",
        "eot": "<|end_of_text|>",
        "eom": "<|eom_id|>",
    }


def test_a_gguf_source_keeps_its_header(model: Model, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    write(model, ("Q8_0",), first)
    write(Model(first, open_checkpoint(first)), ("Q4_K",), second)
    before, after = (
        {key: field.contents() for key, field in reference.GGUFReader(path).fields.items()}
        for path in (first, second)
    )
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"general.file_type", "bitquilt.recipe"}


def test_check_finds_a_flipped_bit(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    allocation = write(model, ("Q4_K",), path)
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="differ from what was written"):
        GGUF.check(path, model.checkpoint, allocation, model.packed)


def test_a_directory_is_not_replaced(model: Model, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        write(model, ("Q4_K",), tmp_path / "model.gguf")


def test_nothing_stays_of_a_failed_write(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    def packed(module: str, qtype: str) -> Packed:
        if "layers.1" in module:
            raise KeyboardInterrupt
        return model.packed(module, qtype)

    allocation = model.on("Q4_K")
    with pytest.raises(KeyboardInterrupt):
        GGUF.write(model.checkpoint, allocation, packed, folder / "model.gguf", "{}")
    assert list(folder.iterdir()) == []


def test_refusals(model: Model, tmp_path: Path) -> None:
    checkpoint, path = model.checkpoint, tmp_path / "model.gguf"
    with pytest.raises(UserError, match="gguf files cannot hold 4bit-g64"):
        GGUF.plan(checkpoint, model.on("4bit-g64"))
    with pytest.raises(UserError, match=r"gives model\.embed_tokens no type"):
        GGUF.plan(checkpoint, {})
    with pytest.raises(UserError, match="the recipe takes"):
        GGUF.write(checkpoint, model.on("F32"), model.packed, path, " " * 10**6)
    bare = replace(checkpoint, tokenizer_dir=None)
    with pytest.raises(UserError, match="has no tokenizer"):
        GGUF.write(bare, model.on("F32"), model.packed, path, "{}")
    assert not path.exists()
