"""Publishing against a hub of our own: what arrives, on what terms, and after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bitquilt.errors import UserError
from bitquilt.evaluation.eval_file import save_beside
from bitquilt.models import open_checkpoint
from bitquilt.report import publish
from bitquilt.report.card import Publication
from bitquilt.report.config import PublicationConfig
from tests.factories import tiny_checkpoint
from tests.report.conftest import evaluation
from tests.report.hub import Hub, running

MATTER = """---
license: other
license_name: fair-noncommercial-research-license
extra_gated_prompt: Do you accept?
---
# Tiny
"""


@pytest.fixture
def hub():
    with running() as hub:
        yield hub


@pytest.fixture
def original(tmp_path) -> Path:
    directory = tiny_checkpoint(tmp_path, layers=1)
    (directory / "README.md").write_text(MATTER)
    (directory / "LICENSE").write_text("FAIR Noncommercial Research License")
    return directory


@pytest.fixture
def file(tmp_path, original) -> Path:
    path = tmp_path / "tiny-4.5bit.gguf"
    path.write_bytes(b"GGUF, or so we say" * 100)
    path.with_suffix(".recipe.json").write_text('{"default": "Q4_K"}')
    fingerprint = open_checkpoint(original).fingerprint
    save_beside(replace(evaluation(path, 0.0355), fingerprint=fingerprint))
    return path


def publication(files: list[Path], original: Path, repository: str = "me/tiny") -> Publication:
    return publish.publication(files, PublicationConfig(against=original, repository=repository))


def test_a_file_given_twice_is_refused(file, original):
    with pytest.raises(UserError, match="2 files are called tiny"):
        publication([file, file], original)


def test_figures_against_another_original_stay_at_home(file, original):
    save_beside(evaluation(file, 0.0355))
    listed = publish.entries(publication([file], original))
    assert "tiny-4.5bit.gguf.eval.json" not in {entry.name for entry in listed}


def test_an_original_that_is_the_file_itself_is_refused(file):
    with pytest.raises(UserError, match="is the model itself"):
        publication([file], file)


def run(hub: Hub, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, in a process that knows no other hub."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(publish.__file__).parents[2]),
    }
    command = [sys.executable, "-m", "bitquilt.cli.main", "publish", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_nothing_leaves_without_upload(hub, file, original):
    request = (file, "--against", original, "--repo", "me/tiny", "--base-model", "facebook/Tiny")
    hub.gated = "manual"
    done = run(hub, *request, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["gate"] == "manual"
    assert said["uploaded"] is None
    assert said["files"]["tiny-4.5bit.gguf"] == 1800
    assert (hub.created, hub.uploads, hub.files) == ([], 0, {})


def test_where_it_would_go_and_what_has_no_figures_is_said(hub, file, original):
    other = file.with_name("tiny-3bit.gguf")
    other.write_bytes(b"GGUF")
    request = (file, other, "--against", original, "--repo", "me/tiny")
    done = run(hub, *request)
    assert done.returncode == 0, done.stderr
    assert "This would go to the repository me/tiny, gated" in done.stdout
    assert f"tiny-3bit.gguf was not measured against {original}" in done.stdout
    assert "tiny-4.5bit.gguf was not measured" not in done.stdout
    assert "to the private repository me/tiny, gated" in run(hub, *request, "--private").stdout
    assert json.loads(run(hub, *request, "--json").stdout)["not_measured"] == [other.name]


def test_upload_goes_on_where_it_was_stopped_and_keeps_the_originals_terms(hub, file, original):
    request = (file, "--against", original, "--repo", "me/tiny", "--base-model", "facebook/Tiny")
    hub.gated, hub.fail_commit = "auto", True
    stopped = run(hub, *request, "--upload")
    assert stopped.returncode == 2
    assert "give the same command again to continue" in stopped.stderr
    assert "log in" not in stopped.stderr  # the hub was out of order
    assert (hub.uploads, hub.files) == (1, {})
    done = run(hub, *request, "--upload")
    assert done.returncode == 0, done.stderr
    assert hub.uploads == 1  # the large file was there already
    assert hub.settings[-1]["gated"] == "auto"
    assert set(hub.files) == {
        "README.md", "Modelfile", "LICENSE", "tiny-4.5bit.gguf", "tiny-4.5bit.recipe.json",
        "tiny-4.5bit.gguf.eval.json",
    }  # fmt: skip
    assert hub.files["tiny-4.5bit.gguf"] == file.read_bytes()
    card = hub.files["README.md"].decode()
    assert "base_model: facebook/Tiny" in card
    assert "base_model_relation: quantized" in card
    assert "for non-commercial use only" in card


def test_a_hub_out_of_reach_asks_nobody_to_log_in(hub, file, original):
    hub.url = "http://127.0.0.1:9"
    done = run(hub, file, "--against", original, "--repo", "me/tiny", "--upload")
    assert done.returncode == 2
    assert "see that the hub can be reached" in done.stderr
    assert "log in" not in done.stderr


def test_without_a_licence_nothing_is_passed_on(hub, file, original):
    (original / "README.md").unlink()
    for upload in ((), ("--upload",)):
        done = run(hub, file, "--against", original, "--repo", "me/tiny", *upload)
        assert done.returncode == 2
        assert "names no licence" in done.stderr
    assert hub.created == []


def test_names_and_mixtures_that_the_hub_cannot_have(file, original, tmp_path):
    for name in ("tiny", "a/b/c", "me/ti ny"):
        with pytest.raises(UserError, match="is not a name on the hub"):
            publication([file], original, name)
    directory = tmp_path / "tiny-mlx"
    directory.mkdir()
    (directory / "config.json").write_text('{"quantization": {}}')
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        publication([directory], original)
    (directory / "model.safetensors").touch()
    with pytest.raises(UserError, match="an MLX model is a repository of its own"):
        publication([file, directory], original)
