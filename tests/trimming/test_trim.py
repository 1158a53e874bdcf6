"""A trimmed checkpoint against its original, transformers and llama.cpp."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from bitquilt import quantize, trim_vocabulary
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.licence import terms_of
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.runtime.progress import Silent
from bitquilt.targets import GGUF, MLX
from bitquilt.trimming.bpe import ALPHABET, BYTES, BpeFile
from bitquilt.trimming.vocabulary import MergeTable
from tests.bases.models import _byte_fallback
from tests.factories import tiny_checkpoint
from tests.models.llamacpp_vocab import tokenize
from tests.models.tiny_gguf import write_gguf, write_sentencepiece_gguf
from tests.progress import Kinds
from tests.quick import QUICK, invoke
from tests.targets.conftest import Model

KEPT = inspect.getsource(textwrap.shorten)
SCRIPTS = (
    "The width of the text, in English: 3,141 and [...]",
    "def shorten(text, width, **kwargs):\n\treturn  text\r\n\n\n",
    "Größe, naïve, Ænima, Łódź, İstanbul, tiếng Việt",
    "Русский текст, Ελληνικά, Հայերեն, ქართული",
    "العربية עברית فارسی",
    "हिन्दी বাংলা தமிழ் ไทย ລາວ မြန်မာ ខ្មែរ",
    "汉字、仮名とカタカナ、한국어",
    "ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ አማርኛ ⵜⴰⵎⴰⵣⵉⵖⵜ ᠮᠣᠩᠭᠣᠯ 𐌰𐌱𐌲 𓀀",
    "👩\u200d🚀 🇺🇳 ½ ∑ ≠ \u0000 \u0301 \ufeff \u200f \U0010fffd",
)
"""Text of many scripts, of which the kept text has few."""
KINDS = ("byte-level", "byte-level, whole words", "byte fallback", "GGUF", "SentencePiece GGUF")


def original(kind: str, folder: Path) -> Path:
    """A model of each kind that can be trimmed."""
    if kind.endswith("GGUF"):
        make = write_sentencepiece_gguf if kind.startswith("Sentence") else None
        if make is not None:
            return make(folder / "tiny.gguf", "llama")
        return write_gguf(tiny_checkpoint(folder, "qwen3", layers=1), folder / "tiny.gguf")
    if kind == "byte fallback":
        source = tiny_checkpoint(folder, "gemma3_text", layers=1)
        tokenizer = _byte_fallback()
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ROLES}
        for name in ("config.json", "generation_config.json"):
            path = source / name
            path.write_text(json.dumps({**json.loads(path.read_text()), **ids}))
        for path in source.glob("*token*"):
            path.unlink()
        tokenizer.save_pretrained(source)
        return source
    source = tiny_checkpoint(folder, "llama", layers=1, tied=False)
    if kind == "byte-level":
        path = source / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"]["ignore_merges"] = False
        path.write_text(json.dumps(content))
    return source


ROLES = ("bos", "eos", "pad")


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """The original, the trimmed directory, and what was said of it."""
    folder = tmp_path_factory.mktemp("trim")
    (folder / "text.txt").write_text(KEPT)
    source = original(request.param, folder)
    made = trim_vocabulary(
        source, output=folder / "small", keep=[folder / "text.txt"], progress=Silent()
    )
    return open_checkpoint(source), open_checkpoint(made.path), made


def kept_of(made) -> list[int]:
    kept: list[int] = json.loads((made.path / "trimmed.json").read_text())["kept"]
    return kept


def test_logits_of_kept_tokens_are_the_originals(both, tmp_path):
    """In transformers, of the directory as anybody loads it."""
    before, after, made = both
    kept = kept_of(made)
    whole = tmp_path / "whole"
    write_whole(before, whole)
    new = load_tokenizer(made.path)(KEPT[:400], return_tensors="pt").input_ids
    old = torch.tensor(kept)[new]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(whole)(old).logits
        found = AutoModelForCausalLM.from_pretrained(made.path)(new).logits
    assert found.shape[-1] == made.tokens == len(kept) < expected.shape[-1]
    torch.testing.assert_close(found, expected[..., kept], rtol=1e-5, atol=1e-5)
    assert made.weights == after.weights < before.weights == made.weights_before


def write_whole(checkpoint, directory: Path) -> None:
    """A checkpoint as transformers reads it, with all of its tokens."""
    config = AutoModelForCausalLM.from_config(torch_config(checkpoint.config), dtype=torch.float32)
    state = {name: checkpoint.load(name) for name in checkpoint.shapes}
    missing = config.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    config.save_pretrained(directory)


def torch_config(fields):
    from transformers import AutoConfig

    return AutoConfig.for_model(**fields)


def test_text_whose_tokens_are_kept_is_split_as_before(both):
    before, _, made = both
    kept = kept_of(made)
    old, new = load_tokenizer(before.tokenizer_dir), load_tokenizer(made.path)
    seen = 0
    for text in [KEPT, *KEPT.splitlines(), *KEPT.split(), *SCRIPTS]:
        ids = old(text)["input_ids"]
        if set(ids) <= set(kept):
            seen += 1
            assert [kept[index] for index in new(text)["input_ids"]] == ids
    assert seen > 50
    assert made.covered == 1.0
    own, *_ = made.tokens_per_byte
    assert own.before == own.after > 0


def test_text_of_all_scripts_is_read_without_loss(both):
    _, _, made = both
    tokenizer = load_tokenizer(made.path)
    for text in SCRIPTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert max(ids) < made.tokens
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
        said = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert said.lstrip(" ") == text.lstrip(" ")


def test_bytes_control_and_added_tokens_are_kept_and_all_can_be_reached(both):
    before, _, made = both
    old = BpeFile.read(before.tokenizer_dir, "")
    new = BpeFile.read(made.path, "")
    assert {one["content"] for one in new.added} == {one["content"] for one in old.added}
    for one in new.added:
        assert new.vocabulary[one["content"]] == one["id"]
    assert new.vocabulary.keys() >= (BYTES if old.byte_bound else ALPHABET)
    table = MergeTable(new.merges)
    whole = new.content["model"].get("ignore_merges")
    for token in new.content["model"]["vocab"]:
        reached = table.way(token) is not None
        assert reached or token in new.required or whole
    assert sorted(new.vocabulary.values()) == list(range(made.tokens))


def test_configs_name_the_same_tokens(both):
    before, after, made = both
    kept = kept_of(made)
    old, new = load_tokenizer(before.tokenizer_dir), load_tokenizer(made.path)
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(new, role) == getattr(old, role)
    fields = [("config", role) for role in ROLES] + [("generation_config", "eos")]
    for which, role in fields:
        was = getattr(before, which).get(f"{role}_token_id")
        now = getattr(after, which).get(f"{role}_token_id")
        many = isinstance(was, list)
        assert now == ([kept.index(one) for one in was] if many else kept.index(was)) \
            if was is not None else now is None  # fmt: skip
    assert after.config["vocab_size"] == made.tokens
    assert after.chat_template == before.chat_template


def test_llama_cpp_splits_text_as_transformers_does(both, tmp_path):
    _, after, made = both
    path = tmp_path / "small.gguf"
    model = Model(made.path, after)
    GGUF.write(after, model.on("BF16"), model.packed, path, "{}")
    tokenizer = load_tokenizer(made.path)
    texts = [text for text in (*SCRIPTS, KEPT) if "\0" not in text]
    ours = [tokenizer(text)["input_ids"] for text in texts]
    assert tokenize(path, texts, add_special=True) == ours


def test_one_command_more_makes_files_that_run(tmp_path, capfd):
    source = tiny_checkpoint(tmp_path, "qwen3", layers=1)
    (tmp_path / "text.txt").write_text(KEPT)
    small = tmp_path / "small"
    assert invoke("trim", source, "--keep", tmp_path / "text.txt", "-o", small, "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["tokens"] < told["tokens_before"] == 512
    result = quantize(small, recipe="Q8_0", output=tmp_path / "out", **QUICK)
    (file,) = result.outputs
    assert np.isfinite(file.figures.headline.kl.mean)
    assert invoke("run", file.path, "The width", "--max-tokens", "3", "--json") == 0


def test_an_mlx_directory_splits_text_as_the_trimmed_checkpoint_does(both, tmp_path):
    _, after, made = both
    model = Model(made.path, after)
    MLX.write(after, model.on("8bit-g32"), model.packed, tmp_path / "small-mlx", "{}")
    ours, theirs = load_tokenizer(made.path), load_tokenizer(tmp_path / "small-mlx")
    assert [theirs(text)["input_ids"] for text in SCRIPTS] == [
        ours(text)["input_ids"] for text in SCRIPTS
    ]
    assert MLX.shapes(tmp_path / "small-mlx")["model.embed_tokens.weight"][0] == made.tokens


def test_a_number_of_tokens_is_kept_to_and_filled_up(tmp_path):
    """The rarest are left out where the text has more, the usual ones added where it has fewer."""
    source = tiny_checkpoint(tmp_path, layers=1)
    (tmp_path / "text.txt").write_text(KEPT)
    asked = {"keep": [tmp_path / "text.txt"], "progress": Silent()}
    every = trim_vocabulary(source, output=tmp_path / "every", **asked)
    few, many = every.tokens - 20, every.tokens + 20
    less = trim_vocabulary(source, output=tmp_path / "less", tokens=str(few), **asked)
    more = trim_vocabulary(source, output=tmp_path / "more", tokens=str(many), **asked)
    assert few - 3 <= less.tokens <= few
    assert less.covered < 1.0 == every.covered == more.covered
    assert every.tokens < more.tokens <= many
    assert set(kept_of(every)) < set(kept_of(more))
    assert less.tokens_per_byte[0].after > less.tokens_per_byte[0].before


def test_reserved_tokens_that_nothing_uses_go(tmp_path):
    """Text that has one keeps it, and so does the chat template or the config that names one."""
    source = tiny_checkpoint(tmp_path, layers=1)
    path = source / "tokenizer.json"
    content = json.loads(path.read_text())
    reserved = ["<unused0>", "<unused1>", "[unused7]", "<|reserved_special_token_3|>", "<user>"]
    for name in reserved:
        index = len(content["model"]["vocab"]) + len(content["added_tokens"])
        free = next(t for t in reversed(content["model"]["vocab"]) if t not in reserved)
        index = content["model"]["vocab"].pop(free)
        content["model"]["vocab"][name] = index
        one = {**content["added_tokens"][0], "id": index, "content": name}
        content["added_tokens"].append(one)
    left = content["model"]["vocab"].keys()
    content["model"]["merges"] = [
        merge
        for merge in content["model"]["merges"]
        if {*(pair := merge.split(" ") if isinstance(merge, str) else merge), "".join(pair)} <= left
    ]
    path.write_text(json.dumps(content))
    named = {"additional_special_tokens": ["<unused0>", "<unused1>"]}
    (source / "special_tokens_map.json").write_text(json.dumps(named))
    (tmp_path / "text.txt").write_text(f"{KEPT} <unused1>")
    made = trim_vocabulary(
        source, output=tmp_path / "small", keep=[tmp_path / "text.txt"], progress=Silent()
    )
    kept = BpeFile.read(made.path, "").vocabulary.keys()
    assert kept & {*reserved} == {"<unused1>", "<user>"}
    tokenizer = load_tokenizer(made.path)
    assert len(tokenizer) == made.tokens
    assert tokenizer("<unused1>")["input_ids"][-1] < made.tokens


def test_a_template_keeps_the_reserved_tokens_that_it_names(tmp_path):
    content = {
        "model": {"type": "BPE", "vocab": {"<unused0>": 0, "<unused1>": 1, "<unused2>": 2}},
        "added_tokens": [{"id": index, "content": f"<unused{index}>"} for index in range(3)],
    }
    left = BpeFile(tmp_path, content).without_reserved("{{ '<unused1>' }}", {2})
    assert [one["content"] for one in left.added] == ["<unused1>", "<unused2>"]
    assert left.vocabulary == {"<unused1>": 1, "<unused2>": 2}


def test_terms_go_along(tmp_path):
    source = tiny_checkpoint(tmp_path, layers=1)
    (source / "README.md").write_text("---\nlicense: gemma\nbase_model: a/b\n---\n# Tiny\n")
    (tmp_path / "text.txt").write_text(KEPT)
    made = trim_vocabulary(
        source, output=tmp_path / "small", keep=[tmp_path / "text.txt"], progress=Silent()
    )
    terms = terms_of(open_checkpoint(made.path))
    assert terms.name == "gemma"
    assert "Gemma Terms of Use" in (made.path / "NOTICE").read_text()
    assert terms.fields["base_model"] == "a/b"


@pytest.fixture
def asked(tmp_path):
    (tmp_path / "text.txt").write_text(KEPT)
    return {
        "output": tmp_path / "small",
        "keep": [tmp_path / "text.txt"],
        "progress": Silent(),
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"end_of_word_suffix": "</w>"}, "has a end_of_word_suffix"),
        ({"vocab": {"a": 0}, "merges": []}, "has no token for some bytes"),
        ({"type": "WordPiece"}, r"tokenizer\.json is of type WordPiece, and bitquilt trims"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path, change, said):
    source = tiny_checkpoint(tmp_path, layers=1)
    path = source / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        BpeFile.read(source, "tiny")


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(UserError, match=r"tiny has no tokenizer\.json"):
        BpeFile.read(None, "tiny")


def test_too_few_tokens_are_refused_before_the_text_is_counted(tmp_path, asked):
    source = tiny_checkpoint(tmp_path, layers=1)
    progress = Kinds()
    with pytest.raises(UserError, match="are 262, and all are kept; ask for at least that many"):
        trim_vocabulary(source, tokens="100", **asked | {"progress": progress})
    assert progress.kinds == []
    assert not asked["output"].exists()


def test_other_files_are_not_replaced(tmp_path, asked):
    asked["output"].mkdir()
    (asked["output"] / "diary.txt").write_text("Dear diary")
    with pytest.raises(UserError, match="holds files that bitquilt did not write"):
        trim_vocabulary("demo", **asked)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "which tokens should be kept"),
        ({"languages": ["xx"]}, "'xx', which is not one of ar, de, en"),
        ({"languages": ["en"], "tokens": "many"}, "'many', which is not a number of tokens"),
        ({"languages": ["en"], "tokens": "0k"}, "'0k', which is not a number of tokens"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        trim_vocabulary("demo", output=tmp_path / "small", **options)


def test_the_verb_tells_what_it_costs(tmp_path, capfd):
    source = tiny_checkpoint(tmp_path, layers=1)
    (tmp_path / "text.txt").write_text(KEPT)
    assert invoke("trim", source, "--keep", tmp_path / "text.txt", "-o", tmp_path / "small") == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "tokens 512" in said
    assert "tokens per byte, the text to keep" in said
    assert "make up 100.00% of the text" in said


def test_other_tokenizers_load_it(both):
    """AutoTokenizer, by the class that tokenizer_config.json names."""
    _, _, made = both
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    ours = PreTrainedTokenizerFast.from_pretrained(made.path)
    assert tokenizer("The width")["input_ids"] == ours("The width")["input_ids"]
