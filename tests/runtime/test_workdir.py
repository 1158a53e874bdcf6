"""Work directories: whole artefacts, refused settings, one run at a time."""

import sys
from types import SimpleNamespace

import pytest
import torch

import bitquilt.config  # noqa: F401 (its fields are what sentences name to callers from Python)
from bitquilt.errors import UserError
from bitquilt.runtime import workdir
from bitquilt.runtime.workdir import WorkDir
from tests.clock import set_clock


def test_artefacts_come_back(tmp_path):
    with WorkDir(tmp_path / "w", {"a": 1}) as work:
        assert not work.has("x/y")
        work.save("x/y", {"t": torch.arange(4)}, {"fact": "1"})
        assert work.has("x/y")
        assert torch.equal(work.load("x/y")["t"], torch.arange(4))
        with work.open("x/y") as handle:
            assert handle.metadata() == {"fact": "1"}
        assert work.load_json("none") is None
    with WorkDir(tmp_path / "w", {"a": 1}) as work:
        assert work.has("x/y")


def test_a_part_of_an_artefact_comes_back_without_its_prefix(tmp_path):
    with WorkDir(tmp_path / "w", {}) as work:
        assert work.facts("x") == {}
        work.save("x", {"a/t": torch.arange(4), "ab/t": torch.arange(2)}, {"fact": "1"})
        assert work.facts("x") == {"fact": "1"}
        (part,) = work.load_under("x", "a/").items()
        assert part[0] == "t"
        assert torch.equal(part[1], torch.arange(4))


def test_other_settings_are_refused_by_name(tmp_path):
    with WorkDir(tmp_path / "w", {"calibration": "abc", "seed": 1}):
        pass
    with pytest.raises(UserError, match=r"calibration: abc there, def now.*another with work_dir"):
        WorkDir(tmp_path / "w", {"calibration": "def", "seed": 1})


def test_settings_are_told_in_few_letters(tmp_path):
    one, other = ({"calibration": sign * 64, "versions": {"torch": "2"}} for sign in "ab")
    with WorkDir(tmp_path / "w", one):
        pass
    with pytest.raises(UserError, match=r"\(calibration: aaaaaaaa there, bbbbbbbb now\); choose"):
        WorkDir(tmp_path / "w", other)
    with pytest.raises(UserError, match=r"\(versions: torch 2 there, none now\); choose"):
        WorkDir(tmp_path / "w", {"calibration": "a" * 64})


def test_what_is_damaged_is_one_sentence(tmp_path):
    place = tmp_path / "w"
    with WorkDir(place, {}) as work:
        work.save("few", {"t": torch.zeros(4)}, {})
        file = place / "few.safetensors"
        file.write_bytes(file.read_bytes()[:20])
        for read in (work.load, work.open, work.facts):
            with pytest.raises(UserError, match=r"few\.safetensors is damaged \(.*\); remove the"):
                read("few")
    for text in ("not json", "[]", "5"):
        (place / "settings.json").write_text(text)
        with pytest.raises(
            UserError, match=r"settings\.json is damaged \(.*\); remove the work dir"
        ):
            WorkDir(place, {})


@pytest.mark.parametrize("text", ['{"seconds": null}', '{"seconds": "x"}', "{}"])
def test_a_time_that_is_no_number_counts_from_nothing(text: str, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "settings.json").write_text("{}")
    (tmp_path / "w" / "time.json").write_text(text)
    with WorkDir(tmp_path / "w", {}) as work:
        assert 0 <= work.seconds < 5


def test_somebody_elses_directory_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="has files that bitquilt did not write"):
        WorkDir(tmp_path, {})


def test_two_runs_at_once_are_refused(tmp_path):
    with WorkDir(tmp_path / "w", {}), pytest.raises(UserError, match="in use by another run"):
        WorkDir(tmp_path / "w", {})


def test_two_runs_at_once_are_refused_by_windows_locks_too(tmp_path, monkeypatch):
    def locking(handle, mode, nbytes):
        assert (mode, nbytes) == ("no wait", 1)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sys, "platform", "win32")
    locks = SimpleNamespace(locking=locking, LK_NBLCK="no wait")
    monkeypatch.setattr("bitquilt.runtime.workdir.msvcrt", locks, raising=False)
    with pytest.raises(UserError, match="in use by another run"):
        WorkDir(tmp_path / "w", {})


def test_only_what_was_half_written_is_removed(tmp_path):
    with WorkDir(tmp_path, {}):
        pass
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*")
    (tmp_path / ".tiny-mlx.part" / "under").mkdir(parents=True)
    (tmp_path / "bank").mkdir()
    for name in (".probes.json.part", "bank/.q.safetensors.part", "bank/.tmpIJbt3M"):
        (tmp_path / name).write_text("half")
    with WorkDir(tmp_path, {}):
        pass
    assert {path.name for path in tmp_path.rglob(".*")} == {".git", ".gitignore", ".lock"}


def test_the_time_of_all_runs_is_kept(tmp_path, monkeypatch):
    now = 100.0
    set_clock(monkeypatch, workdir, lambda: now)
    with WorkDir(tmp_path / "w", {}) as work:
        now += 40
    assert work.seconds == 40
    stopped = WorkDir(tmp_path / "w", {})
    now += 30
    stopped.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    killed = WorkDir(tmp_path / "w", {})
    now += 20
    killed.save("x", {"t": torch.arange(4)}, {})  # what is kept is kept with its time
    killed._lock.close()
    now += 1000
    with WorkDir(tmp_path / "w", {}) as work:
        now += 5
        assert work.seconds == 40 + 30 + 20 + 5
