"""From files of a package to clean texts: which language, which script, no licence headers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from sources import Reader, files, page_text, read_text

SCRIPTS = {
    "ru": "[\u0400-\u04ff]", "zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]",
    "ko": "[\uac00-\ud7af]", "ar": "[\u0600-\u06ff]", "hi": "[\u0900-\u097f]",
    "el": "[\u0370-\u03ff]",
}  # fmt: skip
WORDS = {
    "en": "the of and to is in that it for with are this be on as by you can or",
    "de": "der die das und ist nicht werden sie den ein eine mit wird auf für von im zu des dem",
    "fr": "le la les des est une un et du dans pour que pas ce sur vous avec par qui au",
    "es": "el la los las que una un del es en para por con se no al como su puede esta",
    "pt": "o os as que uma um do da em para por com se não ao como seu pode esta é",
    "it": "il la le che una un del è di per con si non al come della dei nel questo può",
    "pl": "i w na z do się nie jest to dla lub aby można przez tego który po jako od oraz",
    "tr": "ve bir bu için ile olarak da de olan veya ne kadar daha sonra gibi her ise değil",
}
_WORD_SETS = {language: frozenset(words.split()) for language, words in WORDS.items()}


def in_language(text: str, language: str) -> str:
    """Keep the paragraphs in this language; a short one that has no language goes with its last."""
    kept, last = [], False
    for paragraph in text.split("\n\n"):
        verdict = _is_in(paragraph, language)
        last = last and len(paragraph) < 300 if verdict is None else verdict
        if last:
            kept.append(paragraph)
    return "\n\n".join(kept)


def _is_in(paragraph: str, language: str) -> bool | None:
    letters = [c for c in paragraph if c.isalpha()]
    if language in SCRIPTS:
        if len(letters) < 12:
            return None
        share = len(re.findall(SCRIPTS[language], paragraph)) / len(letters)
        return share > (0.3 if language in {"zh", "ja", "ko", "hi"} else 0.5)
    words = re.findall(r"[^\W\d_]+", paragraph.lower())
    own, english = (sum(word in _WORD_SETS[name] for word in words) for name in (language, "en"))
    return None if own == english == 0 else own > english


def translated(reader: Reader, language: str) -> Reader:
    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, text in reader(root):
            yield name, in_language(text, language)

    return read


def help_pages(*patterns: str) -> Reader:
    """LibreOffice's help: the page's own part, without the frame around it."""

    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, path in files(root, *patterns):
            _, found, body = read_text(path).partition('id="DisplayArea"')
            if found:
                body = body.partition("<footer")[0].partition(">")[2]
                yield name, re.sub(r"(?m)^-\n+(?=\S)", "- ", page_text(body))

    return read


def joined(reader: Reader, least: int = 2_000) -> Reader:
    """Small pages of one folder, several to a document."""

    def read(root: Path) -> Iterator[tuple[str, str]]:
        first, texts = "", []
        for name, text in reader(root):
            first = first if texts else name
            if text := text.strip():
                texts.append(text)
            if sum(map(len, texts)) >= least:
                yield first, "\n\n".join(texts)
                texts = []

    return read


def mallard(*patterns: str) -> Reader:
    """GNOME's help pages."""

    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, path in files(root, *patterns):
            page = re.sub(r"(?s)<!--.*?-->|<info>.*?</info>", "", read_text(path))
            blocks = re.split(
                r"</?(?:page|p|title|item|steps|list|note|section|td|tr)\b[^>]*>", page
            )
            lines = (" ".join(re.sub(r"<[^>]+>", "", block).split()) for block in blocks)
            text = "\n\n".join(line for line in lines if line)
            yield name, text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")

    return read


def electron(locale: str) -> Reader:
    def read(root: Path) -> Iterator[tuple[str, str]]:
        (path,) = (path for _, path in files(root, "*docs.json"))
        for slug, page in sorted(json.loads(path.read_text())[locale].items()):
            yield f"{locale}/{slug.strip('/')}", page_text(page.get("html") or "")

    return read


_NOTICE = re.compile(r"copyright|licen[cs]e|SPDX|\(c\)", re.IGNORECASE)
_COMMENT = re.compile(
    r"\s*(/\*.*?\*/|(?://[^\n]*\n\s*)+|(?:#[^\n]*\n)+|(?:--[^\n]*\n)+|<!--.*?-->|;[^\n]*\n"
    r"|--\[\[.*?\]\])",
    re.DOTALL,
)


def without_notice(code: str) -> str:
    """Leave out the comments at the top that tell whose the file is; LICENCES.md tells it."""
    while match := _COMMENT.match(code):
        if not _NOTICE.search(match[0]):
            break
        code = code[match.end() :]
    return code.lstrip("\n")


def code(*patterns: str, leave_out: str = r"$^") -> Reader:
    """Source files that a person wrote: no minified ones, no tables of numbers."""
    excluded = re.compile(leave_out)

    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, path in files(root, *patterns):
            if excluded.search(name) or path.stat().st_size > 12_000_000:
                continue
            text = without_notice(read_text(path))
            lines = text.split("\n")
            letters = sum(c.isalpha() or c.isspace() for c in text)
            if max(map(len, lines)) < 400 and letters > 0.6 * len(text):
                yield name, text

    return read


def plain_text(*patterns: str, begin: str = "", end: str = "") -> Reader:
    """Books: the part between two marks, lines of a paragraph joined if they are prose."""

    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, path in files(root, *patterns):
            text = read_text(path).replace("\r\n", "\n")
            if begin and (match := re.search(begin, text)):
                text = text[match.end() :]
            if end and (match := re.search(end, text)):
                text = text[: match.start()]
            yield name, text

    return read


def entries(pattern: str, count: int) -> Reader:
    """A dictd dictionary, so many entries to a document."""

    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, path in files(root, pattern):
            found = re.split(r"\n\n(?=\S)", read_text(path))
            for start in range(3, len(found), count):
                yield f"{name}#{start}", "\n\n".join(found[start : start + count])

    return read


def in_parts(text: str, size: int) -> list[str]:
    """Cut at blank lines, else at ends of lines, into parts of at most about `size` characters."""
    parts, text = [], text.strip("\n")
    while len(text) > 1.4 * size:
        end = text.rfind("\n\n", size // 3, size)
        end = end if end > 0 else text.rfind("\n", size // 3, size)
        end = end if end > 0 else size
        parts.append(text[:end].strip("\n"))
        text = text[end:].strip("\n")
    return [*parts, text]


def licence_texts(root: Path) -> Iterator[tuple[str, str]]:
    """Licences and terms as SPDX has them; the many small variants of a few are left out."""
    for name, path in files(root, "*/licenses/*.json"):
        if not re.search(r"/(BSD|MIT|GPL|LGPL|GFDL|AGPL|HPND|CC-BY)", name):
            yield name, json.loads(path.read_text())["licenseText"]
