"""Answers as HTML: what models write is rendered, and what an attacker writes stays text."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bitquilt.serve.markdown import markdown_html
from tests.serve.conftest import Running
from tests.serve.test_app import post

ALLOWED = {
    "p", "br", "em", "strong", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "a",
    "table", "thead", "tbody", "tr", "th", "td", "h3", "h4", "h5", "h6", "div", "button",
}  # fmt: skip
ATTRIBUTES = {"class", "type", "tabindex", "target", "rel", "href", "title", "style", "start"}
ALIGNMENTS = {"text-align:left", "text-align:center", "text-align:right"}


class Elements(HTMLParser):
    """Collects the elements of a text and checks that all may be there."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        assert tag in ALLOWED
        self.tags.append(tag)
        for name, value in attrs:
            assert name in ATTRIBUTES
            assert name != "style" or value in (
                "text-align:left",
                "text-align:center",
                "text-align:right",
            )
            if name == "href":
                assert value.lower().startswith(("http://", "https://"))
                self.links.append(value)

    def handle_data(self, data):
        self.text += data


def test_what_models_write_is_rendered():
    found = Elements(
        markdown_html(
            "# Plan\nIt is **bold**, `x < 1`, ~~no~~.\n\n- one\n  1. inner\n- two\n\n"
            "```python\nprint('<b>')\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n> said\n\n---\n"
            "See [that](https://example.com/a?b=1&c=2)."
        )
    )
    assert set(found.tags) >= {
        "h3", "strong", "code", "s", "ul", "ol", "pre", "table", "blockquote", "hr",
    }  # fmt: skip
    assert found.links == ["https://example.com/a?b=1&c=2"]
    assert "print('<b>')\n" in found.text


def test_headings_stand_below_those_of_the_page():
    found = Elements(markdown_html("# a\n## b\n### c\n#### d\n##### e\n###### f"))
    assert found.tags == ["h3", "h3", "h4", "h5", "h6", "h6"]


def test_links_learn_nothing_of_the_page():
    (link,) = [part for part in markdown_html("<https://x.org>").split("<") if part[:2] == "a "]
    assert 'rel="noopener noreferrer"' in link
    assert 'target="_blank"' in link


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a <svg/onload=alert(1)> b",
        "<!-- --><style>*{display:none}</style>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt&colon;alert(1))",
        "[x](java\tscript:alert(1))",
        "[x](&#106;avascript:alert(1))",
        "[x](data:text/html,<script>alert(1)</script>)",
        "[x](vbscript:x) [y](file:///etc/passwd) [z](//evil.org) [w](/v1/models)",
        "<javascript:alert(1)>",
        '[x](http://a.b "\\"><script>alert(1)</script>")',
        "![x](http://evil.org/pixel.png)",
        '```"><script>alert(1)</script>\nx',
        "`<script>`",
        "| <script> |\n|---|\n| <b onclick=x> |",
        "[a]: javascript:alert(1)\n\n[a]",
    ],
)
def test_hostile_answers_stay_text(hostile):
    Elements(markdown_html(hostile))  # no element and no attribute beyond those allowed


@given(st.text("<>[]()!`*_~|\\&;:#-\"'= \n\tascriptjvhp/.1"))
def test_no_answer_gets_an_element_or_a_link_beyond_those_allowed(text):
    Elements(markdown_html(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2*3*4 = 24", "2*3*4 = 24"),
        ("a*b*c", "a*b*c"),
        (r"\boxed{932}", r"\boxed{932}"),
        (r"\(x_1 + x_2\) and \[ \{1, 2\} \]", r"\(x_1 + x_2\) and \[ \{1, 2\} \]"),
        (r"1 \\ 2", r"1 \\ 2"),
        (r"\*not emphasis\*", "*not emphasis*"),
        ("[1]: https://example.com is where", "[1]: https://example.com is where"),
        ("a\nb", "a\nb"),
    ],
)
def test_nothing_that_was_said_is_lost(text, shown):
    assert Elements(markdown_html(text)).text.strip() == shown


@pytest.mark.parametrize("under_way", ["```python\nx = 1", "```python\nx = 1\n``", "~~~\nx = 1"])
def test_a_fence_that_is_still_open_is_code(under_way):
    found = Elements(markdown_html("Look:\n\n" + under_way))
    assert found.tags == ["p", "div", "button", "pre", "code"]


def test_what_comes_does_not_change_what_stands():
    """A dash below a line would make it a heading for as long as nothing follows the dash."""
    assert "<h" not in markdown_html("These are:\n-")
    before = markdown_html("First.\n\nSecond")
    assert markdown_html("First.\n\nSecond half.\n\n- a").startswith(before.split("Second")[0])


@pytest.mark.parametrize(
    "piece",
    ["[", "[a](", "**a* ", "_a_ ", "`", "> ", "- ", "<", "| a ", "~~a ", "![", "&#", "\\", "word "],
)
def test_time_is_linear_in_the_length(piece):
    def seconds(count: int) -> float:
        text, times = piece * (count // len(piece)), []
        for _ in range(3):
            began = time.process_time()
            markdown_html(text)
            times.append(time.process_time() - began)
        return min(times)

    markdown_html("warm")
    assert seconds(40_000) < 12 * seconds(10_000) + 0.1  # quadratic would be 16 times


def test_the_server_renders_for_those_who_have_the_key(demo: Running) -> None:
    assert post(demo, b'{"text": "**a** <b>"}', "/markdown") == (
        200,
        {"html": "<p><strong>a</strong> &lt;b&gt;</p>\n"},
    )
    status, said = post(demo, b'{"text": "a"}', "/markdown", Authorization="Bearer wrong")
    assert (status, said["error"]["type"]) == (401, "authentication_error")
    assert post(demo, b'{"test": "a"}', "/markdown")[0] == 400


def test_rules_of_the_library_are_as_we_found_them():
    """Ours replace these two; under other names they would replace nothing."""
    assert {"emphasis", "escape"} <= set(MarkdownIt("commonmark").get_active_rules()["inline"])
