"""What ``eval`` prints: the original's perplexity stands beside that of every file."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from bitquilt.cli.eval import TABLES
from bitquilt.evaluation import compare
from bitquilt.evaluation.figures import DomainFigures
from bitquilt.evaluation.results import Comparison, Evaluation
from bitquilt.metrics.kl import Estimate
from tests.quick import invoke
from tests.report.conftest import estimate, evaluation, figures, protocol_figures


@pytest.fixture
def found(tmp_path) -> Evaluation:
    """An evaluation of two files; the original has perplexity 4.321."""
    evaluations = []
    for name in ("tiny-4.5bit.gguf", "a-model-of-a-long-name-4.5bit.gguf"):
        (tmp_path / name).write_bytes(name.encode())
        evaluations.append(evaluation(tmp_path / name, 0.0355))
    one, other = evaluations
    own = {name: replace(each, perplexity=estimate(4.321)) for name, each in one.own.items()}
    return replace(one, own=own, files=[*one.files, *other.files])


@pytest.fixture(autouse=True)
def any_model(monkeypatch):
    """The files need not be there; nothing of them is read."""
    for looked_up in ("options.format_of", "options.require_model", "eval.require_model"):
        monkeypatch.setattr(f"bitquilt.cli.{looked_up}", lambda _: None)


def test_a_domain_of_few_documents_has_no_interval(found, monkeypatch, capfd):
    few = {name: without_interval(each) for name, each in found.own.items()}
    file = replace(found.files[0], figures=few)
    monkeypatch.setattr(compare, "evaluate", lambda *_: replace(found, own=few, files=[file]))
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "no interval" in said.split("KL is")[0]
    assert "code: too few documents for an interval (3; at least 5 are needed)" in said
    assert "with a larger --tokens" in said


def test_a_difference_that_is_noise_is_not_compared_with_a_smaller_number(
    found, monkeypatch, capfd
):
    tiny, tinier = (Estimate(value, math.nan, math.nan) for value in (-1.68e-6, 4.13e-8))
    check = replace(found.files[0].check, apart=tiny, between=tinier)
    files = [replace(found.files[0], check=check)]
    monkeypatch.setattr(compare, "evaluate", lambda *_: replace(found, files=files))
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    assert (
        "The difference, -1.68e-06, is no more than the engine's own arithmetic explains, whose KL "
        "from torch is 4.13e-08."
    ) in " ".join(capfd.readouterr().out.split())


def test_where_nothing_has_an_interval_one_sentence_says_so(found, monkeypatch, capfd):
    """The tables of a file have values alone then; the key figures keep their mark."""
    fields = [field for table in TABLES for field in table]
    few = {
        name: replace(
            without_interval(each),
            **{f: Estimate(getattr(each, f).mean, math.nan, math.nan) for f in fields},
        )
        for name, each in found.own.items()
    }
    file = replace(found.files[0], figures=few)
    floors = [replace(floor, kl=Estimate(1e-4, math.nan, math.nan)) for floor in found.floors]
    measured = replace(found, own=few, files=[file], floors=floors)
    monkeypatch.setattr(compare, "evaluate", lambda *_: measured)
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    printed = capfd.readouterr().out
    assert printed.split("original: tiny")[0].count("no interval") == 0
    assert printed.count("no interval") == 2  # of the key figures, not in sentences
    assert printed.count("No KL has an interval: ") == 1


def without_interval(known: DomainFigures) -> DomainFigures:
    return replace(known, documents=3, kl=Estimate(0.249, math.nan, math.nan))


def test_the_key_figures_of_one_file_stand_last_too(found, monkeypatch, capfd):
    """One table has them, as at the end of `quantize`, however long the tables of domains are."""
    monkeypatch.setattr(compare, "evaluate", lambda *_: replace(found, files=found.files[:1]))
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    overview = capfd.readouterr().out.split("original: tiny")[1].split("About these figures")[0]
    rows = [line.split() for line in overview.splitlines()]
    assert ["on", "unlike", "text", "0.0355"] in [row[:4] for row in rows]


@pytest.fixture
def printed(found, monkeypatch, capfd) -> str:
    monkeypatch.setattr(compare, "evaluate", lambda *_: found)
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    return capfd.readouterr().out


def test_the_originals_perplexity_is_in_every_table_with_a_perplexity(found, printed):
    domains = len(found.own)
    assert printed.count("4.321") == domains * len(found.files) + 2  # kinds
    overview = printed[printed.index("original: tiny") :].splitlines()
    assert [line.split() for line in overview[1:3]] == [
        ["on", "unlike", "text", "4.321"],
        ["on", "like", "text", "4.321"],
    ]
    assert "5.432" in printed


def test_bits_are_told_of_the_tensors_and_of_everything_on_disk(printed):
    title = "on disk, 4.500 bits per weight (5.250 with everything on disk), in llama.cpp"
    assert printed.count(title) == 2
    assert (
        "Bits are bits per weight of the tensors and, in brackets, of everything on disk."
        in " ".join(printed.split())
    )


def test_what_the_figures_are_is_a_list_of_short_lines(printed):
    about = printed[printed.index("About these figures:") :].splitlines()
    assert about[1].startswith("- KL is in nats per token")
    assert max(map(len, about)) <= 80
    assert sum(line.startswith("- ") for line in about) >= 4
    assert all(line.startswith(("- ", "  ")) for line in about[1:-1])
    assert re.fullmatch(r"It took [\d.]+ (s|min)\.", about[-1])


def test_the_protocols_figures_are_printed_by_the_tools_names(found, monkeypatch, capfd):
    file = replace(found.files[0], wikitext=protocol_figures("wiki.test.raw"))
    monkeypatch.setattr(compare, "evaluate", lambda *_: replace(found, files=[file]))
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "Mean KLD 0.011000 ± 0.000300" in said
    assert "Same top p 94.500 ± 0.200 %" in said
    assert "90% – 99% 1,020 0.002000 ± 0.000100 99.000%" in said
    assert "The second half of each window is scored, 1,020 tokens in all" in said


def test_long_names_are_whole(printed):
    words = printed.split()
    assert {"a-model-of-a-long-", "name-4.5bit.gguf"} <= set(words)
    assert "…" not in printed.split("KL is")[-1]


def test_figures_of_an_excerpt_have_their_unit_and_their_text(printed):
    said = " ".join(printed.split())
    assert (
        "On 3,042 of the tokens, the file's KL is 0.0355 nats/token in its engine and 0.0354 in"
        in said
    )
    assert "nats/token for BF16 in llama.cpp, on 3,042 tokens. Anything below it is noise." in said
    assert "KL is in nats per token" in said


@pytest.mark.parametrize(
    ("name", "kind"), [("traces", "the reasoning"), ("answers", "the text"), (None, None)]
)
def test_what_was_asked_is_told_by_its_name(found, name, kind, monkeypatch, capfd):
    """Reasoning is not spoken of where the model does not reason."""
    of_traces = found.own["traces"]
    own = {domain: each for domain, each in found.own.items() if domain != "traces"}
    if name is not None:
        own[name] = replace(of_traces, tokens=1024, documents=8)
    files = [replace(file, figures=own) for file in found.files]
    monkeypatch.setattr(compare, "evaluate", lambda *_: replace(found, own=own, files=files))
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    said = " ".join(capfd.readouterr().out.split())
    sentence = f"“{name}” is {kind} of 8 answers that the original wrote itself, 1,024 tokens;"
    assert (sentence in said) == (name is not None)
    assert ("reasoning" in said) == (name == "traces")


def test_help_says_what_traces_are_and_what_bounds_them(capfd):
    assert invoke("eval", "--help") == 0
    said = " ".join(capfd.readouterr().out.split())
    assert (
        "--traces N The original answers N of the text's questions, with random sampling," in said
    )
    assert "0 leaves out these answers" in said
    assert "at most an eighth of --tokens in all" in said


def test_both_kinds_of_text_have_their_rows(printed):
    """In the tables of a file, and in the one with a line for each file."""
    lines = [line.split() for line in printed.splitlines()]
    assert sum(line[:4] == ["on", "unlike", "text", "0.0355"] for line in lines) == 4
    assert sum(line[:4] == ["on", "like", "text", "0.0118"] for line in lines) == 4
    said = " ".join(printed.split())
    assert (
        "figures are over 65,774 held-out tokens of 234 documents unlike bitquilt's calibration "
        "text and 65,774 held-out tokens of 234 documents like bitquilt's calibration text."
    ) in said
    assert "unlike text is of other domains." in said


def test_files_of_one_size_are_compared_on_unlike_text(found, monkeypatch, capfd):
    names = [file.name for file in found.files]
    comparison = Comparison(names=names, ahead=[estimate(0.01)])
    monkeypatch.setattr(compare, "evaluate", lambda *_: replace(found, comparisons=[comparison]))
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    assert (
        "tiny-4.5bit.gguf is the closest to the original on text unlike the calibration text: its "
        "KL is 0.01"
    ) in capfd.readouterr().out


def test_many_domains_have_one_line_each_the_worst_first(found, monkeypatch, capfd):
    domains = {f"domain{n}": figures(n / 100) for n in range(1, 9)}
    own = found.own | domains
    files = [replace(found.files[0], figures=own)]
    monkeypatch.setattr(compare, "evaluate", lambda *_: replace(found, own=own, files=files))
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    printed = capfd.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith("domain")]
    assert rows[0][:3] == ["domain,", "worst", "first"]
    assert [row[:2] for row in rows[1:3]] == [["domain8", "0.08"], ["domain7", "0.07"]]
    assert len(rows) == 9


def test_a_text_whose_kind_nobody_knows_has_one_row(found, monkeypatch, capfd):
    own = {"all": found.own["unlike"], "code": found.own["code"]}
    files = [replace(file, figures=own) for file in found.files]
    monkeypatch.setattr(compare, "evaluate", lambda *_: replace(found, own=own, files=files))
    assert invoke("eval", "tiny-4.5bit.gguf", "--against", "tiny") == 0
    printed = capfd.readouterr().out
    assert "unlike" not in printed
    assert "The figures are over 65,774 held-out tokens of 234 documents." in printed
    overview = printed[printed.index("original: tiny") :].split("\n")[0]
    assert overview.split()[-1] == "4.321"
