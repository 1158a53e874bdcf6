"""Turns are counted, limits are real, and what cannot be run is refused before anything is."""

from __future__ import annotations

import json
import mmap
import os

import numpy as np
import pytest

from bitquilt.errors import UserError
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.evaluation.speed import Load, Runner, bench
from bitquilt.models import open_checkpoint
from bitquilt.runtime.hardware import Hardware, resident_bytes
from bitquilt.targets import GGUF
from tests.factories import tiny_checkpoint
from tests.quick import invoke
from tests.targets.conftest import Model

ROUNDS = 3
"""Odd, so that the median of the rates is the rate of the median."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    source = tiny_checkpoint(folder, layers=1)
    model = Model(source, open_checkpoint(source))
    paths = []
    for qtype in ("Q8_0", "Q4_0"):
        paths.append(folder / f"{qtype}.gguf")
        GGUF.write(model.checkpoint, model.on(qtype), model.packed, paths[-1], "{}")
    return paths


@pytest.fixture(scope="module")
def found(files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        return bench(files, prompt=[16], batch=[1, 3], answer=16, rounds=ROUNDS)


def test_every_model_has_every_load_side_by_side(found):
    loads = [Load(prompt=16, batch=batch, answer=16) for batch in (1, 3)]
    assert [speed.load for speed in found.speeds] == [load for load in loads for _ in range(2)]
    assert [speed.name for speed in found.speeds] == ["Q8_0.gguf", "Q4_0.gguf"] * 2


def test_figures_hang_together(found, files):
    for speed in found.speeds:
        assert 0 < speed.slowest <= speed.answer_rate <= speed.fastest
        assert speed.first_token > 0
        assert speed.prompt_rate * speed.first_token == pytest.approx(16 * speed.load.batch)
        assert speed.resident > speed.nbytes
        assert speed.of_bandwidth > 0  # a file this small is read from the cache, beyond memory's
        assert 0 < speed.of_flops < 1


def test_prompts_longer_than_the_text_go_on_from_its_start_and_differ(files):
    with Runner(ModelFile.at(files[0]), documents=1) as runner:
        text = len(runner._tokens)
        one, other = runner._prompt(2 * text), runner._prompt(2 * text)
    assert len(one) == len(other) == 2 * text
    assert one[:text] == one[text:]
    assert one[1:] == other[:-1]


def test_limits_are_plausible():
    machine = Hardware.measured()
    assert machine.name
    assert 1e9 < machine.bandwidth < 1e13
    assert 1e9 < machine.flops < 1e15


def test_resident_memory_is_that_of_the_process():
    before = resident_bytes(os.getpid())
    # not from the heap, which may have room that was counted before
    with mmap.mmap(-1, 64_000_000) as held:
        np.frombuffer(held, np.uint8)[:] = 1
        assert resident_bytes(os.getpid()) - before == pytest.approx(64_000_000, rel=0.1)


def test_more_than_the_context_is_refused(files):
    with pytest.raises(UserError, match="a context of 1,024 tokens, but 1,100 are asked for"):
        bench(files[:1], prompt=[1000], batch=[1], answer=100, rounds=1)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("0", "--prompt is 0; give a number that is at least 1"),
        ("many", "'many' is not a list of whole numbers like 128,512"),
        ("128,", "'128,' is not a list of whole numbers like 128,512"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(files, value, sentence, capfd):
    assert invoke("bench", files[0], "--prompt", value) == 2
    assert sentence in capfd.readouterr().err


def test_every_column_of_the_table_has_its_unit(found, monkeypatch, files, capfd):
    monkeypatch.setattr("bitquilt.evaluation.speed.bench", lambda *_: found)
    assert invoke("bench", *files) == 0
    printed = capfd.readouterr().out
    heading = printed[: printed.index("───")]
    assert heading.count("tokens/s") == 2
    row = next(line for line in printed.splitlines() if " ms " in line)
    assert row.count(" ms ") == 2


def test_a_machine_that_others_use_is_said_to_be_faster_alone(found, monkeypatch, files, capfd):
    monkeypatch.setattr("bitquilt.evaluation.speed.bench", lambda *_: found)
    for load, said in ((0.9, False), (3.0, True)):
        monkeypatch.setattr("bitquilt.runtime.load.load_per_core", lambda load=load: load)
        assert invoke("bench", *files) == 0
        about = capfd.readouterr().out.split("About these figures:")[1].splitlines()
        assert ("- Other programs used this machine" in "\n".join(about)) == said
        assert max(map(len, about)) <= 80


def test_bench_of_the_demo_runs_in_torch(capfd):
    options = ("--prompt", "8", "--batch", "1,2", "--answer", "16", "--rounds", "1")
    assert invoke("bench", "demo", *options, "--json") == 0
    speeds = json.loads(capfd.readouterr().out)["speeds"]
    assert [(one["name"], one["engine"], one["load"]["batch"]) for one in speeds] == [
        ("demo", "torch", 1),
        ("demo", "torch", 2),
    ]
    assert all(one["answer_rate"] > 0 and one["resident"] > one["nbytes"] > 5e7 for one in speeds)
    assert invoke("bench", "demo", "demo", *options) == 2
    assert "bitquilt: demo is given 2 times; give it once" in capfd.readouterr().err
