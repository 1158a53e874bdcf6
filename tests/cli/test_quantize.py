"""What ``quantize`` prints when it is done: all figures of one column are of one text."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bitquilt import (
    EngineExcerpt,
    Estimate,
    Figures,
    HeldOutFigures,
    Output,
    QuantizeResult,
    pipeline,
)
from bitquilt.targets import GGUF, MLX
from tests.quick import invoke

NAN = math.nan


def figures(kl, perplexity, tokens, engine="torch") -> Figures:
    return Figures(
        kl=Estimate(kl, 0.8 * kl, 1.2 * kl),
        agreement=Estimate(0.906, 0.89, 0.92),
        perplexity=Estimate(perplexity, 0.9 * perplexity, 1.1 * perplexity),
        engine=engine,
        tokens=tokens,
        documents=23,
    )


def both(kl, perplexity, tokens) -> HeldOutFigures:
    """Figures on unlike text; on like text the KL is a third, the perplexity a half."""
    return HeldOutFigures(
        unlike=figures(kl, perplexity, tokens), like=figures(kl / 3, perplexity / 2, tokens)
    )


def output(name: str, engine: EngineExcerpt | None) -> Output:
    return Output(
        target="gguf",
        path=Path("out") / name,
        nbytes=7_380_000,
        bits=4.5,
        bits_on_disk=4.71,
        allocation={},
        source="race",
        rankings=(),
        figures=both(0.0388, 27.1, 8176),
        engine=engine,
        note="not run: no check was asked for" if engine is None else engine.judged(GGUF),
    )


def excerpt(in_engine: float, in_torch: float) -> EngineExcerpt:
    return EngineExcerpt(
        in_engine=figures(in_engine, 26_907.0, 1016, "llama.cpp"),
        in_torch=figures(in_torch, 26_911.0, 1016),
    )


@pytest.fixture
def printed(monkeypatch, capfd):
    """Give what is printed about outputs, each run of spaces as one."""

    def print_it(*outputs: Output, **changed: object) -> str:
        result = QuantizeResult(
            vision=None,
            stored_as="BF16",
            model="tiny",
            original=both(0.0, 25.6, 8176),
            outputs=list(outputs),
            seconds=225.0,
            work_dir=Path("out/tiny.work"),
            seconds_in_all=224.5,
        )
        monkeypatch.setattr(pipeline, "quantize", lambda *_: replace(result, **changed))
        assert invoke("quantize", "demo", "--bits", "4.5") == 0
        return capfd.readouterr().out

    return print_it


def test_no_column_holds_figures_of_another_text(printed):
    text = printed(output("tiny-4.5bit.gguf", excerpt(0.0412, 0.0398)))
    table, below = parts(text)
    assert "25.6" in table
    assert "27.1" in table
    for of_excerpt in ("26,907", "26,911", "0.0412", "0.0398", "llama.cpp"):
        assert of_excerpt not in table
    assert "perplexity" not in below
    assert (
        "The text is held out: 8,176 tokens of 23 documents unlike the calibration text and 8,176 "
        "tokens of 23 documents like the calibration text." in below
    )
    assert (
        "tiny-4.5bit.gguf: llama.cpp loads it and splits text into the same tokens; on 1,016 of "
        "the tokens its excerpt KL is 0.0412 nats/token there and 0.0398 in torch;"
    ) in below
    assert "This is the closing KL. Do not compare it with a selection KL, which is of a" in below


def parts(text: str) -> tuple[str, str]:
    """What is printed up to the table, and what is said below it, its lines joined."""
    table, below = text.split("About these figures:")
    return table, " ".join(below.split())


def test_the_key_figure_comes_first_and_no_line_is_long(printed):
    lines = printed(output("tiny-4.5bit.gguf", excerpt(0.0412, 0.0398))).splitlines()
    assert lines[0] == "out/tiny-4.5bit.gguf: 7.38 MB, KL 0.0388 nats/token from the original"
    about = lines[lines.index("About these figures:") :]
    assert max(map(len, about[:-1])) <= 80  # the last one is a command to copy
    assert "The files in their engines:" in about
    assert "It took 4 min." in about


@pytest.mark.parametrize(
    ("target", "in_engine", "in_torch", "verdict"),
    [
        (GGUF, 0.0323, 0.0224, "the difference is as usual, since llama.cpp rounds activations to"),
        (GGUF, 0.0724, 0.0224, "the difference is unusual: llama.cpp rounds activations to 8 bits"),
        (GGUF, 0.3, 0.27, "the difference is as usual"),
        (MLX, 0.0724, 0.0624, "the difference is as usual"),
        (MLX, 0.0424, 0.0224, "the difference is unusual: mlx-lm computes in bfloat16"),
        (MLX, 0.0403001, 0.0403, "is 0.0403 nats/token there as in torch"),
    ],
)
def test_a_difference_between_engine_and_torch_is_judged(target, in_engine, in_torch, verdict):
    assert verdict in excerpt(in_engine, in_torch).judged(target)


def test_bits_are_told_of_the_tensors_and_of_everything_on_disk(printed):
    table, below = parts(printed(output("tiny-4.5bit.gguf", None)))
    assert re.search(r"7\.38 MB +4\.500 .*\n.* \(4\.71\) ", table)
    assert (
        "Bits are bits per weight of the tensors and, in brackets, of everything on disk" in below
    )


def test_rows_are_named_by_file_and_fit_a_terminal(printed):
    long = "SmolLM2-135M-Instruct-4.5bit.gguf"
    text = printed(output("tiny-4.5bit.gguf", None), output(long, None))
    table, below = parts(text)
    assert "tiny-4.5bit.gguf" in table
    assert " SmolLM2-135M- " in table
    assert " Instruct-4.5bit.gguf " in table
    assert table.count("types: race") == 2
    assert " original:" in table
    assert max(map(len, table.splitlines()[2:])) <= 80  # below the sentence of each file
    assert f"{long}: not run" in below


def test_what_cannot_be_told_is_printed_as_it_is(printed):
    unknown = figures(NAN, NAN, 75, "mlx-lm")
    of_engine = EngineExcerpt(in_engine=unknown, in_torch=figures(0.08, 9.0, 75))
    text = printed(
        replace(output("tiny.gguf", of_engine), figures=HeldOutFigures(unlike=unknown, like=None))
    )
    assert (
        "its excerpt KL is nan nats/token there and 0.08 in torch; the difference is"
        in parts(text)[1]
    )


def test_a_closing_text_of_few_documents_has_no_interval(printed):
    known = figures(0.249, 27.1, 96)
    few = replace(
        known,
        kl=Estimate(0.249, NAN, NAN),
        agreement=Estimate(0.9, NAN, NAN),
        documents=3,
    )
    of_few = HeldOutFigures(unlike=few, like=None)
    made = replace(output("tiny.gguf", None), figures=of_few)
    table, below = parts(printed(made, original=of_few))
    assert "no interval" in table
    assert "Too few documents for an interval (3; at least 5 are needed)" in below
    assert "`bitquilt eval` reads more of them" in below
    assert "95 %" not in below
    assert "Intervals are 95 %, over documents" in " ".join(
        printed(output("tiny.gguf", None)).split()
    )


def test_a_large_perplexity_has_its_digits(printed):
    text = printed(replace(output("tiny.gguf", None), figures=both(9.1, 26_907.4, 8176)))
    assert "26,907" in text
    assert "e+04" not in text


def test_the_time_of_interrupted_runs_is_told_too(printed):
    made = output("tiny.gguf", None)
    assert "It took 4 min.\n" in printed(made)
    resumed = printed(made, seconds=12.0, seconds_in_all=237.0)
    assert "It took 12 s, and 4 min in all runs with this work directory.\n" in resumed
    nearly = printed(made, seconds=225.0, seconds_in_all=237.0)
    assert "It took 4 min.\n" in nearly


def rows(text: str) -> list[list[str]]:
    """The words of each line of the table."""
    return [line.split() for line in parts(text)[0].splitlines()]


def test_both_kinds_of_text_have_their_rows(printed):
    text = printed(output("tiny-4.5bit.gguf", None))
    found = rows(text)
    name = next(n for n, row in enumerate(found) if row[:1] == ["tiny-4.5bit.gguf"])
    unlike, _, like, _ = found[name + 2 : name + 6]
    assert unlike == ["on", "unlike", "text", "0.0388", "90.60%", "27.1"]
    assert like == ["on", "like", "text", "0.0129", "90.60%", "13.55"]
    assert ["on", "unlike", "text", "25.6"] in found[:name]
    assert ["on", "like", "text", "12.8"] in found[:name]
    assert (
        "Like text is of the same domains as the calibration text; unlike text is of other "
        "domains." in parts(text)[1]
    )


def test_where_there_is_one_kind_of_text_the_other_is_said_to_be_missing(printed):
    only = HeldOutFigures(unlike=None, like=figures(0.0388, 27.1, 8176))
    text = printed(replace(output("tiny.gguf", None), figures=only), original=only)
    assert ["on", "like", "text", "0.0388", "90.60%", "27.1"] in rows(text)
    assert "on unlike" not in text
    assert "There is no held-out text unlike the calibration text." in parts(text)[1]
