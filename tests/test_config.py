"""Configs: one definition of every option, for Python, the command line and the pages."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from bitquilt import (
    AllocationConfig,
    BenchConfig,
    EvalConfig,
    PlanConfig,
    QuantizeConfig,
    SearchConfig,
    TaskConfig,
    TraceConfig,
    UserError,
)
from bitquilt.cli.main import bitquilt as command_line
from bitquilt.cli.options import config_options
from bitquilt.report.config import CardConfig, PublishConfig, ReportConfig
from bitquilt.runtime.options import Options, command
from bitquilt.serve.config import ServeConfig
from bitquilt.talk.config import AnswerConfig, RunConfig

CONFIGS = (
    *(SearchConfig, PlanConfig, AllocationConfig, QuantizeConfig),
    *(EvalConfig, TraceConfig, TaskConfig, BenchConfig),
    *(AnswerConfig, RunConfig, ServeConfig),
    *(ReportConfig, CardConfig, PublishConfig),
)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_sentence(config):
    for name, known in config.described().items():
        assert known.help[0].isupper(), name
        assert known.help.rstrip("]").split("  [")[0].endswith("."), name


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (
            SearchConfig,
            {"method": "luck"},
            "SearchConfig.method is 'luck', which is not one of race",
        ),
        (SearchConfig, {"scores": "felt"}, "SearchConfig.scores is 'felt', which is not"),
        (
            SearchConfig,
            {"seconds": float("nan")},
            "SearchConfig.seconds is nan; give a number",
        ),
        (
            SearchConfig,
            {"seconds": -1.0},
            "SearchConfig.seconds is -1; give a number that is at least 0",
        ),
        (SearchConfig, {"tokens_per_second": 0.0}, "is 0; give a number that is greater than 0"),
        (SearchConfig, {"method": "evopress", "tokens_per_second": 1.0}, "cannot keep to a speed"),
        (PlanConfig, {}, "how small"),
        (PlanConfig, {"bits": []}, "^bits has no value"),
        (PlanConfig, {"bits": "4.5"}, "^bits is '4.5', which is not a value of type float"),
        (QuantizeConfig, {"bits": 4, "search": "knapsack"}, "not a value of type SearchConfig"),
        (QuantizeConfig, {"bits": 4, "tune": 1}, "^tune is 1, which is not a value of type bool"),
        (SearchConfig, {"seed": -1}, "seed is -1; give"),
        (SearchConfig, {"tokens": 1.5}, "SearchConfig.tokens is 1.5"),
        (PlanConfig, {"bits": 4.5, "size": "1MB"}, "both set the size"),
        (
            PlanConfig,
            {"bits": 0},
            "is 0; give a number that is greater than 0 and at most 32$",
        ),
        (PlanConfig, {"bits": [4, 33]}, "^bits is 33; give a number that is greater than 0"),
        (PlanConfig, {"bits": 4, "to": "onnx"}, "^to is 'onnx', which is not one of"),
        (QuantizeConfig, {"bits": 4, "rounding": "Gptq"}, "^rounding is 'Gptq', .* mean gptq"),
        (QuantizeConfig, {"bits": 4, "work_dir": ""}, "^work_dir is empty"),
        (QuantizeConfig, {"bits": 4, "calibration": ""}, "^calibration is empty"),
        (
            QuantizeConfig,
            {"recipe": "Q4_K_M", "search": SearchConfig(tokens_per_second=1.0)},
            "leaves nothing to choose by speed",
        ),
        (AnswerConfig, {"top_p": 1.5}, "^top_p is 1.5; give a number that is between 0 and 1"),
        (AnswerConfig, {"temperature": -1}, "^temperature is -1; give"),
        (AnswerConfig, {"repetition_penalty": 0.0}, "that is greater than 0"),
        (AnswerConfig, {"stop": ["end", ""]}, "^stop is empty"),
        (RunConfig, {"votes": 1}, "^votes is 1; give a number that is at least 2"),
        (ServeConfig, {"port": 65536}, "^port is 65536; give a number that is between 0 and 65535"),
        (ServeConfig, {"api_key": ""}, "the API key is empty"),
    ],
)
def test_what_cannot_be_is_refused_at_once(config, options, words):
    with pytest.raises(UserError, match=words):
        config(**options)


def test_a_config_or_its_fields():
    config = QuantizeConfig(bits=4)
    assert QuantizeConfig.of(config, {}) is config
    assert QuantizeConfig.of(None, {"bits": 4}) == config
    with pytest.raises(UserError, match="a PlanConfig was given where a QuantizeConfig belongs"):
        QuantizeConfig.of(PlanConfig(bits=4), {})
    with pytest.raises(UserError, match="were both given"):
        QuantizeConfig.of(config, {"bits": 4})
    with pytest.raises(
        UserError, match=r"no option bit; its options are bits.*did you mean bits\?"
    ):
        QuantizeConfig.of(None, {"bit": 4})
    with pytest.raises(UserError, match=r"but SearchConfig has; give search=SearchConfig\(ray=…\)"):
        QuantizeConfig.of(None, {"bits": 4, "ray": ""})


def test_several_bits_each_once():
    assert PlanConfig(bits=[3, 4.5, 3]).several_bits == (3, 4.5)
    assert PlanConfig(bits=3).several_bits == (3,)
    assert PlanConfig(recipe="Q4_K_M").several_bits == (None,)


@pytest.mark.parametrize(
    "config",
    [
        QuantizeConfig(bits=4.5),
        QuantizeConfig(bits=[3, 4.5000001], to="both", output="a b", tune=True, sequential=True),
        QuantizeConfig(bits=4.5, sequential=False),
        QuantizeConfig(size="600MB", recipe="mine.json", calibration="x.txt", work_dir="w"),
        QuantizeConfig(
            bits=4,
            search=SearchConfig(
                method="knapsack", tokens=1000, seconds=2.5, seed=3, tokens_per_second=40, ray=""
            ),
        ),
        AnswerConfig(),
        RunConfig(system="", top_p=0.5, frequency_penalty=-1.5, stop=["a, b", "--c"], votes=2),
        ServeConfig(port=0, api_key="secret"),
    ],
)
def test_a_config_is_a_command_line_and_back(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.json", "x.txt"):  # the command line looks into them
        Path(name).write_text("Some text.\n")
    words = shlex.split(command("verb", "my model", config))
    assert words[:3] == ["bitquilt", "verb", "my model"]
    found = []

    @click.command()
    @click.argument("model")
    @config_options(type(config))
    def verb(model: str, config: Options) -> None:
        found.append(config)

    verb(words[2:], standalone_mode=False)
    assert found == [config]


@pytest.mark.parametrize(
    ("verb", "config"),
    [
        ("plan", QuantizeConfig),
        ("search", AllocationConfig),
        ("quantize", QuantizeConfig),
        ("eval", EvalConfig),
        ("tasks", TaskConfig),
        ("bench", BenchConfig),
        ("run", RunConfig),
        ("chat", AnswerConfig),
        ("serve", ServeConfig),
        ("report", ReportConfig),
        ("card", CardConfig),
        ("publish", PublishConfig),
    ],
)
def test_a_verb_offers_each_option_of_its_config_with_its_sentence(verb, config):
    offered = {param.help for param in command_line.commands[verb].params if hasattr(param, "help")}
    nested: list[type[Options]] = [SearchConfig] if issubclass(config, AllocationConfig) else []
    for each in (config, *nested):
        for name, known in each.described().items():
            assert (known.help in offered) == (known.flag != ""), name


@pytest.mark.parametrize("config", CONFIGS)
def test_help_shows_every_sentence(config):
    for name, known in config.described().items():
        assert f"    {name}: {known.help}" in config.__doc__
