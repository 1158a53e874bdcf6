"""From what a user types to files, and one sentence for every way that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from bitquilt.errors import UserError
from bitquilt.models.licence_files import TERMS
from bitquilt.models.sources import resolve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``hub(answer)``: what a download gives, a path, or raises, an exception.

    What was asked for comes back: each repository, and which files of it.
    """

    def set_answer(answer: Path | Exception) -> list[tuple[str, Any]]:
        asked: list[tuple[str, Any]] = []

        def download(repo: str, **patterns: Any) -> str:
            asked.append((repo, patterns))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(resolve, "snapshot_download", download)
        return asked

    return set_answer


def response(status: int) -> Any:
    return Mock(status_code=status, headers={})


def test_directory_config_and_gguf(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve.resolve(str(tmp_path)) == tmp_path
    for name in ("config.json", "m.gguf"):
        assert resolve.resolve(str(tmp_path / name)) == tmp_path / name


def test_an_adapter_alone_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"LoRA adapter, .* merge_and_unload"):
        resolve.resolve(str(tmp_path))


def published(place: Path, *files: str) -> Path:
    """A directory with empty files."""
    place.mkdir(parents=True, exist_ok=True)
    for file in files:
        (place / file).write_text("{}")
    return place


def test_hub_id(tmp_path: Path, hub: Any) -> None:
    published(tmp_path, "config.json", "model.safetensors")
    asked = hub(tmp_path)
    assert resolve.resolve("facebook/MobileLLM-R1-140M") == tmp_path
    assert [repo for repo, _ in asked] == ["facebook/MobileLLM-R1-140M"]
    assert resolve.short_name("facebook/MobileLLM-R1-140M", tmp_path) == "MobileLLM-R1-140M"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("Qwen3-0.6B-IQ4_XS.gguf", "Qwen3-0.6B"),
        ("gemma-3-270m-it-F16.gguf", "gemma-3-270m-it"),
        ("model.gguf", "model"),
    ],
)
def test_names_lose_the_type(file: str, name: str) -> None:
    assert resolve.short_name(file, Path(file)) == name


def test_a_plan_leaves_weights_on_the_hub(tmp_path: Path, hub: Any) -> None:
    small = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    heavy = {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    published(tmp_path, "config.json", "model-00001-of-00002.safetensors")
    for weights, fetched in ((True, small | heavy), (False, small)):
        asked = hub(tmp_path)
        resolve.resolve("owner/model", weights=weights)
        ((_, patterns),) = asked
        assert set(filter_repo_objects(small | heavy, **patterns)) == fetched


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (("README.md",), r"owner/model has no config.json .* `hf download owner/model FILE.gguf`"),
        (
            ("config.json",),
            r"has no weights .* save them with .* M.from_pretrained\('owner/model'\).save_pre",
        ),
    ],
)
def test_what_a_repository_lacks_is_told_of_it(
    files: tuple[str, ...], sentence: str, tmp_path: Path, hub: Any
) -> None:
    hub(published(tmp_path, *files))
    with pytest.raises(UserError, match=sentence):
        resolve.resolve("owner/model")


def test_a_snapshot_in_the_cache_has_the_name_of_its_model(tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = published(tmp_path / "models--Owner--Model-1B" / "snapshots" / revision)
    (tmp_path / "mine").symlink_to(snapshot)
    for place in (snapshot, tmp_path / "mine"):
        assert resolve.short_name(str(place), place) == "Model-1B"
        assert resolve.hub_id(str(place), place) == "Owner/Model-1B"
    assert resolve.short_name(str(tmp_path), tmp_path) == tmp_path.name


def test_templates_in_a_folder_and_older_vocabularies_are_fetched(tmp_path: Path, hub: Any) -> None:
    wanted = {"additional_chat_templates/tool_use.jinja", "merges.txt", "spiece.model"}
    others = {"onnx/config.json", "original/tokenizer.model", "gguf/model.safetensors"}
    asked = hub(published(tmp_path, "config.json", "model.safetensors"))
    resolve.resolve("owner/model")
    ((_, patterns),) = asked
    assert set(filter_repo_objects(wanted | others, **patterns)) == wanted


def test_the_terms_of_a_model_come_with_it() -> None:
    """The model card states the licence; MLX directories carry its text on."""
    terms = {"LICENSE", "LICENSE.txt", "LICENCE.md", "NOTICE.txt", "USE_POLICY.md", "X_TERMS.html"}
    found = {*terms, "README.md", "model.bin", "a.py"}
    fetched = set(filter_repo_objects(found, allow_patterns=list(resolve.HUB_FILES)))
    assert fetched == found - {"model.bin", "a.py"}
    assert fetched - {"README.md"} == {name for name in fetched if TERMS.fullmatch(name)}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            GatedRepoError("gated", response=response(403)),
            r"owner/model is gated: accept its licence at https://huggingface.co/owner/model",
        ),
        (
            RepositoryNotFoundError("none", response=response(404)),
            "there is no model owner/model on the hub and no such directory",
        ),
        (LocalEntryNotFoundError("no network"), "the hub cannot be reached; check the network"),
        (HfHubHTTPError("server error", response=response(500)), "failed: server error"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_the_hub_says_no(hub: Any, error: Exception, sentence: str) -> None:
    hub(error)
    with pytest.raises(UserError, match=sentence):
        resolve.resolve("owner/model")


def test_offline(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub(LocalEntryNotFoundError("not cached"))
    with pytest.raises(UserError, match="not in the local cache and HF_HUB_OFFLINE is set"):
        resolve.resolve("owner/model")


@pytest.mark.parametrize("reference", ["not a model", "a--b/c..d"])
def test_what_is_neither_path_nor_id(reference: str) -> None:
    with pytest.raises(UserError, match="neither a path that exists nor a hub id"):
        resolve.resolve(reference)


def test_a_path_with_a_typo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a path must not be looked up on the hub")

    monkeypatch.setattr(resolve, "snapshot_download", unwanted)
    (tmp_path / "SmolLM2").mkdir()
    with pytest.raises(UserError, match=r"does not exist; did you mean .*SmolLM2\?"):
        resolve.resolve(str(tmp_path / "SmolLM"))
    with pytest.raises(UserError, match=r"nor does .*nowhere; check the path"):
        resolve.resolve(str(tmp_path / "nowhere" / "model.gguf"))


def test_files_and_directories_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"weights\.gguf is not a GGUF file"):
        resolve.resolve(str(tmp_path / "weights.gguf"))
    (tmp_path / "weights").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"without the extension \.gguf"):
        resolve.resolve(str(tmp_path / "weights"))
    with pytest.raises(UserError, match=r"has GGUF files but no config\.json"):
        resolve.resolve(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a Hugging Face model directory"):
        resolve.resolve(str(tmp_path / "empty"))
