"""Publishing against a hub of our own: what arrives, on what terms, and after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from huggingface_hub.lfs import UploadInfo
from safetensors.torch import save_file

from bitquilt.errors import UserError
from bitquilt.evaluation import eval_file
from bitquilt.evaluation.eval_file import save_beside
from bitquilt.models import open_checkpoint
from bitquilt.models.licence import NOTICES
from bitquilt.report import publish
from bitquilt.report.card import Publication, model_card
from bitquilt.report.config import PublicationConfig
from tests.factories import tiny_checkpoint
from tests.quick import invoke
from tests.report.conftest import evaluation, quantized
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
    quantized(original, path)
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
    assert said["files"]["tiny-4.5bit.gguf"] == file.stat().st_size
    assert (hub.created, hub.uploads, hub.files) == ([], 0, {})


def test_where_it_would_go_and_what_has_no_figures_is_said(hub, file, original):
    other = file.with_name("tiny-3bit.gguf")
    quantized(original, other)
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
    assert "check that the hub can be reached" in done.stderr
    assert "log in" not in done.stderr


def test_without_a_licence_nothing_is_passed_on(hub, file, original):
    (original / "README.md").unlink()
    (original / "LICENSE").unlink()
    for upload in ((), ("--upload",)):
        done = run(hub, file, "--against", original, "--repo", "me/tiny", *upload)
        assert done.returncode == 2
        assert (
            f"no licence was found in README.md, config.json or LICENSE in {original}"
            in done.stderr
        )
    assert hub.created == []


def test_names_and_mixtures_that_the_hub_cannot_have(file, original, tmp_path):
    for name in ("tiny", "a/b/c", "me/ti ny"):
        with pytest.raises(UserError, match="is not a valid name of a hub repository"):
            publication([file], original, name)
    directory = tmp_path / "tiny-mlx"
    directory.mkdir()
    (directory / "config.json").write_text('{"quantization": {}}')
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        publication([directory], original)
    (directory / "model.safetensors").touch()
    with pytest.raises(UserError, match="an MLX model needs a repository of its own"):
        publication([file, directory], original)


def test_an_original_that_the_file_was_not_made_from_is_refused(hub, file, original, tmp_path):
    """As eval does: another width, and other values in the same shapes."""
    for options, sentence in (
        ({"hidden": 128}, "model.embed_tokens.weight is"),
        ({"seed": 1}, "has the same shape there but other values"),
    ):
        other = tiny_checkpoint(tmp_path / "other", layers=1, **options)
        (other / "README.md").write_text(MATTER)
        for arguments in (("publish", file, "--upload"), ("card", file)):
            assert invoke(*arguments, "--against", other, "--repo", "me/tiny") == 2
        with pytest.raises(UserError, match=rf"was not made from tiny-llama4_text: .*{sentence}"):
            publication([file], other)
    assert hub.created == []


def test_the_terms_are_told_with_where_they_were_read(file, original, capfd):
    request = ("publish", file, "--against", original, "--repo", "me/tiny")
    assert invoke(*request) == 0
    said = capfd.readouterr().out
    licence = original / "LICENSE"
    assert (
        "The licence is fair-noncommercial-research-license, stated in README.md; passed on with "
        f"it: {licence}." in said
    )
    assert "so the card has no base_model; name the repository with --base-model." in said
    licence.unlink()
    assert invoke(*request, "--base-model", "facebook/Tiny") == 0
    said = capfd.readouterr().out
    assert "The text of this licence was not found in README.md, config.json or LICENSE" in said
    assert "base_model" not in said


def test_gemmas_terms_go_along_with_their_notice(original, file, tmp_path, capfd):
    (original / "README.md").unlink()
    (original / "LICENSE").unlink()
    source = tmp_path / "source" / "tiny.gguf"
    source.parent.mkdir()
    quantized(original, source, "F32")
    (source.parent / "README.md").write_text(
        "---\nlicense: gemma\nbase_model: google/gemma-3-270m\nextra_gated_prompt: Yes?\n---\n"
    )
    (source.parent / "GEMMA_TERMS.html").write_text("<p>Terms</p>")
    request = (file, "--against", source, "--repo", "me/tiny")
    assert invoke("publish", *request) == 0
    said = capfd.readouterr().out
    assert "The licence is gemma, stated in README.md; passed on with it: " in said
    assert (
        'Every copy has this notice: "Gemma is provided under and subject to the Gemma Terms'
        in said
    )
    assert "was not found" not in said
    out = tmp_path / "out"
    assert invoke("card", *request, "-o", out) == 0
    assert (out / "GEMMA_TERMS.html").read_text() == "<p>Terms</p>"
    assert (out / "NOTICE").read_text() == f"{NOTICES['gemma']}\n"
    card = (out / "README.md").read_text()
    for line in ("license: gemma", "base_model: google/gemma-3-270m", "extra_gated_prompt: Yes?"):
        assert f"\n{line}\n" in card
    assert "\nbase_model_relation: quantized\n" in card
    assert f"\n{NOTICES['gemma']}.\n" in card
    assert "[GEMMA_TERMS.html](GEMMA_TERMS.html), [NOTICE](NOTICE)" in card
    (source.parent / "GEMMA_TERMS.html").unlink()
    capfd.readouterr()
    assert invoke("publish", *request) == 2
    (sentence,) = capfd.readouterr().err.splitlines()[-1:]
    assert sentence.startswith(
        "bitquilt: every copy of tiny must come with the text of its licence, gemma, which was not "
    )
    assert sentence.endswith("; put it there as LICENSE")


def test_a_gguf_original_without_a_licence_is_not_passed_on(original, file, tmp_path, capfd):
    (original / "README.md").unlink()
    (original / "LICENSE").unlink()
    source = tmp_path / "source" / "tiny.gguf"
    source.parent.mkdir()
    quantized(original, source, "F32")
    assert invoke("publish", file, "--against", source, "--repo", "me/tiny") == 2
    assert (
        f"no licence was found in the header of {source}, or in README.md or LICENSE beside it, so "
        "tiny may not be passed on; ask its authors, and put" in capfd.readouterr().err
    )


def test_a_file_is_hashed_once(hub, file, original, monkeypatch):
    hashed = []
    whole = UploadInfo.from_path
    monkeypatch.setattr(UploadInfo, "from_path", lambda path: hashed.append(path) or whole(path))
    monkeypatch.setattr(eval_file, "sha256", hashed.append)
    model = publication([file], original)
    assert set(model.evaluated) == {file.name}
    operations = [publish.operation(model, entry) for entry in publish.entries(model)]
    assert hashed.count(str(file)) == 1
    assert file not in hashed
    assert file.name in {one.path_in_repo for one in operations}


def tower(path: Path, width: int) -> Path:
    """A file as llama.cpp's converter names and describes vision towers, of one matrix."""
    writer = GGUFWriter(path, "clip")
    writer.add_uint32("clip.vision.projection_dim", width)
    writer.add_tensor("v.patch_embd.weight", np.zeros((2, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_vision_tower_goes_along(hub, file, original):
    """With the files it belongs to by its name, and under a command that shows it an image."""
    width = open_checkpoint(original).config["hidden_size"]
    seeing = tower(file.with_name("mmproj-tiny.gguf"), width)
    tower(file.with_name("mmproj-other.gguf"), width)
    request = (file, "--against", original, "--repo", "me/tiny")
    done = run(hub, *request, "--upload")
    assert done.returncode == 0, done.stderr
    assert hub.files["mmproj-tiny.gguf"] == seeing.read_bytes()
    assert "mmproj-other.gguf" not in hub.files
    card = hub.files["README.md"].decode()
    assert "pipeline_tag: image-text-to-text" in card
    size = f"{seeing.stat().st_size:,}"
    assert f"`mmproj-tiny.gguf` ({size} bytes) is the vision tower of the original, in F16" in card
    assert "--hf-repo me/tiny --hf-file tiny-4.5bit.gguf" in card
    assert "--mmproj-url https://huggingface.co/me/tiny/resolve/main/mmproj-tiny.gguf" in card


def test_the_vision_tower_of_an_mlx_directory_is_told_of(tmp_path, original):
    directory = quantized(original, tmp_path / "tiny-mlx", "8bit-g64")
    width = open_checkpoint(original).config["hidden_size"]
    weights = {
        "vision_tower.vision_model.ln_pre.weight": torch.ones(8),
        "multi_modal_projector.linear_2.weight": torch.ones(width, 16, dtype=torch.bfloat16),
    }
    save_file(weights, directory / "vision.safetensors")
    known = publication([directory], original)
    card = model_card(replace(known, original=replace(known.original, vision=original)))
    assert "`vision.safetensors`" in card
    assert "mlx-vlm reads images with it, and mlx-lm ignores it" in card
    assert "in BF16 and not quantized" in card
    assert "mlx_vlm.generate --model me/tiny --image picture.png" in card
    assert "text only" not in card
    assert [one.name for one in publish.entries(known)].count("vision.safetensors") == 1
    other = "multi_modal_projector.linear_2.weight"
    save_file({other: torch.ones(96, 16)}, directory / "vision.safetensors")
    with pytest.raises(UserError, match=r"width 96, and those of .* another model's vision tower"):
        publication([directory], original)


def test_another_models_vision_tower_is_refused(file, original):
    seeing = tower(file.with_name("mmproj-tiny.gguf"), 96)
    with pytest.raises(UserError, match=r"width 96, and those of .* another model's vision tower"):
        publication([file], original)
    seeing.write_bytes(seeing.read_bytes()[:40])
    with pytest.raises(UserError, match=r"mmproj-tiny.gguf cannot be read as GGUF"):
        publication([file], original)


def test_files_that_see_nothing_are_called_so(file, original):
    known = publication([file], original)
    assert "text only" not in model_card(known)
    assert "image-text-to-text" not in model_card(known)
    sees = replace(known, original=replace(known.original, vision=original))
    assert "Its vision tower is not among the files, so they read text only." in model_card(sees)
