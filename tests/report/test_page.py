"""The page: well-formed, complete, self-contained, and only figures that somebody measured."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitquilt.errors import UserError
from bitquilt.evaluation.eval_file import save_beside, sha256
from bitquilt.metrics.kl import Estimate
from bitquilt.report import page
from bitquilt.report.run_record import load
from tests.quick import invoke
from tests.report.conftest import evaluation, write_history

VOID = {"meta", "link", "br", "img", "circle", "path", "polyline"}


class Outline(HTMLParser):
    """Checks nesting, collects tags, ids and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def html(work) -> str:
    write_history(work)
    return page.make_report(work).html


def test_page_is_whole_and_every_link_has_its_section(html):
    outline = Outline(html)
    ids = {value for name, value in outline.attributes if name == "id"}
    links = {value[1:] for name, value in outline.attributes if name == "href" and value[0] == "#"}
    assert links == ids
    assert {"size", "search", "evaluation", "samples"} <= ids
    assert outline.tags.count("h1") == 1


def test_page_asks_nothing_of_the_network_and_runs_nothing(html):
    outline = Outline(html)
    assert "script" not in outline.tags
    for name, value in outline.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")), value
    assert not re.search(r"@import|url\(", html)
    assert len(html) < 3_000_000


def test_figures_are_those_that_were_measured(html):
    text = Outline(html).text
    assert "0.0355" in text  # the evaluation, not the closing figure
    assert "0.0284 – 0.0426" in text
    assert "run bitquilt eval on all files" in text
    assert "3.3e-05 nats/token (BF16 in llama.cpp)" in text
    assert "On 3,042 of the tokens, the file's KL is 0.0355 nats/token in the engine" in text
    assert "0.0519" in text


def test_records_from_before_bits_were_of_the_tensors_are_refused(work):
    kept = next((work / "made").glob("*.json"))
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps(content | {"format": content["format"] - 1}))
    with pytest.raises(UserError, match=r"another version of bitquilt.*quantize.*again"):
        page.make_report(work)


def test_answers_are_called_reasoning_only_where_the_model_reasons(work, html):
    assert "“traces” is the reasoning of" in html
    for path in work.parent.glob("*.eval.json"):
        path.write_text(path.read_text("utf-8").replace('"traces"', '"answers"'), "utf-8")
    told = page.make_report(work).html
    assert "“answers” is the text of" in told
    assert "reasoning" not in told
    assert "traces" not in told


def test_bits_are_told_of_the_tensors_and_of_everything_on_disk(html):
    assert "4.500<small>5.250 with everything on disk</small>" in html


def test_map_has_the_bits_of_every_matrix(html):
    text = Outline(html).text
    for bits in ("4.5", "2.56", "3.44", "8.5"):
        assert f"\n{bits}" in text or bits in text
    assert "embed_tokens: Q6_K, 6.56 bits" in text


def test_samples_are_escaped_and_differences_marked(html):
    assert "What is &lt;2&gt; + 2?" in html
    assert "It is <del>4</del>, surely." in html
    assert "It is <ins>5</ins>, surely." in html


def test_reproduction_names_command_hashes_and_versions(html):
    text = Outline(html).text
    for expected in ("c" * 64, "d" * 64, "e" * 64, "torch 2.13.0", "xllamacpp 1"):
        assert expected in text


def test_plots_are_well_formed_alone_and_have_no_colour_left_open(work):
    write_history(work)
    for plot in page.make_report(work).plots:
        svg = plot.svg(page.plots.standalone_css())
        ET.fromstring(svg)
        assert "var(" not in svg
        assert "aria-label" in svg


@pytest.mark.parametrize(
    ("name", "x_title", "y_title", "legend"),
    [
        (
            "pareto",
            "size on disk, MB",
            "mean KL, nats per token",
            ["by bitquilt, for llama.cpp", "hollow: not the closest", "95 % interval"],
        ),
        ("parts", "size on disk, MB", "", ["codes", "scales", "embedding", "norms", "tokenizer"]),
        (
            "search",
            "tokens read by the search, millions",
            "KL ÷ KL of the first mix",
            ["one measured mix of types", "the best mix of types so far, gguf"],
        ),
    ],
)
def test_plots_have_axes_units_and_a_legend_alone_too(work, name, x_title, y_title, legend):
    """PNG is drawn from the same SVG."""
    write_history(work)
    (plot,) = [one for one in page.make_report(work).plots if one.name == name]
    for style in ("", page.plots.standalone_css()):
        texts = list(ET.fromstring(plot.svg(style)).iter("{http://www.w3.org/2000/svg}text"))
        shown = [(one.get("class"), one.text) for one in texts]
        assert [text for kind, text in shown if kind == "axis-title"] == [
            title for title in (x_title, y_title) if title
        ]
        assert [text for kind, text in shown if kind == "legend"] == legend
        height = float(ET.fromstring(plot.svg(style)).get("viewBox", "").split()[3])
        assert all(0 < float(one.get("y", "0")) < height for one in texts)


