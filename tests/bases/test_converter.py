"""llama.cpp's converter is found, run apart from us, and its failures are sentences."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.quants import BF16
from tokenizers import Tokenizer, normalizers

from bitquilt import UserError
from bitquilt.bases import converter, converter_child
from bitquilt.bases.base_file import BaseMatrices
from bitquilt.gguf.header import read_header
from bitquilt.gguf.tokenizer import NORMALIZER
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.factories import tiny_checkpoint

FAKE = """
import sys
class ModelBase:
    no_mtp = False
    def load_hparams(directory, is_mistral_format):
        return {{"known": 1, "text_config": {{}}}}
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError("not recognized")
    def prepare_metadata(self):
        pass
def main():
    import gguf
    assert gguf.OTHER
    {body}
"""
WRITES = """
    from transformers import AutoTokenizer
    import pathlib
    out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
    pre = TextModel().get_vocab_base_pre(None)
    out.write_text(" ".join([pre, sys.argv[-1]]))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkout whose converter does what a test says, with a gguf package of its own."""
    checkout = tmp_path / "llama.cpp"
    (checkout / "gguf").mkdir(parents=True)
    (checkout / "gguf" / "__init__.py").write_text(
        "import enum\nOTHER = True\nMODEL_ARCH = enum.IntEnum('MODEL_ARCH', 'LLAMA')"
    )
    monkeypatch.setenv(converter.CHECKOUT, str(checkout))

    def write(body: str) -> None:
        (checkout / converter.CONVERTER_SCRIPT).write_text(FAKE.format(body=body))

    return write


def test_without_a_converter_the_sentence_has_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(converter.CHECKOUT, raising=False)
    monkeypatch.setattr(converter, "converter_directory", lambda: tmp_path / "none")
    with pytest.raises(UserError) as refused:
        converter.require_converter("bitquilt does not know granite models itself")
    said = str(refused.value)
    assert said.startswith("bitquilt does not know granite models itself, so llama.cpp's converter")
    assert f"--no-deps --target {tmp_path / 'none'} {converter.PACKAGE}`" in said
    assert converter.CHECKOUT in said
    assert "base=" in said or "--base" in said


def test_a_checkout_without_a_converter_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(converter.CHECKOUT, str(tmp_path))
    with pytest.raises(UserError, match=r"has no convert_hf_to_gguf\.py; name a checkout"):
        converter.find_converter()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")],
)
def test_the_converter_runs_with_its_own_packages_and_our_name_of_the_splitting(
    dtype: torch.dtype, name: str, fake, tmp_path: Path
) -> None:
    fake(WRITES)
    converter.convert(tiny_checkpoint(tmp_path, "llama", dtype=dtype), tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == f"llama-bpe {name}"


def test_a_failure_is_a_sentence_with_the_last_line(fake, tmp_path: Path) -> None:
    fake('raise ValueError("no such tensor")')
    directory = tiny_checkpoint(tmp_path, "llama")
    with pytest.raises(UserError, match=r"did not convert .*: ValueError: no such tensor; try"):
        converter.convert(directory, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("", "it printed no error"),
        ("x\nKeyError: 'a_field'", "it looks for 'a_field' in vain, in config.json or among"),
        ("x\nKeyError: 'Missing tensors of a'", "KeyError: 'Missing tensors of a'"),
        ("    assert a == b  # why\n           ^^^\nAssertionError", "this does not hold: a == b"),
        (
            "    assert max(tokenizer.vocab.values()) < vocab_size\nAssertionError",
            "the tokenizer has more tokens than vocab_size in config.json",
        ),
        ("ERROR:hf-to-gguf:Model X is not supported", "Model X is not supported"),
        ("  f()\nValueError: 1 more: \nlm_head.weight.", "ValueError: 1 more: lm_head.weight."),
    ],
)
def test_the_reason_of_a_failure_is_said(printed: str, reason: str) -> None:
    assert converter.reason_of(printed.encode()).startswith(reason)


LOOKS = """
    import json, pathlib
    fields = ModelBase.load_hparams(sys.argv[1], is_mistral_format=False)
    pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1]).write_text(str(fields["{field}"]))
