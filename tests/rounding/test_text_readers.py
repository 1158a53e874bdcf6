"""A text that several processes read, against the same text read in one."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from bitquilt.calibration import collect
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.rounding.layer_bank import ESTIMATED, POLISHED, LayerBank
from bitquilt.rounding.rounders import TwoPassRounder
from bitquilt.rounding.text_pass import TextPass
from bitquilt.rounding.text_readers import ReaderProcesses, TextReaders
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint

TOKENS = torch.randint(3, 200, (6, 64), generator=torch.Generator().manual_seed(0))
FOLDS = torch.tensor([0, 1, 2, 0, 1, 2])
DIED = (
    "A process of another GPU has died; the main process reads the text again, for the blocks "
    "that are left"
)


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


def opened(model, place):
    return LayerBank(open_checkpoint(model), WorkDir(place, {}), "full")


def rounded(model, place, devices, progress=None, before=lambda _: None):
    """Round everything on two types, in two passes; return the bank."""
    bank = opened(model, place)
    candidates = {module: ["Q4_0", "IQ4_NL"] for module in bank.checkpoint.matrices}
    progress = progress or Silent()
    with ReaderProcesses(devices) as processes:
        readers = TextReaders(str(model), bank, processes, progress)
        before(processes.readers)
        rounder = TwoPassRounder(bank, TOKENS, FOLDS, candidates, readers, progress)
        rounder.score(candidates, "gguf")
        rounder.make(candidates, "gguf")
    return bank


def artefacts(bank):
    """Return artefacts and their facts by name."""
    place = bank.work.path
    names = [
        str(file.relative_to(place).with_suffix(""))
        for folder in (ESTIMATED, POLISHED)
        for file in (place / folder).rglob("*.safetensors")
    ]
    found = {name: (bank.work.load(name), bank.work.facts(name)) for name in names}
    return {name: (arrays(tensors), facts) for name, (tensors, facts) in found.items()}


def arrays(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def write_moments(bank, candidates, _):
    """Keep the moments of a block, instead of rounding it."""
    modules = [module for module in candidates if module != EMBEDDING]
    if modules:
        moments = bank.statistics._moments
        kinds = moments.hessians, moments.outputs, moments.weights, moments.diagonals
        own = {f"{n}/{name}": t for n, kind in enumerate(kinds) for name, t in kind.items()}
        bank.work.save(f"seen/{os.getpid()}/{moments.layer}", own, {})


def always(*_):
    return 1.0


def seen(model, place, devices):
    """Return what processes saw of each block, and what they left of the whole text."""
    bank = opened(model, place)
    candidates = {module: ["Q4_0"] for module in bank.checkpoint.matrices}
    with ReaderProcesses(devices) as processes:
        readers = TextReaders(str(model), bank, processes, Silent())
        task = TextPass(TOKENS, FOLDS, candidates, always, write_moments)
        readers.read(task, Silent(), Silent())
    files = sorted((place / "seen").rglob("*.safetensors"))
    names = [str(file.relative_to(place).with_suffix("")) for file in files]
    blocks = {name.split("/")[-1]: bank.work.load(name) for name in names}
    assert len(blocks) == len(names) == bank.checkpoint.layers
    whole = {name: bank.work.load(name) for name in ("gradients", "hessians/head")}
    return len({name.split("/")[1] for name in names}), blocks | whole


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]], ids=["two", "three"])
def test_processes_sum_what_one_does(model, tmp_path, monkeypatch, devices):
    processes, there = seen(model, tmp_path / "there", devices)
    assert processes == 2  # of a model of two blocks
    monkeypatch.setattr(collect, "_head_gradient", in_shares(len(devices) + 1))
    _, here = seen(model, tmp_path / "here", [])
    for name, tensors in here.items():
        assert there[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(there[name][key], tensor, rtol=1e-3, atol=1e-6)


def write_hessian_of_table(bank, candidates, _):
    """Keep what the calibration text says of an embedding or a head, and who asked."""
    for module in {EMBEDDING, HEAD} & candidates.keys():
        name = f"tables/{os.getpid()}/{module}"
        bank.work.save(name, {"hessian": bank.statistics.hessian(module)}, {})


def test_embedding_and_head_go_to_two_processes(tmp_path):
    model = tiny_checkpoint(tmp_path, "qwen3", tied=False)
    bank = opened(model, tmp_path / "work")
    candidates = {module: ["Q4_0"] for module in bank.checkpoint.matrices}
    with ReaderProcesses(["cpu", "cpu"]) as processes:
        readers = TextReaders(str(model), bank, processes, Silent())
        task = TextPass(TOKENS, FOLDS, candidates, always, write_hessian_of_table)
        readers.read(task, Silent(), Silent())
    files = list((tmp_path / "work" / "tables").rglob("*.safetensors"))
    assert sorted(file.stem for file in files) == sorted([EMBEDDING, HEAD])
    assert len({file.relative_to(tmp_path / "work" / "tables").parts[0] for file in files}) == 2


def in_shares(count):
    """The gradient of the head, with labels drawn share by share as several processes do."""
    usual, order = collect._head_gradient, FOLDS.argsort(stable=True)

    def drawn(model, hidden, _):
        gradient, fisher = torch.empty_like(hidden), 0
        for seed in range(count):
            own = torch.arange(len(order))[seed::count]
            gradient[own], part = usual(model, hidden[own], seed)
            fisher = fisher + part * len(own) / len(order)
        return gradient, fisher

    return drawn


def test_as_many_processes_make_the_same_bytes(model, tmp_path):
    first = artefacts(rounded(model, tmp_path / "first", ["cpu"]))
    assert first
    assert artefacts(rounded(model, tmp_path / "second", ["cpu"])) == first


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]], ids=["all", "one"])
def test_where_one_dies_the_first_reads_again(model, tmp_path, devices):
    here, said = artefacts(rounded(model, tmp_path / "here", [])), Lines()

    def one_dies(readers):
        readers[0].process.send_signal(signal.SIGKILL)
        readers[0].process.wait()

    there = artefacts(rounded(model, tmp_path / "there", devices, said, one_dies))
    assert there == here
    assert said.lines == [DIED]


def dies_elsewhere(bank, candidates, says):
    """A step that kills the process of another device."""
    if os.environ.get("MAIN") != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    write_moments(bank, candidates, says)


def test_one_that_dies_at_a_block_leaves_it_to_the_first(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MAIN", str(os.getpid()))
    bank, said = opened(model, tmp_path / "work"), Lines()
    candidates = {module: ["Q4_0"] for module in bank.checkpoint.matrices}
    with ReaderProcesses(["cpu"]) as processes:
        readers = TextReaders(str(model), bank, processes, said)
        task = TextPass(TOKENS, FOLDS, candidates, always, dies_elsewhere)
        readers.read(task, Silent(), Silent())
        assert readers.count == 1
    assert said.lines == [DIED]
    layers = {file.stem for file in (tmp_path / "work" / "seen").rglob("*.safetensors")}
    assert layers == {str(layer) for layer in range(bank.checkpoint.layers)}


def refused_elsewhere(*_):
    if os.environ.get("MAIN") != str(os.getpid()):
        raise UserError("this block cannot be rounded")


def test_what_a_block_is_refused_for_is_raised_here(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MAIN", str(os.getpid()))
    bank = opened(model, tmp_path / "work")
    candidates = {module: ["Q4_0"] for module in bank.checkpoint.matrices}
    task = TextPass(TOKENS, FOLDS, candidates, always, refused_elsewhere)
    refusal = pytest.raises(UserError, match="this block cannot be rounded")
    with ReaderProcesses(["cpu"]) as processes, refusal:
        readers = TextReaders(str(model), bank, processes, Silent())
        readers.read(task, Silent(), Silent())


@pytest.mark.parametrize("knows_the_job", [False, True])
def test_an_interrupted_run_leaves_no_process(model, tmp_path, knows_the_job):
    processes = ReaderProcesses(["cpu"])
    if knows_the_job:
        TextReaders(str(model), opened(model, tmp_path / "work"), processes, Silent())
    started = [reader.process for reader in processes.readers]

    def interrupted():
        with processes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(process.poll() is not None for process in started)


def test_a_process_ends_by_itself_where_no_job_comes():
    processes = ReaderProcesses(["cpu"])
    (reader,) = processes.readers
    reader.connection.close()
    assert reader.process.wait(timeout=60) == 0
    processes.stop()
