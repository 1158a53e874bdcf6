"""``bitquilt clean`` lists first and removes what bitquilt made, and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
import torch

from bitquilt.runtime import cache as reading
from bitquilt.runtime import leftovers
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.quick import invoke

QUANTIZE = {"model": "tiny", "checkpoint": "c" * 64, "versions": {"bitquilt": "0"}}
EVAL = {"evaluation of": "tiny", "checkpoint": "c" * 64, "versions": {"bitquilt": "0"}}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache, with what eval keeps and a tokenizer."""
    path = tmp_path / "cache"
    for module in (leftovers, reading):
        monkeypatch.setattr(module, "user_cache_path", lambda name: path)
    for name in (f"{'f' * 32}-2", f".{'e' * 32}-2.part"):
        (path / "tokenizers" / name).mkdir(parents=True)
        (path / "tokenizers" / name / "tokenizer.json").write_text("{}")
    mended = path / "tokenizers" / f"{'d' * 32}-1-hf"
    mended.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE"):
        (mended / name).write_text("{}")
    work(path / "tiny-abc", EVAL)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The present directory."""
    path = tmp_path / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def work(path: Path, settings: dict = QUANTIZE) -> Path:
    with WorkDir(path, settings) as directory:
        directory.save("teacher/abc", {"t": torch.zeros(1000)}, {})
        directory.save_json("made/tiny.gguf", {})
    return path


def tree(path: Path) -> set[str]:
    return {str(one.relative_to(path)) for one in path.rglob("*") if not one.is_dir()}


def test_it_lists_and_removes_only_with_yes(here, cache, capfd):
    made = work(here / "out" / "tiny.work")
    (here / "out" / "tiny-4bit.gguf").write_text("a model")
    (here / "README.md").write_text("mine")
    before = tree(here)
    assert invoke("clean") == 0
    said = capfd.readouterr().out
    assert "out/tiny.work: the work directory of tiny, last written" in said
    assert f"{cache}/tiny-abc: what eval keeps about tiny" in said
    assert f"{cache}/tokenizers: tokenizers that were rebuilt for models (3), last written" in said
    assert "Nothing was removed; --yes removes these" in said
    assert tree(here) == before
    assert invoke("clean", "--yes") == 0
    assert " freed.\n" in capfd.readouterr().out
    assert tree(here) == {"out/tiny-4bit.gguf", "README.md"}
    assert tree(cache) == set()
    assert not made.exists()
    assert invoke("clean") == 0
    assert (
        f"bitquilt left nothing in {here}, up to two folders below it, and in the cache."
        in capfd.readouterr().out
    )


def test_tokenizers_that_a_run_may_read_stay(here, cache, capfd):
    path = reading.tokenizers_to_read()
    try:
        assert path == reading.tokenizers_to_read() == cache / "tokenizers"
        assert invoke("clean", "--yes") == 0
        assert "last written" in (said := capfd.readouterr().out)
        assert "a run is using it, so it stays" in said
        assert len(tree(path)) == 6
    finally:
        reading._reading.pop(path).close()
    assert invoke("clean", "--yes") == 0
    assert "not bitquilt's" not in capfd.readouterr().out
    assert tree(path) == {".lock"}


def test_a_directory_that_is_named_is_all_that_is_looked_at(here, cache, capfd):
    made, other = work(here / "one.work"), work(here / "other.work")
    size = leftovers.directory_bytes(made)
    assert invoke("clean", made, "--json") == 0
    (found,) = json.loads(capfd.readouterr().out)["found"]
    assert (found["path"], found["bytes"], found["in_use"]) == (str(made), size, False)
    assert invoke("clean", made, "--json", "--yes") == 0
    assert json.loads(capfd.readouterr().out)["freed"] == size
    assert not made.exists()
    assert other.exists()
    assert tree(cache)
    assert invoke("clean", "nowhere") == 2
    assert "nowhere is not a directory" in capfd.readouterr().err


def test_the_age_is_that_of_the_newest_file_and_looking_touches_nothing(here, cache, capfd):
    made = work(here / "tiny.work")
    for file in (one for one in made.rglob("*") if one.is_file()):
        hours = 1 if file.name == ".lock" else 5
        os.utime(file, (time.time() - hours * 3600,) * 2)
    before = {one: one.lstat().st_mtime_ns for one in [made, *made.rglob("*")]}
    for _ in range(2):
        assert invoke("clean", made) == 0
        assert "tiny, last written 5 hours ago" in capfd.readouterr().out
        assert {one: one.lstat().st_mtime_ns for one in [made, *made.rglob("*")]} == before


def test_the_answer_no_keeps_everything(here, cache, monkeypatch):
    made = work(here / "tiny.work")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, left in ((False, True), (True, False)):
        monkeypatch.setattr("click.confirm", lambda text, answer=answer: answer)
        assert invoke("clean", here) == 0
        assert made.exists() == left


def test_files_of_others_and_links_stay_and_are_named(here, cache, tmp_path, capfd):
    made = work(here / "tiny.work")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "settings.json").write_text(json.dumps(QUANTIZE))
    (outside / "gradients.safetensors").write_text("precious")
    (made / "teacher" / "thesis.tex").write_text("precious")
    (made / "draft.part").write_text("precious")
    (made / "tiny-mlx").mkdir()
    (made / "tiny-mlx" / "model.safetensors").write_text("a model")
    (made / "teacher" / "b.safetensors").symlink_to(outside / "gradients.safetensors")
    (made / "hessians").symlink_to(outside, target_is_directory=True)
    (here / "link.work").symlink_to(outside, target_is_directory=True)
    foreign = {
        "draft.part",
        "teacher/thesis.tex",
        "tiny-mlx/model.safetensors",
        "teacher/b.safetensors",
    }
    assert invoke("clean", here, "--yes") == 0
    said = capfd.readouterr().out
    for name in (*foreign, "hessians"):
        assert f"{made / name} is not bitquilt's, so it stays\n" in said
    assert "link.work" not in said
    assert tree(made) - {"hessians"} == foreign
    assert (made / "hessians").is_symlink()
    assert tree(outside) == {"settings.json", "gradients.safetensors"}


def test_a_directory_in_use_stays(here, cache, capfd):
    made = work(here / "tiny.work")
    before = tree(made)
    with (made / ".lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert invoke("clean", here, "--yes") == 0
    assert "a run is using it, so it stays" in capfd.readouterr().out
    assert tree(made) == before


def test_settings_of_another_program_are_no_work_directory(here, cache):
    (here / "settings.json").write_text('{"model": "tiny", "editor.tabSize": 4}')
    (here / "gradients.safetensors").write_text("precious")
    (here / ".vscode").mkdir()
    (here / ".vscode" / "settings.json").write_text("[1]")
    before = tree(here)
    assert invoke("clean", here, "--yes") == 0
    assert tree(here) == before


def test_what_a_killed_run_was_writing_goes_when_it_is_old(here, cache, capfd):
    ours = {".tiny-4bit.gguf.part", ".tiny-mlx.part/model.safetensors", ".t.recipe.json.part"}
    for name in (*ours, ".other.part", "mine.gguf.part"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("half")
    made = work(here / "tiny.work")
    (made / "teacher" / ".q.safetensors.part").write_text("half")
    assert invoke("clean", here) == 0
    assert capfd.readouterr().out.count("a run is using it, so it stays") == 3
    for name in ours:
        os.utime(here / name, (time.time() - 3600,) * 2)
    assert invoke("clean", here, "--yes") == 0
    said = capfd.readouterr().out
    assert "half-written by a run that was killed, last written 1 hour ago" in said
    assert tree(here) == {".other.part", "mine.gguf.part"}


def test_quantize_and_search_say_how_their_directory_is_removed_and_it_is(here, cache, capfd):
    """Every artefact of every stage is known; a file that is not would be named here."""
    model = tiny_checkpoint(here / "models", layers=1)
    common = (model, "--bits", "5", "-o", "my out")
    for verb in (
        ("search", *common, "--search", "race"),
        ("quantize", *common, "--search", "race", "--sequential", "--tune"),
    ):
        assert invoke(*verb) == 0
        said = capfd.readouterr().out
        assert f"The work directory my out/{model.name}.work takes " in said
        assert f"To remove it: bitquilt clean 'my out/{model.name}.work'" in said
    assert invoke("clean", f"my out/{model.name}.work", "--yes") == 0
    said = capfd.readouterr().out
    assert "is not bitquilt's" not in said
    left = {path.name for path in (here / "my out").iterdir()}
    assert left == {
        f"{model.name}-5bit.gguf", f"{model.name}-5bit.recipe.json",
        f"{model.name}-5bit-gguf.recipe.json",
    }  # fmt: skip
