"""Stock llama.cpp on our files: the same logits as transformers on the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from transformers import PreTrainedTokenizerFast

from bitquilt.engines import Sampling, open_engine
from bitquilt.engines.llamacpp import open_llamacpp, open_vocabulary
from bitquilt.engines.torch import TorchEngine
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.chat_template import Message
from bitquilt.talk.prompt import NO_SYSTEM, compose
from bitquilt.targets import GGUF
from tests.cli.conftest import demo_gguf
from tests.engines.conftest import divergence, generated, original_logits
from tests.engines.test_stream import say
from tests.factories import tiny_checkpoint, tiny_tokenizer
from tests.gguf.test_tokenizer import TOKENIZERS
from tests.models.tiny_gguf import write_gguf
from tests.targets.conftest import Model

__all__ = ["demo_gguf"]

EXACT = 1e-3
GELU_TABLE = 5e-3
"""ggml looks Gemma's GELU up in a half-precision table."""
ACTIVATIONS = 0.02
"""llama.cpp rounds activations to 8 bits (bfloat16 beside BF16 weights) before it multiplies:
0.006 nats on real models, more on random ones."""

SHAPES: dict[str, dict[str, object]] = {
    "llama4_text": {},
    "llama4_text without QK norm": {"qk_norm": False},
    "llama4_text untied, 576 wide": {"tied": False, "hidden": 576},
    "llama": {"kv_heads": 1},
    "llama 640 wide": {"hidden": 640, "tied": False},
    "qwen2": {"tied": False},
    "qwen3": {},
    "mistral": {"tied": False},
    "gemma3_text": {"layers": 6},
}


def write(model: Model, path: Path, *qtypes: str) -> Path:
    """A mix as a file."""
    GGUF.write(model.checkpoint, model.on(*qtypes), model.packed, path, "{}")
    return path


def test_what_was_asked_before_is_kept(demo_gguf: Path) -> None:
    """More conversations than rows: what the context has to forget is taken up again."""
    with open_llamacpp(demo_gguf, exact=True) as engine:
        questions = [f"The sum of {n} and {7 * n} and {3 * n} and 10 is" for n in range(11, 23)]
        asked = [engine.tokenize(question) for question in questions]
        said = [say(engine, asked[at : at + 4]) for at in range(0, len(asked), 4)]
        again = [say(engine, asked[at : at + 4]) for at in range(0, len(asked), 4)]
        assert [prefilled for _, prefilled in again] == [4] * 3
        assert [rows for rows, _ in again] == [rows for rows, _ in said]
        turn = [*asked[0], *said[0][0][0], 7, 8]
        assert say(engine, [turn, asked[1]])[1] == 3 + 1
        for n in range(200, 400):  # the oldest go
            say(engine, [[*range(n, n + 30)], [*range(n + 1, n + 31)]])
        rows, prefilled = say(engine, asked[:4])
        assert rows == said[0][0]
        assert prefilled > 4


@pytest.mark.parametrize("case", SHAPES)
def test_same_logits_as_the_original(
    case: str,
    make_model: Callable[..., Model],
    windows: npt.NDArray[np.int64],
    tmp_path: Path,
) -> None:
    model = make_model(case.split()[0], **SHAPES[case])
    path = write(model, tmp_path / "model.gguf", "F32")
    truth = original_logits(model, windows)
    tolerance = GELU_TABLE if "gemma" in case else EXACT
    with open_llamacpp(path, exact=True, threads=2) as engine:
        for logits, reference in zip(engine.logits(windows), truth, strict=True):
            np.testing.assert_allclose(logits, reference, rtol=0, atol=tolerance)


