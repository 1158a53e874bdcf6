"""Collect the clean text the demo model is trained on from Debian's documentation packages.

A document is one page, module, novel or book of the Bible. Whole documents are split by a hash of
their name into training and held-out text; held-out text comes only from sources whose licence lets
an Apache-2.0 package carry it, because it ships with bitquilt. `python sources.py DIR` downloads
the packages into DIR and writes DIR/corpus.jsonl.
"""

import fnmatch
import gzip
import hashlib
import html.parser
import json
import os
import re
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

Reader = Callable[[Path], Iterator[tuple[str, str]]]  # package root -> (name, text) pairs


@dataclass(frozen=True)
class Source:
    package: str  # Debian package
    domain: str  # prose or code
    licence: str
    read: Reader
    shippable: bool = False  # may an Apache-2.0 package carry excerpts?
    held_out: float = 0.0  # share of the documents held out


# ---------------------------------------------------------------------------------- readers


def read_text(path: Path) -> str:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data.decode("utf-8", "replace")


def files(root: Path, *patterns: str) -> Iterator[tuple[str, Path]]:
    """Files under `root` whose path inside the package matches a pattern, in a fixed order."""
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
        name = str(path.relative_to(root))
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            yield name, path


def plain(*patterns: str) -> Reader:
    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, path in files(root, *patterns):
            yield name, read_text(path)

    return read


