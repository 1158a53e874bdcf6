"""On what terms a model is passed on: read where people write it, and never made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from bitquilt.errors import UserError
from bitquilt.gguf.header import read_header
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.licence import NOTICES, base_model_keys, card_metadata, licence_keys, terms_of
from bitquilt.models.licence_files import is_licence
from bitquilt.targets import GGUF, MLX
from tests.factories import tiny_checkpoint
from tests.models.tiny_gguf import write_gguf
from tests.targets.conftest import Model

FAIR = """---
license: other
license_name: fair-noncommercial-research
license_link: LICENSE
language: [en, de]
base_model: facebook/Base
extra_gated_prompt: Do you accept?
---
# Tiny
"""


@pytest.fixture
def directory(tmp_path) -> Path:
    return tiny_checkpoint(tmp_path, "llama", layers=1)


@pytest.fixture
def make_gguf(directory, tmp_path):
    """A GGUF file in a folder of its own; ``keys`` are strings of its header."""

    def make(folder: str = "files", **keys: str) -> Checkpoint:
        def general(writer: gguf.GGUFWriter) -> None:
            for key, value in keys.items():
                writer.add_string(f"general.{key.replace('__', '.')}", value)
            if "base_model__0__name" in keys:
                writer.add_uint32("general.base_model.count", 1)

        path = tmp_path / folder / "tiny-F32.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        return open_checkpoint(write_gguf(directory, path, general=general))

    return make


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Tiny\n", "apache-2.0"),
        ('---\nlicense: "mit"\nlanguage: [en]\n---\n', "mit"),
        ("# A card without front matter\n", None),
        ("---\nlanguage: [en]\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: [mit\n---\n", None),
        (None, None),
    ],
)
def test_the_card_of_a_directory_gives_the_key_of_the_header(directory, card, expected):
    if card is not None:
        (directory / "README.md").write_text(card)
    assert licence_keys(open_checkpoint(directory)).get("general.license") == expected


def test_front_matter_that_cannot_be_read_is_one_sentence(directory):
    (directory / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(
        UserError, match=r"README\.md, which states the licence, cannot be read .*correct it"
    ):
        card_metadata(directory)
    assert "correct it" in terms_of(open_checkpoint(directory)).problem


def test_a_gated_licence_keeps_its_name_its_questions_and_its_text(directory):
    (directory / "README.md").write_text(FAIR)
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "licence.py", "LICENSES.csv"):
        (directory / name).write_text(name)
    terms = terms_of(open_checkpoint(directory))
    assert terms.fields == {
        "license": "other",
        "license_name": "fair-noncommercial-research",
        "license_link": "LICENSE",
        "language": ["en", "de"],
        "extra_gated_prompt": "Do you accept?",
        "base_model": "facebook/Base",
    }
    assert terms.documents() == {n: n.encode() for n in ("LICENSE", "NOTICE.txt", "USE_POLICY.md")}
    assert terms.non_commercial
    assert not terms.lacks_text
    (directory / "LICENSE").unlink()
    assert terms_of(open_checkpoint(directory)).lacks_text
    assert not is_licence("USE_POLICY.md")


def test_config_and_named_files_count_and_other_folders_do_not(directory, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (directory / "Acme.txt").write_text("Do good.")
    config = json.loads((directory / "config.json").read_text())
    for name, found in (("Acme.txt", {"Acme.txt": b"Do good."}), ("../secret", {})):
        said = {"license": "other", "license_name": "acme", "license_file": name}
        (directory / "config.json").write_text(json.dumps(config | said))
        terms = terms_of(open_checkpoint(directory))
        assert (terms.name, terms.stated_in, terms.documents()) == ("acme", "config.json", found)


def test_a_text_without_a_name_is_a_licence_and_nothing_is_none(directory):
    terms = terms_of(open_checkpoint(directory))
    assert (terms.stated, terms.texts, terms.stated_in) == ({}, {}, "")
    assert str(directory) in terms.searched
    (directory / "NOTICE").write_text("Thanks.")
    assert not terms_of(open_checkpoint(directory)).stated
    (directory / "LICENSE.md").write_text("Do good.")
    terms = terms_of(open_checkpoint(directory))
    assert terms.stated == {"license": "other", "license_link": "LICENSE.md"}


def test_a_gguf_header_says_it_and_the_file_made_from_it_does_too(make_gguf, tmp_path):
    header = {
        "license": "other",
        "license__name": "acme",
        "license__link": "https://acme.example/licence",
        "base_model__0__name": "Base",
        "base_model__0__repo_url": "https://huggingface.co/acme/Base",
    }
    checkpoint = make_gguf(**header)
    terms = terms_of(checkpoint)
    assert terms.stated == {
        "license": "other", "license_name": "acme", "license_link": "https://acme.example/licence",
    }  # fmt: skip
    assert terms.fields["base_model"] == "acme/Base"
    assert "base_model_relation" not in terms.fields  # the base of a fine-tune, for all we know
    model = Model(checkpoint.gguf_source, checkpoint)
    GGUF.write(checkpoint, model.on("Q8_0"), model.packed, tmp_path / "new.gguf", "{}")
    written = read_header(tmp_path / "new.gguf").metadata
    for key, value in header.items():
        assert written[f"general.{key.replace('__', '.')}"] == value
    assert (base_model_keys(checkpoint), licence_keys(checkpoint)) == ({}, {})


def test_a_card_beside_a_gguf_file_fills_in_what_its_header_lacks(make_gguf, tmp_path):
    checkpoint = make_gguf()
    assert terms_of(checkpoint).searched.startswith(f"the header of {checkpoint.gguf_source}")
    (tmp_path / "files" / "README.md").write_text(
        "---\nlicense: gemma\nbase_model: google/gemma-3-270m\nextra_gated_prompt: Yes?\n---\n"
    )
    terms = terms_of(checkpoint)
    assert terms.fields == {
        "license": "gemma",
        "extra_gated_prompt": "Yes?",
        "base_model": "google/gemma-3-270m",
        "base_model_relation": "quantized",
    }
    model = Model(checkpoint.gguf_source, checkpoint)
    path = tmp_path / "new.gguf"
    GGUF.write(checkpoint, model.on("Q8_0"), model.packed, path, "{}")
    written = read_header(path).metadata
    assert written["general.license"] == "gemma"
    assert written["general.base_model.0.repo_url"] == "https://huggingface.co/google/gemma-3-270m"
    assert path.stat().st_size == GGUF.plan(checkpoint, model.on("Q8_0")).total_bytes


def test_a_header_and_a_card_that_contradict_each_other_are_told(make_gguf, tmp_path):
    checkpoint = make_gguf(license="gemma")
    card = tmp_path / "files" / "README.md"
    card.write_text("---\nlicense: Gemma\n---\n")
    assert terms_of(checkpoint).problem is None
    card.write_text("---\nlicense: mit\n---\n")
    terms = terms_of(checkpoint)
    assert "says that its licence is mit, but its header says gemma" in terms.problem
    assert terms.name == "gemma"


def test_mlx_from_a_gguf_source_has_the_terms_and_the_notice_that_they_ask_for(make_gguf, tmp_path):
    checkpoint = make_gguf(license="gemma")
    (tmp_path / "files" / "GEMMA_TERMS.html").write_text("<p>Terms</p>")
    (tmp_path / "files" / "NOTICE").write_text("Thanks.\n")
    model, out = Model(checkpoint.gguf_source, checkpoint), tmp_path / "out"
    MLX.write(checkpoint, model.on("4bit-g64"), model.packed, out, "{}")
    assert (out / "GEMMA_TERMS.html").read_text() == "<p>Terms</p>"
    assert (out / "NOTICE").read_text() == f"Thanks.\n\n{NOTICES['gemma']}\n"
    size = sum(file.stat().st_size for file in out.iterdir())
    assert size == MLX.plan(checkpoint, model.on("4bit-g64")).total_bytes


def test_a_package_has_its_licence_around_it_and_a_program_has_its_own(make_gguf, tmp_path):
    checkpoint = make_gguf("site/weights/data", license="gemma")
    package, info = tmp_path / "site" / "weights", tmp_path / "site" / "weights-1.dist-info"
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "NOTICE.md").write_text("Thanks.")
    (info / "LICENSE").write_text("Do good.")
    (info / "RECORD").write_text("weights/data/other.gguf,,\n")
    (tmp_path / "site" / "LICENSE").write_text("of somebody else")
    assert set(terms_of(checkpoint).texts) == {"NOTICE.md"}
    (info / "RECORD").write_text("weights/data/tiny-F32.gguf,,\n")
    assert set(terms_of(checkpoint).texts) == {"NOTICE.md", "LICENSE"}
    program = make_gguf("program")
    (tmp_path / "program" / "LICENSE").write_text("of the program")
    assert set(terms_of(program).texts) == {"LICENSE"}
    (tmp_path / "program" / "pyproject.toml").touch()
    assert terms_of(program).texts == {}


def test_a_repository_is_named_with_its_address_only_where_it_is_known(directory, tmp_path):
    checkpoint = open_checkpoint(directory)
    name = {"general.base_model.count": 1, "general.base_model.0.name": "tiny-llama"}
    assert (checkpoint.hub_id, base_model_keys(checkpoint)) == (None, name)
    cached = tmp_path / "models--acme--Tiny-1B" / "snapshots" / "abc"
    cached.parent.mkdir(parents=True)
    directory.rename(cached)
    (cached / "README.md").write_text("---\nlicense: other\nlicense_link: LICENSE\n---\n")
    checkpoint = open_checkpoint(cached)
    assert checkpoint.hub_id == "acme/Tiny-1B"
    assert base_model_keys(checkpoint) == {
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny-1B",
        "general.base_model.0.organization": "acme",
        "general.base_model.0.repo_url": "https://huggingface.co/acme/Tiny-1B",
    }
    terms = terms_of(replace(checkpoint, hub_id="acme/Tiny-1B"))
    assert terms.fields["base_model_relation"] == "quantized"
    link = "https://huggingface.co/acme/Tiny-1B/blob/main/LICENSE"
    assert licence_keys(checkpoint)["general.license.link"] == link
