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
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from bitquilt.errors import UserError
from bitquilt.evaluation.eval_file import path_beside
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.models import open_original
from bitquilt.report.card import Publication, model_card, modelfiles
from bitquilt.report.config import PublicationConfig
from bitquilt.report.origin import HUB_ERRORS, PublishedOriginal
from bitquilt.report.vision import towers_beside
from bitquilt.runtime.progress import Progress


@dataclass(frozen=True)
class RepositoryFile:
    """One file of the repository."""

    name: str
    content: Path | bytes
    """A file on disk, or what is written for the repository."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size


def publication(paths: Sequence[str | Path], config: PublicationConfig) -> Publication:
    """Say what is to be published.

    Args:
        paths: GGUF files, or one MLX directory.
        config: the original, which says on what terms, and the repository.

    Raises:
        UserError: a file does not exist or shares its name, formats do not go together, the hub
            takes no such name, a file is the original itself or was not made from it, or the
            original's card cannot be read.
    """
    files = [ModelFile.at(path) for path in paths]
    for name, times in Counter(file.name for file in files).items():
        if times > 1:
            raise UserError(
                f"{times} files are called {name}; a repository can hold only one file of each name"
            )
    alone = [one.target for one in files if one.target.own_repository]
    if alone and len(files) > 1:
        raise UserError(
            f"an {alone[0].name.upper()} model needs a repository of its own; publish it without "
            "the other files"
        )
    against = str(config.against)
    if any(Path(against).resolve() == file.path.resolve() for file in files):
        raise UserError(
            f"{against} is the model itself; give --against the original that it was made from"
        )
    original = open_original(against)
    for file in files:
        file.check(original)
    origin = PublishedOriginal.of(original, config.base_model)
    gate = origin.gate(HfApi())
    return Publication(
        files=files,
        original=original,
        origin=origin,
        repository=config.repository,
        towers=towers_beside(files, original),
        gate=gate,
    )


def entries(publication: Publication) -> list[RepositoryFile]:
    """Everything that the repository is to hold."""
    written = {"README.md": model_card(publication), **modelfiles(publication)}
    found = [RepositoryFile(name, text.encode()) for name, text in written.items()]
    for file in publication.files:
        found += _files(file)
        if file.name in publication.evaluated:
            figures = path_beside(file.path)
            found.append(RepositoryFile(figures.name, figures))
    there = {entry.name for entry in found}  # an MLX directory has its own tower
    found += [
        RepositoryFile(tower.path.name, tower.path)
        for tower in publication.towers
        if tower.path.name not in there
    ]
    there = {entry.name for entry in found}
    documents = publication.origin.terms.documents().items()
    return found + [RepositoryFile(name, text) for name, text in documents if name not in there]


def _files(file: ModelFile) -> Iterator[RepositoryFile]:
    """List a GGUF file with its recipe, or what is in an MLX directory."""
    for path in file.target.files(file.path):
        yield RepositoryFile(path.name, path)


def require_licence(publication: Publication) -> None:
    """Refuse what nobody may pass on.

    Raises:
        UserError: the original names no licence, or one whose text must go with every copy and
            is not there.
    """
    terms = publication.origin.terms
    if terms.lacks_agreement:
        raise UserError(
            f"every copy of {publication.original.name} must come with the text of its licence, "
            f"{terms.name}, which was not found in {terms.searched}; put it there as LICENSE"
        )
    if not terms.stated:
        raise UserError(
            f"no licence was found in {terms.searched}, so {publication.original.name} may not be "
            "passed on; ask its authors, and put a README.md with its `license`, or its LICENSE, "
            "beside the original"
        )


def terms_said(publication: Publication) -> list[str]:
    """Say on what terms the files go out, where that was read, and what is missing."""
    origin, terms = publication.origin, publication.origin.terms
    texts = ", ".join(str(path) for path in terms.texts.values())
    passed = f"; passed on with it: {texts}" if texts else ""
    said = [f"The licence is {terms.name}, stated in {terms.stated_in}{passed}."]
    if terms.notice:
        said.append(f'Every copy has this notice: "{terms.notice}".')
    if terms.lacks_text:
        said.append(
            f"The text of this licence was not found in {terms.searched}; if copies must include "
            "it, put it there as LICENSE."
        )
    if "base_model" not in terms.fields:
        said.append(
            f"It is not known where {origin.name} is on the hub, so the card has no base_model; "
            "name the repository with --base-model."
        )
    return said


def upload(publication: Publication, progress: Progress, *, private: bool = False) -> str:
    """Make the repository, gate it as the original is, and upload; gives its address.

    Raises:
        UserError: what :func:`require_licence` refuses; the hub refuses or does not answer.
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
                [operation(publication, entry) for entry in listed],
                commit_message=f"{publication.original.name}, quantized with bitquilt",
            )
            progress.advance()
    except HUB_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        advice = (
            "log in with `hf auth login`"
            if _refused(error)
            else "check that the hub can be reached"
        )
        raise UserError(
            f"{publication.repository} was not published: {reason}; {advice}, and give the same "
            "command again to continue"
        ) from error
    except ValueError as error:  # what huggingface_hub makes of a card that the hub refuses
        reason = " ".join(str(error).split())
        raise UserError(
            f"{publication.repository} was not published: {reason}; correct the original's "
            "README.md"
        ) from error
    return str(address)


def operation(publication: Publication, entry: RepositoryFile) -> CommitOperationAdd:
    """Make a file ready to be uploaded; those with weights are, for they have been hashed."""
    ready = publication.weights.get(entry.content) if isinstance(entry.content, Path) else None
    return ready or CommitOperationAdd(entry.name, entry.content)


def _refused(error: Exception) -> bool:
    """Whether who asked may not; the hub says that it knows no repository where one is hidden."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (401, 403, 404)
    return isinstance(error, LocalTokenNotFoundError)