class PageText(html.parser.HTMLParser):
    """The readable text of a documentation page, without navigation, scripts or permalinks."""

    SKIPPED_TAGS = frozenset(
        ["script", "style", "head", "nav", "footer", "header", "form", "noscript", "svg"]
    )
    SKIPPED_CLASSES = re.compile(
        r"\b(nav\w*|related|sphinxsidebar\w*|footer|headerlink|toc\w*|indexterm|menu|"
        r"up|bottomlang|toplang|quickview|breadcrumb\w*|viewcode-link|outline)\b"
    )
    BLOCKS = frozenset(
        [
            "p",
            "div",
            "li",
            "dt",
            "dd",
            "tr",
            "pre",
            "table",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "ul",
            "ol",
            "dl",
            "blockquote",
            "section",
            "br",
        ]
    )
    VOID = frozenset(["br", "img", "hr", "meta", "link", "input", "col", "area", "base", "wbr"])

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.open: list[tuple[str, bool]] = []  # tag, does it start a skipped part
        self.skipping = 0
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCKS:
            self.parts.append("\n" if tag in {"br", "tr", "li", "dt", "dd"} else "\n\n")
        if tag == "li":
            self.parts.append("- ")
        if tag in {"td", "th"}:
            self.parts.append("  ")
        if tag in self.VOID:
            return
        marks = " ".join(value or "" for key, value in attrs if key in {"class", "id", "role"})
        skipped = tag in self.SKIPPED_TAGS or bool(self.SKIPPED_CLASSES.search(marks))
        self.open.append((tag, skipped))
        self.skipping += skipped
        self.preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag not in {name for name, _ in self.open}:
            return
        while self.open:
            name, skipped = self.open.pop()
            self.skipping -= skipped
            self.preformatted -= name == "pre"
            if name == tag:
                break
        if tag in self.BLOCKS:
            self.parts.append("\n" if tag in {"tr", "li", "dt", "dd"} else "\n\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def page_text(markup: str) -> str:
    parser = PageText()
    parser.feed(markup)
    lines = [line.rstrip() for line in "".join(parser.parts).split("\n")]
    text = "\n".join(line[1:] if re.match(r" \S", line) else line for line in lines)
    return re.sub(r" ?¶|\n\s*Last update:\s*\n.*", "", text)  # permalink marks, build dates


def pages(*patterns: str) -> Reader:
    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, path in files(root, *patterns):
            yield name, page_text(read_text(path))

    return read


def _man_page(path: Path) -> str:
    source = gzip.decompress(path.read_bytes())
    page = subprocess.run(
        ["groff", "-Kutf8", "-man", "-Tutf8", "-P-c", "-P-bou"],
        input=b".nh\n.na\n" + source, capture_output=True,
    ).stdout  # fmt: skip
    return page.decode("utf-8", "replace")


def man_pages(root: Path) -> Iterator[tuple[str, str]]:
    found = list(files(root, "*/man/man*/*.gz"))
    with ProcessPoolExecutor() as pool:
        texts = pool.map(_man_page, [path for _, path in found], chunksize=8)
        for (name, _), text in zip(found, texts, strict=True):
            yield name, text


def bible(root: Path) -> Iterator[tuple[str, str]]:
    """Verses as running paragraphs, one document a book; the reader is in another package."""
    program = root.parent / "bible-kjv/usr/bin/bible"
    verses = subprocess.run(
        [str(program), "-p", f"{root}/usr/lib", "-f", "Genesis1:1-Revelation22:21"],
        input="", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    books: dict[str, dict[str, list[str]]] = {}
    for line in verses.splitlines():
        if match := re.match(r"(.+?)(\d+):\d+ +(.*)", line):
            book, chapter, text = match.groups()
            books.setdefault(book.strip(), {}).setdefault(chapter, []).append(text)
    for book, chapters in books.items():
        yield book, "\n\n".join(f"Chapter {n}\n\n{' '.join(v)}" for n, v in chapters.items())


def austen(root: Path) -> Iterator[tuple[str, str]]:
    """The novels are R character vectors: zlib blocks of XDR-serialized strings."""
    database = next(root.rglob("data/Rdata.rdb")).read_bytes()
    while database:
        stream = zlib.decompressobj()  # after four bytes of uncompressed length
        block = stream.decompress(database[4:])
        database = stream.unused_data
        lines, at = [], block.index(b"\x00\x00\x00\x10") + 8
        while at + 8 <= len(block):
            flags, size = struct.unpack_from(">II", block, at)
            if flags & 0xFF != 9 or size > 10_000:
                break
            lines.append(block[at + 8 : at + 8 + size].decode("utf-8", "replace"))
            at += 8 + size
        title = next((line.strip().title() for line in lines if line.strip()), "")
        if len(lines) > 1000:
            yield title, "\n".join(lines)


def dictionary(pattern: str, markup: str, every: int = 1) -> Reader:
    """A dictd dictionary in documents of about 30 kB, one in `every`; `markup` is removed."""

    def read(root: Path) -> Iterator[tuple[str, str]]:
        for name, path in files(root, pattern):
            text = re.sub(markup, "", read_text(path))
            entries = re.split(r"\n\n(?=\S)", text)
            for start in range(0, len(entries), 150 * every):
                yield f"{name}#{start}", "\n\n".join(entries[start : start + 150])

    return read


PSF, BSD, PD = "PSF-2.0", "BSD-3-Clause", "public domain"
SITE = "usr/lib/python3/dist-packages"
SOURCES = [
    # what may ship; first, so that a passage found twice stays here
    Source("bible-kjv-text", "prose", PD, bible, True, 0.12),
    Source("r-cran-janeaustenr", "prose", PD, austen, True, 0.25),
    Source("jargon-text", "prose", PD, plain("*/jargon.txt.gz"), True),
    Source("python3.11-doc", "prose", PSF, plain("*_sources/*.rst.txt"), True, 0.06),
    Source("postgresql-doc-15", "prose", "PostgreSQL", pages("*.html"), True, 0.06),
    Source("python-django-doc", "prose", BSD, pages("*/html/[!_]*.html"), True, 0.06),
    Source("apache2-doc", "prose", "Apache-2.0", pages("*/manual/en/*.html"), True, 0.06),
    Source("libpython3.11-minimal", "code", PSF, plain("*.py"), True, 0.06),
    Source("libpython3.11-stdlib", "code", PSF, plain("*.py"), True, 0.06),
    # training only
    Source("libpython3.11-testsuite", "code", PSF, plain("*.py")),
    Source("python3-django", "code", BSD, plain(f"{SITE}/*.py")),
    Source("python3-sympy", "code", BSD, plain(f"{SITE}/*.py")),
    Source("python3-networkx", "code", BSD, plain(f"{SITE}/*.py")),
    Source("python3-numpy", "code", BSD, plain(f"{SITE}/*.py")),
    Source("python3-scipy", "code", BSD, plain(f"{SITE}/*.py")),
    Source("linux-doc-6.1", "prose", "GPL-2.0", plain("*_sources/*.rst.txt")),
    Source("python-sympy-doc", "prose", BSD, plain("*_sources/*.txt")),
    Source("anarchism", "prose", "GPL-2.0", plain("*/markdown/*.md*")),
    Source("perl-doc", "prose", "Artistic", man_pages),
    Source("manpages", "prose", "various", man_pages),
    Source("manpages-dev", "prose", "various", man_pages),
    Source("git-doc", "prose", "GPL-2.0", plain("*.txt")),
    Source("sqlite3-doc", "prose", PD, pages("*.html")),
    Source("debian-handbook", "prose", "GPL-2.0", pages("*/en-US/*.html")),
    Source("debian-policy", "prose", "GPL-2.0", plain("*_sources/*.txt")),
    Source("developers-reference", "prose", "GPL-2.0", plain("*_sources/*.txt")),
    Source("debian-reference-en", "prose", "GPL-2.0", pages("*.html")),
    Source("gimp-help-en", "prose", "GFDL", pages("*.html")),
    Source("libreoffice-help-en-us", "prose", "MPL-2.0", pages("*.html")),
    Source("vim-doc", "prose", "Vim", pages("*.html")),
    Source("zsh-doc", "prose", "Zsh", pages("*.html")),
    Source("bash-doc", "prose", "GFDL", pages("*.html")),
    Source("mh-book", "prose", "GPL-2.0", pages("*.html")),
    Source("nodejs-doc", "prose", "MIT", pages("*/api/*.html")),
    Source("dict-foldoc", "prose", "GFDL", dictionary("*.dict.dz", r"[{}]")),
    # a third of it: a dictionary is no prose, and all of it would be a sixth of the corpus
    Source(
        "dict-gcide", "prose", "GPL-3.0",
        dictionary("*.dict.dz", r"[{}]|\[1913 Webster\]|\\[^\\\n]*\\", every=3),
    ),
]  # fmt: skip
HELPERS = ["bible-kjv"]  # programs the readers need

# ---------------------------------------------------------------------------------- cleaning


def normalised(line: str) -> str:
    return " ".join(line.lower().split())


def clean(text: str) -> str:
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\u00a0", " ")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ufffd]", "", text)
    text = "\n".join(line.rstrip() for line in text.expandtabs(4).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def is_reading_matter(name: str, text: str) -> bool:
    """False for change logs, indexes and tables of symbols, which teach a small model nothing."""
    if re.search(
        r"changelog|genindex|py-modindex|modindex|/search\.html|bookindex|copyright", name
    ):
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    return len(text) > 400 and letters > 0.7 * len(text)


class Deduplicator:
    """Drops a paragraph, or a line of 80 characters and more, seen before in any document."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __call__(self, text: str) -> str:
        paragraphs = []
        for paragraph in text.split("\n\n"):
            if len(paragraph) >= 80 and self._known(paragraph):
                continue
            lines = paragraph.split("\n")
            if len(lines) > 1:
                lines = [x for x in lines if len(normalised(x)) < 80 or not self._known(x)]
            paragraphs.append("\n".join(lines))
        return "\n\n".join(p for p in paragraphs if p)

    def _known(self, passage: str) -> bool:
        digest = hashlib.blake2b(normalised(passage).encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "big")
        if key in self.seen:
            return True
        self.seen.add(key)
        return False


def unit_hash(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def fetch(packages: list[str], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for package in packages:
        target = directory / package
        if not target.exists():
            subprocess.run(["apt-get", "-q", "download", package], cwd=directory, check=True)
            archive = max(directory.glob(f"{package}_*.deb"), key=os.path.getmtime)
            subprocess.run(["dpkg", "-x", archive, target], check=True)


def main() -> None:
    directory = Path(sys.argv[1])
    fetch(HELPERS + [source.package for source in SOURCES], directory)
    unique = Deduplicator()
    with open(directory / "corpus.jsonl", "w") as out:
        for source in SOURCES:
            kept = held = size = 0
            for name, raw in source.read(directory / source.package):
                text = clean(raw)
                if not is_reading_matter(name, text) or len(text := unique(text)) < 400:
                    continue
                key = f"{source.package}/{name}"
                held_out = unit_hash(f"split:{key}") < source.held_out
                document = {
                    "id": key, "domain": source.domain, "source": source.package,
                    "licence": source.licence, "shippable": source.shippable,
                    "split": "held-out" if held_out else "train", "text": text,
                }  # fmt: skip
                out.write(json.dumps(document, ensure_ascii=False) + "\n")
                kept, held, size = kept + 1, held + held_out, size + len(text)
            print(
                f"{source.package}: {kept} documents ({held} held out), {size / 1e6:.1f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
