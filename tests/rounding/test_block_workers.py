"""Blocks in processes of their own, against the same blocks in this one."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from bitquilt.calibration import collect
from bitquilt.calibration.block_moments import BlockMoments
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.rounding.block_workers import BlockTask, BlockWorkers
from bitquilt.rounding.layer_bank import ESTIMATED, POLISHED, LayerBank
from bitquilt.rounding.rounders import TwoPassRounder
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint

TOKENS = torch.randint(3, 200, (6, 64), generator=torch.Generator().manual_seed(0))
FOLDS = torch.tensor([0, 1, 2, 0, 1, 2])


class Lines(Silent):
    """Keeps what is said of processes."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, line):
        if "process" in line:
            self.lines.append(line)


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "fast_precision", lambda _: "highest")
    return tiny_checkpoint(tmp_path, "qwen3", tied=True)


def rounded(model, place, devices, progress=None, before=lambda _: None):
    """Round everything on two types, in two passes; return artefacts and their facts by name."""
    checkpoint = open_checkpoint(model)
    bank = LayerBank(checkpoint, WorkDir(place, {}), "full")
    candidates = {module: ["Q4_0", "IQ4_NL"] for module in checkpoint.matrices}
    progress = progress or Silent()
    with BlockWorkers(str(model), bank, devices, progress) as workers:
        before(workers)
        rounder = TwoPassRounder(bank, TOKENS, FOLDS, candidates, workers, progress)
        rounder.score(candidates, "gguf")
        rounder.make(candidates, "gguf")
    names = [
        str(file.relative_to(place).with_suffix(""))
        for folder in (ESTIMATED, POLISHED)
        for file in (place / folder).rglob("*.safetensors")
    ]
    return {name: (arrays(bank.work.load(name)), bank.work.facts(name)) for name in names}


def arrays(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def test_processes_make_the_same_bytes(model, tmp_path):
    here = rounded(model, tmp_path / "here", [])
    assert here
    assert rounded(model, tmp_path / "there", ["cpu", "cpu"]) == here


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]], ids=["all", "one"])
def test_where_one_dies_the_first_does_its_blocks(model, tmp_path, devices):
    here, said = rounded(model, tmp_path / "here", []), Lines()

    def one_dies(workers):
        os.kill(workers._workers[0]._process.pid, signal.SIGKILL)
        workers._workers[0]._process.wait()

    assert rounded(model, tmp_path / "there", devices, said, one_dies) == here
    assert said.lines == [
        "The process that rounded block 1 on cpu has died; the main process takes over its blocks"
    ]


def test_what_a_process_has_no_time_for_is_done_here(model, tmp_path):
    bank = LayerBank(open_checkpoint(model), WorkDir(tmp_path / "work", {}), "full")
    tasks = [BlockTask(slow, no_moments(layer), {}) for layer in range(4)]
    with BlockWorkers(str(model), bank, ["cpu"], Silent()) as workers:
        left = [workers.do(task) for task in tasks]
        assert left == [[], [], [tasks[2]], [tasks[3]]]
        assert workers.take_back() in ([tasks[1]], [])
        assert workers.wait() == []


def slow(*_):
    time.sleep(0.2)


def no_moments(layer):
    return BlockMoments(
        layer=layer,
        hessians={},
        shares={},
        outputs={},
        output_shares={},
        weights={},
        diagonals={},
    )


def refused(*_):
    raise UserError("this block cannot be rounded")


def test_what_a_block_is_refused_for_is_raised_here(model, tmp_path):
    bank = LayerBank(open_checkpoint(model), WorkDir(tmp_path / "work", {}), "full")
    with BlockWorkers(str(model), bank, ["cpu"], Silent()) as workers:
        assert not workers.do(BlockTask(refused, no_moments(0), {}))
        with pytest.raises(UserError, match="this block cannot be rounded"):
            workers.wait()


def test_an_interrupted_run_leaves_no_process(model, tmp_path):
    bank = LayerBank(open_checkpoint(model), WorkDir(tmp_path / "work", {}), "full")
    workers = BlockWorkers(str(model), bank, ["cpu"], Silent())
    processes = [worker._process for worker in workers._workers]

    def interrupted():
        with workers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(process.poll() is not None for process in processes)