def test_windows_that_turn_at_a_base_of_their_own(
    windows: npt.NDArray[np.int64], tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path, "gemma3_text", layers=6)
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"]["sliding_attention"]["rope_theta"] = 50_000.0
    (source / "config.json").write_text(json.dumps(config))
    model = Model(source, open_checkpoint(source))
    path = write(model, tmp_path / "model.gguf", "F32")
    assert open_checkpoint(path).config["rope_local_base_freq"] == 50_000.0
    with open_llamacpp(path, exact=True, threads=2) as engine:
        found = np.stack([*engine.logits(windows)])
    truth = np.stack([*original_logits(model, windows)])
    np.testing.assert_allclose(found, truth, rtol=0, atol=GELU_TABLE)


@pytest.mark.parametrize(
    ("family", "mix"),
    [
        ("llama4_text", ("BF16",)),
        ("llama4_text", ("IQ2_XXS", "IQ3_S", "Q2_K", "IQ2_S", "IQ3_XXS", "IQ2_XS", "BF16")),
        ("llama", ("Q4_K", "Q6_K", "Q8_0", "Q4_0")),
        ("llama", ("Q2_0", "MXFP4", "NVFP4")),
        ("llama", ("TQ1_0", "TQ2_0", "Q8_0")),
        ("qwen3", ("MXFP4", "Q2_0")),
        ("qwen3", ("IQ1_S", "IQ1_M", "Q8_0")),
        ("gemma3_text", ("IQ4_XS", "Q5_K", "Q3_K", "Q5_1", "IQ4_NL", "Q5_0", "Q4_1")),
    ],
)
def test_mixes_compute_with_the_weights_that_are_read_back(
    family: str,
    mix: tuple[str, ...],
    make_model: Callable[..., Model],
    windows: npt.NDArray[np.int64],
    tmp_path: Path,
) -> None:
    model = make_model(family)
    path = write(model, tmp_path / "model.gguf", *mix)
    weights = GGUF.read_weights(path)
    with TorchEngine(replace(model.checkpoint, reader=weights.__getitem__)) as reference:
        truth = list(reference.logits(windows))
    with open_llamacpp(path, exact=True, threads=2) as engine:
        for logits, meant in zip(engine.logits(windows), truth, strict=True):
            assert divergence(meant, logits) < ACTIVATIONS


