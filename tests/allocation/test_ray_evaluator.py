"""A cluster of two workers measures what one machine measures, even if one of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from bitquilt import qtypes
from bitquilt.allocation.evaluator import Evaluator
from bitquilt.allocation.history import History
from bitquilt.allocation.measurements import Measurements
from bitquilt.allocation.meter import Limits, Meter
from bitquilt.allocation.ray_evaluator import RayEvaluator
from bitquilt.allocation.searching import SearchTask, run_search
from bitquilt.allocation.space import AllocationSpace, Candidate
from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel
from bitquilt.models import open_checkpoint
from bitquilt.rounding.nearest import fit
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.progress import Recorded

WINDOWS, LENGTH = 24, 65
QTYPES = ("IQ3_S", "Q4_0", "Q8_0")


def packed(checkpoint, module, qtype):
    weight = checkpoint.load(f"{module}.weight")
    return qtypes.get(qtype).pack(fit(qtypes.get(qtype), weight, None))


class Run:
    """A search on a tiny model, on this machine or on a cluster."""

    def __init__(self, place):
        self.checkpoint = open_checkpoint(tiny_checkpoint(place, layers=1))
        tokens = torch.randint(
            3, 500, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(0)
        )
        with WorkDir(place / "work", {}) as work:
            self.teacher = OriginalModel(self.checkpoint, work).on(tokens)
        self.cells = {
            (module, qtype): packed(self.checkpoint, module, qtype)
            for module in self.checkpoint.matrices
            for qtype in QTYPES
        }
        sets = {
            module: [
                Candidate(g, qtypes.get(g).nbytes(*shape), shape[0] * 4.0 ** -qtypes.get(g).bits)
                for g in QTYPES
            ]
            for module, shape in self.checkpoint.matrices.items()
        }
        space = AllocationSpace.of(sets)
        smallest = space.nbytes((0,) * len(sets))
        self.task = SearchTask(space, {"one": int(smallest * 1.3)}, 0)

    def packed(self, module, qtype):
        return self.cells[module, qtype]

    def search(self, evaluate, history):
        measurements = Measurements(
            lambda allocations, windows: evaluate(self.teacher, allocations, windows),
            WINDOWS,
            Meter(LENGTH),
            History(history),
        )
        limits = Limits(60 * LENGTH)
        return run_search("race", self.task, measurements, limits, Silent())["one"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("ray"))


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one core each."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'bitquilt[ray]'")
    ray.init(num_cpus=2, object_store_memory=100_000_000, log_to_driver=False)
    yield ray
    ray.shutdown()


def workers():
    """Processes of this test's cluster that measure now: grandchildren, by way of its raylet."""
    ps = ["ps", "-eo", "pid=,ppid=,args="]
    listed = subprocess.run(ps, capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listed.splitlines()]
    own = {pid for pid, parent, _ in lines if int(parent) == os.getpid()}
    return [int(pid) for pid, parent, args in lines if parent in own and "ray::_kl" in args]


class Killer(threading.Thread):
    """Kills the first worker that it finds at work."""

    def __init__(self):
        super().__init__(daemon=True)
        self.killed = []

    def run(self):
        until = time.monotonic() + 120
        while not self.killed and time.monotonic() < until:
            for pid in workers()[:1]:
                with suppress(ProcessLookupError):  # it ended by itself
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(pid)
            time.sleep(0.1)


def test_one_killed_and_the_same_recipe(run, cluster, tmp_path):
    said = []
    remote = RayEvaluator(run.checkpoint, run.packed, "", "highest", Recorded(lines=said), cpus=1)
    assert said == ["Ray: 2 workers on 1 machine measure mixes of types"]
    local = Evaluator(run.checkpoint, run.packed)
    local.precision = "highest"
    killer = Killer()
    killer.start()
    found = run.search(remote, tmp_path / "remote.jsonl")
    killer.join()
    assert killer.killed
    assert found == run.search(local, tmp_path / "local.jsonl")
    allocations = [run.task.space.allocation(v) for v in (found, tuple(0 for _ in found))]
    np.testing.assert_allclose(
        remote(run.teacher, allocations, [5, 2]),
        local(run.teacher, allocations, [5, 2]),
        rtol=1e-3,
        atol=1e-6,
    )


def test_without_ray_it_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'bitquilt\[ray\]'"):
        RayEvaluator(run.checkpoint, run.packed, "", "highest", Silent())
