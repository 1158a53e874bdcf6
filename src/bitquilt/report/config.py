"""What a report, a card and an upload can be asked for; cheap to import, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitquilt.errors import UserError
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

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`; repositories have names that the hub takes."""
        super().__post_init__()
        for name in filter(None, (self.repository, self.base_model)):
            _require_repository(name)


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


def _require_repository(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise UserError(
            f"{name} is not a valid name of a hub repository; give user/name, with no other signs "
            "than letters, digits, - _ and ."
        ) from error
