"""lm-evaluation-harness on an engine of ours: a task of its own making, from its own code."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engines.conftest import open_in
from tests.factories import tiny_checkpoint
from tests.quick import invoke

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from bitquilt.runtime.progress import Silent
from bitquilt.tasks.harness import Harness, estimate_of

ITEMS = (
    {"question": "def wrap(self,", "endings": [" text", " chunks"], "label": 0},
    {"question": "import re\n\nclass", "endings": [" TextWrapper", " self"], "label": 1},
)
TASK = """
task: tiny_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def harness(source, tmp_path_factory):
    with open_in("torch", source, tmp_path_factory.mktemp("engine")) as engine:
        yield Harness(engine, Silent())


def log_p(source, text: str) -> list[float]:
    """Of every token after the first, by transformers."""
    ids = AutoTokenizer.from_pretrained(source).encode(text)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.inference_mode():
        table = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return table[torch.arange(len(ids) - 1), ids[1:]].tolist()


def instance(kind: str, *arguments: object) -> Instance:
    return Instance(kind, {}, arguments, 0)


@pytest.fixture
def tiny_task(tmp_path, monkeypatch):
    """An index that has one task, with data on this machine."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "items.jsonl"
    data.write_text("\n".join(map(json.dumps, ITEMS)))
    (tmp_path / "tiny_choices.yaml").write_text(TASK.format(path=data))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr("bitquilt.tasks.harness.task_manager", lambda: manager)
    return data


def test_a_task_of_the_harness(tiny_task, source, capfd):
    assert invoke("tasks", source, "--tasks", "tiny_choices", "--json") == 0
    (metric,) = json.loads(capfd.readouterr().out)["models"][0]["harness"]
    right = 0
    for item in ITEMS:
        totals = [sum(log_p(source, item["question"] + ending)) for ending in item["endings"]]
        right += max(range(2), key=lambda i: totals[i]) == item["label"]
    assert (metric["task"], metric["name"]) == ("tiny_choices", "acc")
    assert metric["value"]["mean"] == right / 2
    assert invoke("tasks", source, "--tasks", "tiny_choices", "--limit", 1) == 0
    assert "tiny_choices" in capfd.readouterr().out


def test_a_task_without_its_data_is_named(tiny_task, source, capfd):
    tiny_task.unlink()
    assert invoke("tasks", source, "--tasks", "tiny_choices") == 2
    said = capfd.readouterr().err
    assert "cannot run tiny_choices" in said
    assert "Traceback" not in said


def test_rolling_text_is_every_token_once(harness, source):
    text = "def wrap(self, text):\n    return re.sub(text)"
    (found,) = harness.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    assert found == pytest.approx(sum(log_p(source, text)), abs=1e-3)


def test_answers_end_before_the_first_stop_string(harness):
    settings = {"until": [], "max_gen_toks": 12}
    (whole,) = harness.generate_until([instance("generate_until", "def wrap(", settings)])
    stop = whole[3:5]
    asked = [instance("generate_until", "def wrap(", {**settings, "until": [stop]})] * 2
    assert harness.generate_until(asked) == [whole[: whole.index(stop)]] * 2


@pytest.mark.parametrize(
    ("name", "value", "error", "low", "high"),
    [
        ("acc", 0.95, 0.0487, 0.764, 0.991),  # 19 of 20, by hand: Wilson's
        ("exact_match", 1.0, 0.0, 0.839, 1.0),  # 20 of 20
        ("acc_norm", 0.0, 0.0, 0.0, 0.161),
        ("word_perplexity", 2.0, 2.0, 2 * math.exp(-1.959964), 2 * math.exp(1.959964)),
        ("bleu", 0.5, 1.0, -1.46, 2.46),  # what it can be is not known here
    ],
)
def test_an_interval_holds_nothing_that_its_metric_cannot_be(name, value, error, low, high):
    found = estimate_of(name, value, error, items=20)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


def test_a_metric_without_an_error_has_no_interval():
    assert str(estimate_of("acc", 0.5, math.nan, 20)) == "0.5 (no interval)"