LONG = {"rope_theta": 1e5, "factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("family", "scaling"),
    [
        ("llama", {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
        ("llama", {**LONG, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("qwen3", {**LONG, "rope_type": "yarn"}),
    ],
    ids=["linear", "llama3", "yarn"],
)
def test_scaled_rope_beyond_the_original_context(
    family: str, scaling: dict[str, object], make_model: Callable[..., Model], tmp_path: Path
) -> None:
    source = make_model(family, layers=1).source
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rope_parameters": scaling}))
    model = Model(source, open_checkpoint(source))
    window = np.random.default_rng(1).integers(0, 500, (1, 300))
    path = write(model, tmp_path / "model.gguf", "F32")
    with open_llamacpp(path, exact=True, threads=2) as engine:
        (logits,) = engine.logits(window)
    np.testing.assert_allclose(logits, original_logits(model, window)[0], rtol=0, atol=EXACT)


def test_greedy_answers_are_those_of_torch(
    make_model: Callable[..., Model], tmp_path: Path
) -> None:
    model = make_model()
    path = write(model, tmp_path / "model.gguf", "F32")
    with open_engine(path) as engine, open_engine(model.source) as reference:
        prompt = engine.tokenize("What is 347 + 585?", add_special=True)
        assert prompt == tiny_tokenizer().encode("What is 347 + 585?")
        answers = [generated(e, prompt, Sampling(), 24) for e in (engine, reference)]
        assert answers[0] == answers[1] != ""
        drawn = Sampling(temperature=1.0, top_p=0.9, seed=3)
        first, second = (generated(engine, prompt, drawn, 24) for _ in range(2))
        assert first == second != answers[0]


def test_windows_longer_than_a_batch(make_model: Callable[..., Model], tmp_path: Path) -> None:
    model = make_model(layers=1)
    path = write(model, tmp_path / "model.gguf", "F32")
    window = np.random.default_rng(1).integers(0, 500, (1, 700))
    with open_llamacpp(path, exact=True, threads=2) as engine:
        (logits,) = engine.logits(window)
    np.testing.assert_allclose(logits, original_logits(model, window)[0], rtol=0, atol=EXACT)


def test_what_the_file_says_of_itself(make_model: Callable[..., Model], tmp_path: Path) -> None:
    model = make_model()
    asks = {"do_sample": True, "temperature": 0.5, "top_p": 0.75, "top_k": 40}
    model.checkpoint = replace(model.checkpoint, generation_config=asks)
    with open_engine(write(model, tmp_path / "model.gguf", "Q8_0")) as engine:
        assert engine.info.chat_template == model.checkpoint.chat_template
        assert engine.info.special_tokens["bos_token"] == "<|begin_of_text|>"
        assert engine.info.sampling == Sampling(temperature=0.5, top_p=0.75, top_k=40)


def test_a_damaged_file_is_one_sentence(make_model: Callable[..., Model], tmp_path: Path) -> None:
    path = write(make_model(), tmp_path / "model.gguf", "Q8_0")
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(UserError, match=r"model\.gguf cannot be read as GGUF: it ends within "):
        open_engine(path)


def test_a_crash_is_one_sentence(make_model: Callable[..., Model], tmp_path: Path) -> None:
    path = write(make_model(), tmp_path / "model.gguf", "Q8_0")
    with open_llamacpp(path) as engine:
        engine._process.kill()
        engine._process.wait()
        with pytest.raises(UserError, match="crashed"):
            engine.tokenize("hello")


def test_spaces_before_punctuation_are_kept(demo_gguf: Path) -> None:
    """llama.cpp's detokenizer drops them, and the comma with them where it comes alone."""
    text = 'x , y . z ? { "a" : 1 , "b" : [ ] } do n\'t'
    with open_engine(demo_gguf) as engine:
        tokens = engine.tokenize(text)
        assert engine.decode(tokens) == text
        assert "".join(engine.decode([token]) for token in tokens) == text


@pytest.mark.parametrize("empty", [True, False])
def test_a_model_without_a_first_token_gets_none(tmp_path: Path, empty: bool) -> None:
    """llama.cpp takes token 11, a comma, for tokenizers like Qwen's that state none."""
    directory = tiny_checkpoint(tmp_path, "qwen2", layers=1)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (directory / name).unlink()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS["qwen2"](), eos_token="<|eot_id|>"
    )
    tokenizer.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(
        "{{ bos_token }}{% if messages[0].role != 'system' %}<sys>Help.</sys>{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    stated = json.loads((directory / "config.json").read_text())
    stated |= {"bos_token_id": None, "pad_token_id": None}
    (directory / "config.json").write_text(json.dumps(stated))
    path = write(Model(directory, open_checkpoint(directory)), tmp_path / "model.gguf", "F32")
    user: Message = {"role": "user", "content": "hi"}
    with open_engine(path) as engine:
        assert "bos_token" not in engine.info.special_tokens
        prompt = compose(engine, [NO_SYSTEM, user] if empty else [user])
        meant = "<user>hi" if empty else "<sys>Help.</sys><user>hi"
        assert engine.decode(prompt.tokens) == meant


@pytest.mark.parametrize("pre", ["tekken", "gpt-4o"])
def test_a_long_run_of_one_kind_ends_no_process(pre: str, tmp_path: Path) -> None:
    """ggml-org/llama.cpp#27783 and #15594: it took a call of a function for each character."""
    source = tiny_checkpoint(tmp_path, "llama", layers=1)
    path = write_gguf(source, tmp_path / "model.gguf", pre=pre)
    with open_vocabulary(path) as engine:
        for letter in " A":
            text = letter * 60_000
            assert engine.decode(engine.tokenize(text)) == text
        with pytest.raises(UserError, match="in a row"):
            engine.tokenize("us" * 1_500_001)