"""


def test_fields_that_a_config_lacks_are_those_of_transformers(fake, tmp_path: Path) -> None:
    fake(LOOKS.format(field="n_ctx"))
    directory = tiny_checkpoint(tmp_path, "llama")
    config = json.loads((directory / "config.json").read_text())
    assert "n_ctx" not in config
    converter.convert(directory, tmp_path / "out")
    assert (tmp_path / "out").read_text() == str(config["max_position_embeddings"])
    fake(LOOKS.format(field="of_nobody"))
    with pytest.raises(UserError, match="looks for 'of_nobody' in vain"):
        converter.convert(directory, tmp_path / "out")


def test_code_that_a_model_brings_is_not_run(fake, tmp_path: Path) -> None:
    fake(
        "from transformers import AutoTokenizer; "
        "AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    directory = tiny_checkpoint(tmp_path, "llama")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
    config["tokenizer_class"] = "Tokenizer"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (directory / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Tokenizer: pass")
    with pytest.raises(UserError):
        converter.convert(directory, tmp_path / "out.gguf")
    assert not ran.exists()


TELLS = """
    import json, pathlib
    out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
    fields = ModelBase.load_hparams(sys.argv[1], is_mistral_format=False)
    archs = gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.OF_THE_FUTURE
    out.write_text(json.dumps([fields, ModelBase.no_mtp, archs]))
"""


def test_what_the_converter_does_not_see_by_itself_is_shown_to_it(fake, tmp_path: Path) -> None:
    fake(TELLS)
    directory = tiny_checkpoint(tmp_path, "llama", layers=2)
    config = json.loads((directory / "config.json").read_text())
    config |= {"known": 2, "published": 3, "text_config": {"num_hidden_layers": 2}}
    (directory / "config.json").write_text(json.dumps(config))
    converter.convert(directory, tmp_path / "out")
    fields, no_mtp, archs = json.loads((tmp_path / "out").read_text())
    assert (fields["known"], fields["published"]) == (1, 3)  # its own reading comes first
    assert fields["text_config"] == {"num_hidden_layers": 2}
    assert no_mtp
    assert archs == [1, None]
    config["text_config"] = {"num_hidden_layers": 1}  # so the second predicts further tokens
    (directory / "config.json").write_text(json.dumps(config))
    converter.convert(directory, tmp_path / "out")
    assert not json.loads((tmp_path / "out").read_text())[1]


@needs_converter
def test_the_real_one_keeps_every_number(tmp_path: Path) -> None:
    directory = tmp_path / "models--Owner--Tiny-Granite" / "snapshots" / "0123abcd"
    directory.parent.mkdir(parents=True)
    unknown_checkpoint(tmp_path, "granite").rename(directory)  # as in the hub's cache
    converter.convert(directory, tmp_path / "granite.gguf")
    matrices = BaseMatrices(tmp_path / "granite.gguf")
    assert len(matrices) == 16
    assert {matrices[name].dtype for name in matrices} == {torch.float32}
    metadata = read_header(tmp_path / "granite.gguf").metadata
    assert NORMALIZER not in metadata
    assert metadata["general.name"] == "Tiny Granite"


def test_a_type_that_it_does_not_know_is_refused_without_weights(fake, tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite")
    (directory / "model.safetensors").unlink()
    fake('sys.exit("ERROR:hf-to-gguf:Model GraniteForCausalLM is not supported")')
    with pytest.raises(UserError, match=rf"{directory}: Model GraniteFor.* not supported; .*base"):
        converter.require_known(directory)
    fake('raise FileNotFoundError("there are no weights")')
    converter.require_known(directory)


@needs_converter
def test_a_normalizer_is_in_the_files_metadata_and_trainers_names_are_none(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite")
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["MyOwnTrainer"]
    (directory / "config.json").write_text(json.dumps(config))
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(path))
    converter.convert(directory, tmp_path / "granite.gguf")
    assert read_header(tmp_path / "granite.gguf").metadata[NORMALIZER] == "NFC"


def test_the_command_is_for_this_python() -> None:
    assert converter.install_command().startswith((sys.executable, "uv pip"))


def test_numbers_are_rounded_to_the_bits_of_gguf_py(monkeypatch):
    own = BF16.quantize_blocks
    monkeypatch.setattr(BF16, "quantize_blocks", own)  # is put back
    converter_child._round_to_bf16_in_torch()
    bits = np.random.default_rng(0).integers(0, 2**32, (4096, 1), dtype=np.uint32)
    every = bits.view(np.float32)
    finite = np.where(np.isfinite(every), every, np.float32(1.5))
    for numbers in (every, finite, np.array([[np.inf], [-np.inf], [0.0], [-0.0]], np.float32)):
        found = BF16.quantize_blocks(numbers)
        assert found.shape == (len(numbers), 2)
        assert np.array_equal(found, own(numbers))
