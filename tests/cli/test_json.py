"""``--json``: one object on standard output for every verb, everything else on standard error."""

from __future__ import annotations

import json

import pytest

from tests.factories import tiny_checkpoint
from tests.quick import invoke


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), layers=1)


@pytest.fixture
def asked(capfd):
    """Run a command; gives the object that it printed."""

    def run(*arguments):
        assert invoke(*arguments, "--json") == 0
        printed = json.loads(capfd.readouterr().out)
        assert isinstance(printed, dict)
        return printed

    return run


def test_inspect(asked, model):
    found = asked("inspect", model)
    assert found["architecture"] == "llama4_text"
    assert found["parameters"] == 721_664
    assert {part["name"] for part in found["parts"]} >= {"embedding", "attention"}


def test_plan(asked, model):
    plans = asked("plan", model, "--bits", "4.5", "--to", "both")["plans"]
    assert [plan["target"] for plan in plans] == ["gguf", "mlx"]
    for plan in plans:
        assert sum(plan["breakdown"].values()) == plan["bytes"]
        assert len(plan["allocation"]) == 8
        assert plan["tokenizer_counted"]


def test_plan_of_a_config_alone_says_that_the_tokenizer_is_not_counted(asked, model, capfd):
    request = ("plan", model / "config.json", "--bits", "4.5", "--to", "both")
    plans = asked(*request)["plans"]
    assert [plan["tokenizer_counted"] for plan in plans] == [False, False]
    assert invoke(*request) == 0
    assert capfd.readouterr().out.count("Without its tokenizer") == 2


def test_quantize_and_run(asked, model, tmp_path):
    result = asked("quantize", model, "--recipe", "Q8_0", "-o", tmp_path)
    (output,) = result["outputs"]
    assert output["path"] == str(tmp_path / "tiny-llama4_text-Q8_0.gguf")
    assert output["figures"]["kl"]["mean"] < 0.1
    answer = asked("run", output["path"], "What is 347 + 585?", "--max-tokens", "3")
    assert answer["prompt"] == "What is 347 + 585?"
    assert isinstance(answer["answer"], str)