def test_png(work, tmp_path):
    pytest.importorskip("resvg_py", reason="resvg is not installed")
    (pareto, parts) = page.write_plots(page.make_report(work), tmp_path / "out.html")
    assert pareto.name == "out-pareto.png"
    for path in (pareto, parts):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_files_that_are_gone_or_other_bytes_are_not_reported(work):
    (work.parent / "tiny-Q4_K_M.gguf").unlink()
    (work.parent / "tiny-4.5bit.gguf").write_bytes(b"made again")
    (only,) = load(work)
    assert only.label == "4.5bit"
    assert only.evaluation is None
    assert "Evaluation" not in Outline(page.make_report(work).html).text


def test_command_writes_the_page_beside_the_directory(work, capfd):
    assert invoke("report", work) == 0
    path = work.parent / "report.html"
    assert capfd.readouterr().out.strip() == str(path)
    assert path.read_text().startswith("<!doctype html>")


def test_a_directory_is_never_replaced_by_the_page(work, tmp_path, capfd):
    place = tmp_path / "pages"
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    assert invoke("report", work, "-o", place) == 0
    assert capfd.readouterr().out == f"{place / 'report.html'}\n"
    assert (place / "mine.txt").read_text() == "mine"


def test_the_kl_is_what_a_phone_shows_first(html):
    """It is in the first sentence, and beside the name of each file."""
    head = html[: html.index("<nav")]
    assert (
        "tiny-4.5bit.gguf: a mean KL of 0.0359 nats per token from the original on text unlike "
        "the calibration text (0.018 on text like it)"
    ) in head
    headings = files_table(html)[0]
    assert headings[:3] == ["file", "mean KL,nats per token", "text"]


def test_cells_of_the_map_name_their_types_on_hover_and_for_screen_readers(html):
    cell = re.search(r'<td class="b\d" title="([^"]*)">(.*?)</td>', html)
    assert cell is not None
    assert cell[1] == "model.layers.0.mlp.down_proj: IQ2_S, 2.56 bits per weight"
    assert cell[2] == '2.56<span class="aside"> IQ2_S</span>'
    legend = html[html.index('aria-label="Types of') :].partition("</ul>")[0]
    for said in ("Q6_K: 6.56 bits", "IQ2_S: 2.56 bits", "Q8_0: 8.5 bits"):
        assert said in legend
    colours = dict(re.findall(r'swatch (b\d)"></span>(\w+):', legend))
    assert colours[cell[0][11:13]] == "IQ2_S"


def test_commands_in_sentences_are_code_and_no_backtick_is_left(html):
    assert "<code>bitquilt eval</code>" in html
    assert "`" not in Outline(html).text


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("run `a <b>` & go", "run <code>a &lt;b&gt;</code> &amp; go"),
        ("one ` alone", "one ` alone"),
        ("`a` and `b`", "<code>a</code> and <code>b</code>"),
    ],
)
def test_backticks_become_code(sentence, expected):
    assert page.plots.code_marked(sentence) == expected


def test_windows_are_words_and_hashes_have_their_true_names(work, html):
    text = Outline(html).text
    assert "4 windows of 32 tokens, for the inputs of each matrix, and for how much an err" in text
    terms = re.findall("<dt>(.*?)</dt><dd>([^<]*)</dd>", html)
    own = sha256(work.parent / "tiny-4.5bit.gguf")
    assert ("SHA-256 of tiny-4.5bit.gguf", own) in terms
    assert ("fingerprint of the calibration text", "d" * 64) in terms
    assert all(value != "c" * 64 for term, value in terms if "SHA-256" in term)


def files_table(html: str) -> list[list[str]]:
    """The cells of the table of files, a list for each row."""
    table = html[html.index("<table ") : html.index("</table>") + len("</table>")]
    table = table.replace("<br>", "")
    return [["".join(cell.itertext()) for cell in row] for row in ET.fromstring(table).iter("tr")]


