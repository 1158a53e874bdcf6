"""Answers as HTML for the chat page: markdown-it-py, told what models write and what is safe.

HTML in an answer is text, links lead to http and https only, and nothing is loaded. The time is
linear in the length of the answer, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline, emphasis, escape
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

ESCAPED = "`*_~#|<>$.+-"
r"""Characters that lose a backslash before them; with others it is TeX: ``\(``, ``\[``, ``\{``."""
HIGHEST_HEADING, LOWEST_HEADING = 3, 6
"""Levels of headings in an answer: the page has one of level 2 above each message."""


def markdown_html(text: str) -> str:
    """Render an answer as HTML that is safe to put on a page.

    What is still being written may be rendered too: a code block that is not closed ends with the
    text, and a list or a heading under way does not change what stands before it.
    """
    html: str = _renderer().render(text)
    return html


@cache
def _renderer() -> MarkdownIt:
    """CommonMark with tables, less what hides text, loads something, or jumps while it grows."""
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True})
    markdown.enable(["table", "strikethrough"])
    markdown.disable(["image", "lheading", "reference"])
    markdown.inline.ruler.at("emphasis", _emphasis)
    markdown.inline.ruler.at("escape", _escape)
    markdown.validateLink = _is_web_link  # type: ignore[method-assign]
    markdown.add_render_rule("fence", _code)
    markdown.add_render_rule("code_block", _code)
    markdown.add_render_rule("heading_open", _heading)
    markdown.add_render_rule("heading_close", _heading)
    markdown.add_render_rule("link_open", _link)
    markdown.add_render_rule("table_open", _table_open)
    markdown.add_render_rule("table_close", _table_close)
    return markdown


def _is_web_link(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _emphasis(state: StateInline, silent: bool) -> bool:
    """Read * and _ as CommonMark does, but 2*3*4 is a product."""
    before, here, after = state.src[max(state.pos - 1, 0)], state.src[state.pos], ""
    if state.pos + 1 < state.posMax:
        after = state.src[state.pos + 1]
    if here == "*" and state.pos > 0 and _is_factor(before) and _is_factor(after):
        return False
    return emphasis.tokenize(state, silent)


def _is_factor(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _escape(state: StateInline, silent: bool) -> bool:
    """Take a backslash away where Markdown needs it, and leave it where TeX does."""
    follows = state.src[state.pos + 1 : min(state.pos + 2, state.posMax)]
    if state.src[state.pos] == "\\" and follows and follows not in ESCAPED + "\n":
        if not silent:
            state.pending += "\\" + follows
        state.pos += 2
        return True
    return escape(state, silent)


def _code(
    _: RendererHTML, tokens: Sequence[Token], index: int, __: OptionsDict, ___: EnvType
) -> str:
    """Write a code block with a button that copies it; the page's script listens to it."""
    return (
        '<div class="code"><button type="button" class="copy">Copy</button>'
        f'<pre tabindex="0"><code>{escapeHtml(tokens[index].content)}</code></pre></div>\n'
    )


def _heading(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, _: EnvType
) -> str:
    """Put an answer's headings below those of the page."""
    level = min(max(int(tokens[index].tag[1]) + 1, HIGHEST_HEADING), LOWEST_HEADING)
    return f"<h{level}>" if tokens[index].nesting > 0 else f"</h{level}>\n"


def _link(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """Open a link in a tab of its own, which learns nothing of this page."""
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer")
    return renderer.renderToken(tokens, index, options, env)


def _table_open(*_: object) -> str:
    return '<div class="wide" tabindex="0"><table>\n'


def _table_close(*_: object) -> str:
    return "</table></div>\n"
