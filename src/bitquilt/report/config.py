"""What a report, a card and an upload can be asked for; cheap to import, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitquilt.runtime.options import Options, option


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Where the page about a work directory goes, and what goes with it."""

    output: str | Path | None = option(
        "The page is written to this file, or into this directory.  [default: report.html beside "
        "WORKDIR]",
        default=None,
        short="-o",
        metavar="FILE",
    )
    png: bool = option("The plots are also written as PNG files beside the page.", default=False)


@dataclass(frozen=True, kw_only=True)
class PublicationConfig(Options):
    """What files were made from, and which repository holds them."""

    against: str | Path = option(
        "The files were made from this model: a hub id, a Hugging Face directory, a GGUF file, or "
        "demo.",
        metavar="ORIGINAL",
    )
    repository: str = option(
        "This repository on the hub holds MODEL, or will hold it.",
        flag="--repo",
        metavar="USER/NAME",
    )
    base_model: str | None = option(
        "ORIGINAL is a copy of this repository on the hub.", default=None, metavar="USER/NAME"
    )


@dataclass(frozen=True, kw_only=True)
class CardConfig(PublicationConfig):
    """What ``bitquilt card`` can be asked for."""

    output: str | Path | None = option(
        "The card is written into this directory, with the Modelfiles and the licence's text.",
        default=None,
        short="-o",
        metavar="DIR",
    )


@dataclass(frozen=True, kw_only=True)
class PublishConfig(PublicationConfig):
    """What ``bitquilt publish`` can be asked for."""

    private: bool = option("If the repository is new, it becomes private.", default=False)
    upload: bool = option(
        "The files are uploaded; without this, they are only listed.", default=False
    )
