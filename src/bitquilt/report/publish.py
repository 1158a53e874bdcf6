"""To the hub: files straight from where they are, the card and Modelfiles written for them.

What was uploaded is not uploaded again: the hub knows large files by their hash, so an upload that
was stopped continues with the same command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from bitquilt.errors import UserError
from bitquilt.evaluation.eval_file import path_beside
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.models import open_checkpoint
from bitquilt.report.card import Publication, model_card, modelfiles
from bitquilt.report.config import PublicationConfig
from bitquilt.report.origin import HUB_ERRORS, PublishedOriginal
from bitquilt.runtime.progress import Progress


@dataclass(frozen=True)
class RepositoryFile:
    """One file of the repository."""

    name: str
    content: Path | str
    """A file on disk, or text written for the repository."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        if isinstance(self.content, str):
            return len(self.content.encode())
        return self.content.stat().st_size


def publication(paths: Sequence[str | Path], config: PublicationConfig) -> Publication:
    """Say what is to be published.

    Args:
        paths: GGUF files, or one MLX directory.
        config: the original, which says on what terms, and the repository.

    Raises:
        UserError: a file does not exist or shares its name, formats do not go together, the hub
            takes no such name, or a file is the original itself.
    """
    files = [ModelFile.at(path) for path in paths]
    for name, times in Counter(file.name for file in files).items():
        if times > 1:
            raise UserError(f"{times} files are called {name}; a repository holds one of a name")
    alone = [one.target for one in files if one.target.own_repository]
    if alone and len(files) > 1:
        raise UserError(
            f"an {alone[0].name.upper()} model is a repository of its own; publish it by itself, "
            "and files of other formats together"
        )
    for name in filter(None, (config.repository, config.base_model)):
        _check_id(name)
    against = str(config.against)
    if any(Path(against).resolve() == file.path.resolve() for file in files):
        raise UserError(f"{against} is the model itself; --against wants what it was made from")
    original = open_checkpoint(against)
    origin = PublishedOriginal.of(against, original, config.base_model)
    gate = origin.gate(HfApi())
    return Publication(
        files=files,
        original=original,
        origin=origin,
        repository=config.repository,
        gate=gate,
    )


def _check_id(name: str) -> None:
    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise UserError(f"{name} is not a name on the hub ({error}); give user/name") from error


def entries(publication: Publication) -> list[RepositoryFile]:
    """Everything that the repository is to hold."""
    found = [RepositoryFile("README.md", model_card(publication))]
    found += [RepositoryFile(name, text) for name, text in modelfiles(publication).items()]
    for file in publication.files:
        found += _files(file)
        if file.name in publication.evaluated:
            figures = path_beside(file.path)
            found.append(RepositoryFile(figures.name, figures))
    there = {entry.name for entry in found}
    return found + [
        RepositoryFile(f.name, f) for f in publication.origin.licence_files if f.name not in there
    ]


def _files(file: ModelFile) -> Iterator[RepositoryFile]:
    """List a GGUF file with its recipe, or what is in an MLX directory."""
    for path in file.target.files(file.path):
        yield RepositoryFile(path.name, path)


def require_licence(publication: Publication) -> None:
    """Refuse what nobody may pass on.

    Raises:
        UserError: the original names no licence.
    """
    if not publication.origin.licence:
        raise UserError(
            f"{publication.original.name} names no licence, so it may not be passed on; put a "
            "README.md with its `license` beside the original"
        )


def upload(publication: Publication, progress: Progress, *, private: bool = False) -> str:
    """Make the repository, gate it as the original is, and upload; gives its address.

    Raises:
        UserError: the original names no licence, the hub refuses or does not answer.
    """
    require_licence(publication)
    api = HfApi()
    listed = entries(publication)
    try:
        address = api.create_repo(publication.repository, private=private, exist_ok=True)
        if publication.gate:
            api.update_repo_settings(publication.repository, gated=publication.gate)
        with progress.stage(f"Uploading to {address}", 1):
            api.create_commit(
                publication.repository,
                [CommitOperationAdd(entry.name, _source(entry)) for entry in listed],
                commit_message=f"{publication.original.name}, quantized with bitquilt",
            )
            progress.advance()
    except HUB_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        advice = (
            "log in with `hf auth login`" if _refused(error) else "see that the hub can be reached"
        )
        raise UserError(
            f"{publication.repository} was not published: {reason}; {advice}, and give the same "
            "command again to continue"
        ) from error
    except ValueError as error:  # what huggingface_hub makes of a card that the hub refuses
        reason = " ".join(str(error).split())
        raise UserError(
            f"{publication.repository} was not published: {reason}; mend the original's README.md"
        ) from error
    return str(address)


def _refused(error: Exception) -> bool:
    """Whether who asked may not; the hub says that it knows no repository where one is hidden."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (401, 403, 404)
    return isinstance(error, LocalTokenNotFoundError)


def _source(entry: RepositoryFile) -> bytes | Path:
    return entry.content.encode() if isinstance(entry.content, str) else entry.content
