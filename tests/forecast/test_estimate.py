"""What a run will take, told before it, and the stages that it then has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import namedtuple
from dataclasses import replace

import pytest

import bitquilt
from bitquilt import QuantizeConfig, SearchConfig, UserError
from bitquilt.allocation.plan import UNASKED
from bitquilt.forecast import disk
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.progress import Kinds
from tests.quick import QUICK, invoke

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("method", ["race", "knapsack"])
@pytest.mark.parametrize("extra", [{}, {"sequential": True, "tune": True}])
def test_every_stage_of_a_run_was_expected_in_its_order(model, tmp_path, method, extra):
    progress = Kinds()
    config = QuantizeConfig(
        **QUICK, **extra, bits=5.5, to="both", search=SearchConfig(method=method), output=tmp_path
    )
    expected = [stage.kind for stage in bitquilt.estimate(model, config).stages]
    bitquilt.quantize(model, config, progress=progress)
    assert sorted(progress.kinds) == sorted(expected)
    assert "" not in progress.kinds
    for kind, (total, done) in zip(progress.kinds, progress.units, strict=True):
        kept = kind == "search text" and not done  # the other format has read it
        if kind not in ("search", "selection", "tuning") and not kept:  # these may end early
            assert done == pytest.approx(total, rel=0.05), kind


def test_quantize_begins_with_what_it_will_take(model, tmp_path):
    progress = Kinds()
    bitquilt.quantize(
        model, **QUICK, recipe="Q4_K_M", output=tmp_path, threads=1, progress=progress
    )
    said, first, second = progress.lines[:3]
    assert said == UNASKED
    assert first == (
        "The work runs on the CPU, in 1 thread. It reads these tokens of text: calibration 128, "
        "closing figures 128, sequential correction 128."
    )
    pattern = (
        r"If this machine stays as busy as it is now, the work takes about \d+ s and \d+\.\d+ "
        r"[MG]B of memory\. On the disk it takes at most .*B in .*\.work and "
    )
    assert re.match(pattern, second)
    assert str(tmp_path) in second


def test_plan_says_that_a_race_gives_way_to_the_knapsack(model, tmp_path, monkeypatch, capfd):
    slow = replace(QUICK["text_budget"], races=0)
    asked = QUICK | {"bits": 4.5, "output": tmp_path, "text_budget": slow}
    found = bitquilt.estimate(model, **asked)
    said = (
        "The types are chosen by the exact knapsack, because a race would take long on this "
        "machine; --search-tokens=7680 or more runs the race."
    )
    assert said in list(found.lines)
    assert found.to_dict()["instead"] == said
    assert "search" not in [stage.kind for stage in found.stages]
    for other in ({"search": SearchConfig(method="knapsack")}, {"bits": None, "recipe": "Q4_K_M"}):
        assert bitquilt.estimate(model, **asked | other).instead == ""
    assert bitquilt.estimate(model, **asked | {"text_budget": QUICK["text_budget"]}).instead == ""
    monkeypatch.setattr("bitquilt.forecast.time_limit.budget_of", lambda *_: slow)
    assert invoke("plan", model, "--bits", "4.5") == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "--search-tokens 7680 or more runs the race." in printed


def test_memory_that_is_not_there_is_told(model, monkeypatch):
    monkeypatch.setattr("bitquilt.forecast.estimate.memory_of_machine", lambda: 200_000_000)
    found = bitquilt.estimate(model, **QUICK, bits=4.5)
    told = "This machine has 200.00 MB of memory, less than the work takes: "
    assert any(line.startswith(told) for line in found.lines)
    assert not any("less than" in line for line in replace(found, memory=1000).lines)


@pytest.mark.parametrize(("load", "told"), [(0.5, False), (2.5, True)])
def test_a_machine_that_others_use_is_said_to_be_faster_alone(model, monkeypatch, load, told):
    monkeypatch.setattr("bitquilt.forecast.estimate.load_per_core", lambda: load)
    lines = " ".join(bitquilt.estimate(model, **QUICK, bits=4.5).lines)
    assert (
        "Other programs use this machine now; without them, the work takes less time." in lines
    ) == told


def test_what_is_there_already_costs_nothing_again(model, tmp_path):
    config = QuantizeConfig(**QUICK, recipe="Q4_K_M", output=tmp_path)
    before = bitquilt.estimate(model, config)
    bitquilt.quantize(model, config, progress=Silent())
    after = bitquilt.estimate(model, config)
    written = sum(f.stat().st_size for f in tmp_path.glob("*.work/**/*") if f.is_file())
    assert before.disk.work_bytes - disk.SPARE == pytest.approx(written, rel=0.1)
    assert after.disk.work_bytes == disk.SPARE
    seconds = {stage.kind: stage.seconds for stage in after.stages}
    assert seconds["rounding"] == 0
    assert before.before == 0
    assert after.before > 0
    assert after.before + after.seconds == pytest.approx(before.seconds, rel=3)  # timed twice


def test_a_continued_run_counts_the_whole_job(model, tmp_path):
    class Asked(Silent):
        shares: list[float]

        def say(self, line):
            if "The work runs on" in line:
                self.shares.append(self.time_left()[0])

    progress = Asked()
    progress.shares = []
    for _ in range(2):
        bitquilt.quantize(model, **QUICK, recipe="Q4_K_M", output=tmp_path, progress=progress)
    assert progress.shares[0] < 0.02
    assert progress.shares[1] > 0.05


def test_a_work_directory_in_use_is_refused_before_the_machine_is_measured(
    model, tmp_path, capfd, monkeypatch
):
    def measured(_):
        raise AssertionError

    monkeypatch.setattr("bitquilt.forecast.estimate.machine_speed", measured)
    with WorkDir(tmp_path / "w", {}):
        asked = ["quantize", model, "--bits", "5", "-o", tmp_path, "--work-dir", tmp_path / "w"]
        assert invoke(*asked) == 2
    assert re.fullmatch(
        r"bitquilt: work directory .*/w is in use by another run; wait for it, or choose another "
        r"with --work-dir\n",
        capfd.readouterr().err,
    )


def test_a_full_disk_is_refused_in_one_sentence_before_the_work(
    model, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 2 * 10**7, 2 * 10**7))
    assert invoke("quantize", model, "--bits", "5", "-o", tmp_path) == 2
    *_, sentence = capfd.readouterr().err.splitlines()
    assert re.fullmatch(
        r"bitquilt: the disk has 20\.00 MB free, but .*MB are needed there for .*\.work \(.*\) and "
        r".* \(.*\); free space, or choose other directories with --work-dir and --output",
        sentence,
    )
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_not_called_full(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    both = {"work_dir": small_disk / "a.work", "output": small_disk}
    words = r"a\.work was not written: no write permission there; .* with work_dir$"
    with pytest.raises(UserError, match=words):
        disk.DiskUse(work_bytes=10**9, output_bytes=10**9, **both).require_room()


def test_two_disks_are_asked_one_by_one(tmp_path, monkeypatch):
    use = disk.DiskUse(
        work_dir=tmp_path / "a", work_bytes=70, output=tmp_path / "b", output_bytes=70
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 0, 100))
    with pytest.raises(UserError, match="140 B are needed"):
        use.require_room()
    monkeypatch.setattr(disk, "_device", lambda path: path.name)
    use.require_room()


def test_plan_tells_it_too(model, capfd):
    assert invoke("plan", model, "--bits", "5", "--threads", "1") == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "The work runs on the CPU, in 1 thread." in said
    assert re.search(r"the work takes about \d+ s and \d+\.\d+ [MG]B of memory", said)
    assert invoke("plan", model, "--bits", "5", "--json") == 0
    forecast = json.loads(capfd.readouterr().out)["forecast"]
    assert {"device", "tokens", "seconds", "memory_bytes", "work_bytes", "output_bytes"} <= {
        *forecast
    }
