"""Unigram vocabularies with byte fallback, cut, against the tokenizers package."""

from __future__ import annotations

import inspect
import json
import textwrap

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from bitquilt import plan, trim_vocabulary
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.runtime.progress import Silent
from bitquilt.trimming.unigram import UnigramFile, tokenizer_to_cut
from tests.factories import VOCABULARY, tiny_checkpoint
from tests.trimming.test_trim import KEPT, SCRIPTS

SPECIAL = ("<unk>", "<s>", "</s>", "<unused1>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny Llama with such a tokenizer, as LLM-jp's models are."""
    source = tiny_checkpoint(tmp_path_factory.mktemp("unigram"), "llama", layers=1)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY - 256, special_tokens=[*SPECIAL], unk_token="<unk>"
    )
    tokenizer.train_from_iterator([inspect.getsource(textwrap)] * 3, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    assert [token for token, _ in vocab[:4]] == [*SPECIAL]
    content["model"]["vocab"] = [*vocab[:4], *([one, -30.0] for one in BYTES), *vocab[4:]]
    content["model"]["byte_fallback"] = True
    for path in source.glob("*token*"):
        path.unlink()
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(source)
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((source / name).read_text())
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
        (source / name).write_text(json.dumps({**fields, **ids}))
    return source


@pytest.fixture(scope="module", params=[None, "450"])
def cut(request, source, tmp_path_factory):
    """The original's and the smaller tokenizer, and what was said of the latter's model."""
    folder = tmp_path_factory.mktemp("cut")
    (folder / "text.txt").write_text(KEPT)
    made = trim_vocabulary(
        source,
        output=folder / "small",
        keep=[folder / "text.txt"],
        tokens=request.param,
        progress=Silent(),
    )
    return load_tokenizer(source), load_tokenizer(made.path), made


def test_text_is_split_as_before_and_any_text_can_be_read(cut):
    before, after, made = cut
    assert made.tokens == len(after) < len(before)
    text = KEPT.strip()
    kept = before.convert_ids_to_tokens(before(text)["input_ids"])
    assert after.convert_ids_to_tokens(after(text)["input_ids"]) == kept
    for text in SCRIPTS:
        assert after.decode(after(text)["input_ids"]) == text
    there = after.get_vocab()
    assert {"<unk>", "<s>", "</s>", *BYTES} <= there.keys()
    assert "<unused1>" not in there


def test_as_many_are_kept_as_were_asked_for_and_all_have_their_rows(cut, source):
    before, after, made = cut
    assert made.tokens == 450 or made.tokens == made.needed + len({*BYTES, "<unk>", "<s>", "</s>"})
    old, new = before.get_vocab(), after.get_vocab()
    tables = [open_checkpoint(one).load("model.embed_tokens.weight") for one in (source, made.path)]
    for token, index in new.items():
        assert torch.equal(tables[1][index], tables[0][old[token]])


def test_the_plan_knows_how_many_before(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(KEPT)
    asked = {"trim": [str(text), "340"], "recipe": "8bit-g32", "to": "mlx", "output": tmp_path}
    (planned,) = plan(source, **asked)
    assert "340 of the 512 tokens are kept" in planned.notes[0]


def test_the_likeliest_tokens_come_first(source):
    tokenizer = tokenizer_to_cut(source, "tiny")
    assert isinstance(tokenizer, UnigramFile)
    scores = dict(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"])
    ordered = [scores[token] for token in tokenizer.by_frequency]
    assert ordered == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"byte_fallback": False}, "has no token for some bytes"),
        ({"unk_id": None}, "has no unknown token"),
        ({"vocab": {"a": 0}}, "has a vocabulary without scores"),
    ],
)
def test_what_cannot_be_cut_is_refused(source, tmp_path, change, said):
    content = json.loads((source / "tokenizer.json").read_text())
    content["model"].update(change)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        tokenizer_to_cut(tmp_path, "tiny")
