"""Files appear whole or not at all, and trouble with the disk is a sentence."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch

from bitquilt.errors import UserError
from bitquilt.runtime.files import (
    atomic_write,
    refuse_unwritable,
    require_readable,
    require_room,
)
from bitquilt.runtime.workdir import WorkDir


def test_a_file_replaces_a_file(tmp_path):
    path = tmp_path / "new" / "file"
    for text in ("first", "second"):
        with atomic_write(path) as beside:
            beside.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_directory_replaces_a_directory(tmp_path):
    path = tmp_path / "model"
    for name in ("first", "second"):
        with atomic_write(path) as beside:
            beside.mkdir()
            (beside / name).write_text(name)
        assert [p.name for p in path.iterdir()] == [name]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("given", ["", "theirs.json"])
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch, given):
    (tmp_path / "theirs.json").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).stem == "mine")
    words = r"theirs.json cannot be read: no permission; run `chmod u\+rX .*theirs.json`, with"
    with pytest.raises(UserError, match=words):
        require_readable(tmp_path / given)
    (tmp_path / "theirs.json").rename(tmp_path / "mine.json")
    require_readable(tmp_path)
    require_readable(tmp_path / "missing")


def test_links_to_nothing_and_pointers_are_told(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=r"model.safetensors is a pointer of Git LFS.*git lfs pull"):
        require_readable(tmp_path)
    weights.unlink()
    weights.symlink_to(tmp_path / "blob")
    with pytest.raises(UserError, match=r"is a link to .*blob, which is not there; download it"):
        require_readable(tmp_path)


def test_a_directory_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    def refuses(path: Path) -> list[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuses)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: no permission"):
        require_readable(tmp_path)


def test_killed_between_two_directories(tmp_path):
    """The old one is aside and the new one not yet in place: the next run clears it up."""
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.part").mkdir()
    with atomic_write(tmp_path / "model") as beside:
        beside.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_was_moved_aside_when_the_run_was_killed_comes_back(tmp_path):
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "mine").write_text("precious")
    with pytest.raises(KeyError), atomic_write(tmp_path / "model"):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "mine").read_text() == "precious"


def test_a_directory_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("precious")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", fail)
    with (
        pytest.raises(UserError, match="model was not written: Input/output error"),
        atomic_write(tmp_path / "model") as beside,
    ):
        beside.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "mine").read_text() == "precious"


def test_an_error_of_other_work_is_not_called_one_of_writing(tmp_path):
    path = tmp_path / "file"
    for raised in (
        FileNotFoundError(errno.ENOENT, "gone", str(tmp_path / "source")),
        BrokenPipeError(errno.EPIPE, "the engine is gone"),
    ):
        with pytest.raises(type(raised)) as why, atomic_write(path):
            raise raised
        assert why.value is raised
    with (
        pytest.raises(UserError, match="file was not written: no write permission"),
        atomic_write(path) as beside,
    ):
        raise PermissionError(errno.EACCES, "no", str(beside))
    assert list(tmp_path.iterdir()) == []


def fail_halfway(path, error):
    path.write_text("half")
    raise error


@pytest.mark.parametrize("raised", [KeyError("ours"), KeyboardInterrupt(), UserError("bad")])
def test_any_error_leaves_what_was_there(tmp_path, raised):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(type(raised)), atomic_write(path) as beside:
        fail_halfway(beside, raised)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free space"),
        (errno.EDQUOT, "the disk is full; free space"),
        (errno.EACCES, "no write permission there"),
        (errno.EROFS, "no write permission there"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_trouble_of_the_file_system(tmp_path, monkeypatch, number, words, call):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with (
        pytest.raises(UserError, match=rf"file was not written: .*{words}"),
        atomic_write(tmp_path / "file") as beside,
    ):
        beside.write_text("whole")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_directory(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="choose another"):
        require_room(tmp_path / "file", 0)
    with (
        pytest.raises(UserError, match="was not written"),
        atomic_write(tmp_path / "file" / "under"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["full", "full/."])
def test_a_file_never_takes_the_place_of_a_directory(tmp_path, name):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    with (
        pytest.raises(UserError, match="full is a directory; name a file in it"),
        atomic_write(tmp_path / name) as beside,
    ):
        beside.write_text("page")
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_room_is_known_beforehand(tmp_path):
    require_room(tmp_path / "new", 1)
    assert (tmp_path / "new").is_dir()
    with pytest.raises(UserError, match=r"bytes free, but 1,[0,]+ are needed; free space"):
        require_room(tmp_path, 10**30)


def test_no_permission():
    with pytest.raises(UserError, match=r"^/proc/nobody"):
        require_room(Path("/proc/nobody"), 0)


def test_a_disk_that_cannot_be_written_is_refused_before_the_work(small_disk):
    refuse_unwritable(small_disk / "new" / "newer", "--output")
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    words = "new was not written: no write permission there; choose another directory with"
    with pytest.raises(UserError, match=words):
        refuse_unwritable(small_disk / "new", "--output")


def test_a_full_disk(small_disk):
    with (
        pytest.raises(UserError, match="disk is full"),
        atomic_write(small_disk / "file") as beside,
    ):
        beside.write_bytes(bytes(1 << 20))
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_under_the_work_directory(small_disk):
    """There it is safetensors that says so, in words of its own."""
    with WorkDir(small_disk / "work", {}) as work:
        work.save("small", {"t": torch.zeros(1)}, {})
        with pytest.raises(UserError, match=r"large\.safetensors was not written: the disk is"):
            work.save("large", {"t": torch.zeros(1 << 18)}, {})
        assert not work.has("large")
        assert work.has("small")
    names = {path.name for path in (small_disk / "work").iterdir()}
    assert names == {".lock", "settings.json", "time.json", "small.safetensors"}
