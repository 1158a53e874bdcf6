"""The device and the threads that were asked for: one place that all others ask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitquilt import UserError
from bitquilt.engines import llamacpp
from bitquilt.runtime import device
from bitquilt.runtime.compute import asked_threads, asking
from bitquilt.runtime.device import compute_device, computing, device_name
from tests.quick import invoke


def test_without_a_gpu_cuda_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    missing = r"device='cuda' is not available: .*; leave it out, or give device='cpu'"
    with pytest.raises(UserError, match=missing), computing("cuda", None):
        pass
    with computing("auto", None):
        assert compute_device().type == "cpu"


def test_the_cpu_can_be_asked_for_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compute_device().type == "cuda"
    with computing("cpu", None):
        assert compute_device().type == "cpu"
    assert compute_device().type == "cuda"


def test_threads_are_those_of_torch_and_of_llamacpp_and_only_within(monkeypatch):
    opened = []
    monkeypatch.setattr(llamacpp, "RemoteEngine", lambda _, options: opened.append(options))
    monkeypatch.setattr(llamacpp, "require_finite_weights", lambda _: None)
    before = torch.get_num_threads()
    with computing("auto", 3):
        assert torch.get_num_threads() == 3
        assert device_name() == "the CPU, in 3 threads" or compute_device().type == "cuda"
        llamacpp.open_llamacpp(Path("model.gguf"))
    llamacpp.open_llamacpp(Path("model.gguf"))
    assert torch.get_num_threads() == before
    assert [options["threads"] for options in opened] == [3, None]


def test_who_asks_within_another_is_heard_until_its_end():
    with asking(threads=2):
        with asking(threads=5):
            assert asked_threads() == 5
        assert asked_threads() == 2
    assert asked_threads() is None


@pytest.mark.parametrize("verb", ["quantize", "search", "plan"])
def test_every_verb_that_computes_refuses_a_device_that_is_not_there(capfd, monkeypatch, verb):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    assert invoke(verb, "demo", "--bits", "5", "--device", "cuda") == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("bitquilt: --device cuda is not available")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    "verb", ["quantize", "search", "plan", "eval", "tasks", "bench", "run", "chat", "serve"]
)
def test_threads_can_be_said_wherever_torch_or_an_engine_computes(capfd, verb):
    assert invoke(verb, "--help") == 0
    assert "--threads N" in capfd.readouterr().out
    assert invoke(verb, "--threads", "0") == 2
    assert "--threads" in capfd.readouterr().err