def test_figures_of_one_text_stand_below_its_name(work, html):
    """Those of quantize's end are of another text than an evaluation's: a file may have both."""
    assert "not measured on the same text" in html
    rows = files_table(html)
    headings = [row for row in rows if len(row) == 1]
    assert headings == [
        [
            "on 512 tokens of 12 documents unlike the calibration text and 512 tokens of 12 "
            f"documents like the calibration text, of another text (fingerprint {'f' * 12}), when "
            "bitquilt quantize wrote the file"
        ],
        [
            "on 65,774 tokens of 234 documents unlike the calibration text and 65,774 tokens of "
            "234 documents like the calibration text, of another text (fingerprint "
            f"{'e' * 12})"
        ],
    ]
    _, _, own_closing, _, one, _, other, _, _, own, _, evaluated, _ = rows
    assert (one[0], other[0]) == ("tiny-4.5bit.gguf", "tiny-Q4_K_M.gguf")
    assert evaluated[0] == "tiny-4.5bit.gguf"
    assert (own[0], own[5][:5]) == ("the original", "5.432")
    assert (own_closing[0], own_closing[5][:5]) == ("the original", "4.987")


def test_both_kinds_of_text_have_a_row(work):
    (work.parent / "tiny-4.5bit.gguf").unlink()
    _, own, own_like, unlike, like = files_table(page.make_report(work).html)
    assert own[0] == "the original"
    assert own_like[:3] == ["", "on like text", ""]  # the name is in the row above
    assert unlike[0] == "tiny-Q4_K_M.gguf"
    assert (unlike[1][:6], unlike[2]) == ("0.0519", "on unlike text")
    assert (like[0][:6], like[1]) == ("0.0260", "on like text")


def test_the_plot_says_which_text_its_kl_is_of(html):
    assert "The plot has the KL on unlike text. Like text is of the same domains as the" in html


def test_one_text_is_named_above_the_table(work):
    save_beside(evaluation(work.parent / "tiny-Q4_K_M.gguf", 0.05))
    html = page.make_report(work).html
    assert (
        "Measured on 65,774 tokens of 234 documents unlike the calibration text and 65,774 tokens "
        "of 234 documents like the calibration text, of another text (fingerprint"
    ) in html
    assert [row[0] for row in files_table(html)[1::2]] == [
        "the original",
        "tiny-4.5bit.gguf",
        "tiny-Q4_K_M.gguf",
    ]


@pytest.mark.parametrize("made_by_us", [True, False])
def test_nothing_to_report_is_one_sentence(work, tmp_path: Path, made_by_us):
    directory = work if made_by_us else tmp_path / "elsewhere"
    directory.mkdir(exist_ok=True)
    for path in work.parent.glob("*.gguf"):
        path.unlink()
    sentence = "no longer has a file where" if made_by_us else "is not a work directory of"
    with pytest.raises(UserError, match=sentence):
        page.make_report(directory)


@pytest.mark.parametrize(
    ("highs", "said"),
    [
        ((0.05, 0.09), " b.gguf may be as close: intervals do not tell them apart."),
        ((0.05, 0.3), " b.gguf may be as close: intervals do not tell them apart."),
        ((math.nan, math.nan), " b.gguf may be as close: intervals do not tell them apart."),
        ((0.02, 0.09), ""),
    ],
)
def test_the_lead_says_where_closest_is_not_sure(highs, said):
    kls = (Estimate(0.01, 0.005, highs[0]), Estimate(0.06, 0.04, highs[1]))
    files = [
        SimpleNamespace(name=name, kl=kl, nbytes=1000, figures=SimpleNamespace(told="near"))
        for name, kl in zip(("a.gguf", "b.gguf"), kls, strict=True)
    ]
    lead = page._lead(files, files)
    assert "The closest is a.gguf: near, 1.00 kB." in lead
    assert lead.endswith(f"1.00 kB.{said}")


def test_on_a_phone_every_figure_of_a_file_has_its_name(html):
    cells = re.findall(r'<td data-label="([^"]+)">', html)
    assert set(cells) == {
        "mean KL, nats per token",
        "text",
        "size",
        "same top-1",
        "perplexity",
        "bits per weight",
        "engine",
    }
    assert "content: attr(data-label)" in html


def test_without_resvg_no_page_is_written(work, monkeypatch, capfd):
    monkeypatch.setattr("bitquilt.runtime.extras.find_spec", lambda name: None)
    assert invoke("report", str(work), "--png") == 2
    assert "PNG plots need resvg, which is not installed; pip install" in capfd.readouterr().err
    assert not (work.parent / "report.html").exists()
