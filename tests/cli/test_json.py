"""``--json``: one object on standard output for every verb, everything else on standard error."""

from __future__ import annotations

import json
import shutil

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
        parts = [plan["breakdown"][part] for part in ("norms", "embedding", "codes", "scales")]
        assert plan["bits"] / plan["bits_on_disk"] == pytest.approx(sum(parts) / plan["bytes"])
        assert 4.4 < plan["bits"] <= 4.5 < plan["bits_on_disk"]


def test_plan_of_a_config_alone_says_that_the_tokenizer_is_not_counted(asked, model, capfd):
    request = ("plan", model / "config.json", "--bits", "4.5", "--to", "both")
    plans = asked(*request)["plans"]
    assert [plan["tokenizer_counted"] for plan in plans] == [False, False]
    assert invoke(*request) == 0
    assert capfd.readouterr().out.count("The tokenizer is not included") == 2


def test_quantize_and_run(asked, model, tmp_path):
    result = asked("quantize", model, "--recipe", "Q8_0", "-o", tmp_path)
    (output,) = result["outputs"]
    assert output["path"] == str(tmp_path / "tiny-llama4_text-Q8_0.gguf")
    assert output["figures"]["unlike"]["kl"]["mean"] < 0.1
    answer = asked("run", output["path"], "What is 347 + 585?", "--max-tokens", "3")
    assert answer["prompt"] == "What is 347 + 585?"
    assert isinstance(answer["answer"], str)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "demo", "--bits", "many"), "Invalid value for '--bits'"),
        (("plan", "demo", "--recipe", "q4_k_m"), "did you mean Q4_K_M?"),
        (("inspect", "nowhere/at/all"), "nowhere/at/all does not exist"),
        (("imatrix", "nowhere/at/all"), "nowhere/at/all does not exist"),
        (("trim", "demo", "-o", "small"), "which tokens should be kept?"),
        (("quantize", "demo"), "how small should it be?"),
        (("search", "demo", "--recipe", "Q4_K_M"), "leaves nothing to search"),
        (("run", "no.gguf", "Hi"), "no.gguf does not exist"),
        (("eval", "no.gguf", "--against", "demo"), "no.gguf does not exist"),
        (("recipe", "from", "no.gguf"), "no.gguf does not exist"),
        (("compare", "no.gguf", "no.gguf"), "no.gguf does not exist"),
        (("pair", "no.gguf", "demo"), "no.gguf does not exist"),
        (("tasks", "no.gguf", "--tasks", "demo"), "no.gguf does not exist"),
        (("bench", "no.gguf"), "no.gguf does not exist"),
        (("report", "no.work"), "no.work does not exist; check the path"),
        (("card", "no.gguf", "--against", "demo", "--repo", "a/b"), "no.gguf does not exist"),
        (("publish", "no.gguf", "--against", "demo", "--repo", "a/b"), "no.gguf does not exist"),
        (("clean", "nowhere"), "nowhere is not a directory"),
        (("plan",), "Missing argument 'MODEL'"),
    ],
)
def test_errors_are_objects_too(capfd, arguments, said):
    assert invoke(*arguments, "--json") == 2
    printed = capfd.readouterr()
    error = json.loads(printed.out)["error"]
    assert said in error["sentence"]
    assert error["code"] == 2
    assert error["sentence"] in printed.err


def test_every_verb_with_json_is_among_them():
    from bitquilt.cli.main import bitquilt
    from bitquilt.cli.options import options_of

    having = {name for name, verb in bitquilt.commands.items() if "--json" in options_of(verb)}
    mark = test_errors_are_objects_too.pytestmark[0]
    assert having == {arguments[0] for arguments, _ in mark.args[1]}


def test_a_part_that_cannot_be_made_is_in_the_object(capfd, model):
    assert invoke("plan", model, "--bits", "1,6", "--json") == 2
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    assert [plan["target"] for plan in found["plans"]] == ["gguf"]
    assert found["error"]["sentence"].startswith("1bit in gguf: ")
    assert found["error"]["sentence"] in printed.err


def test_pair(asked, model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    found = asked("pair", model, copy, "--answers", "1", "--max-tokens", "8")
    assert found["agreement"] == 1.0
    assert {gain["draft"] for gain in found["gains"]} == {1, 2, 3, 4, 6}
