"""The original of files that are published: its place on the hub, its terms, and its gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from bitquilt.errors import UserError
from bitquilt.models.checkpoint import Checkpoint, Vocabulary
from bitquilt.models.licence import GATE, RELATION, Terms, terms_of

_OF_HTTP = (base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
HUB_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError, OfflineModeIsEnabled, OSError, *_OF_HTTP)
"""The errors of the hub and of the HTTP library below it, which differs between versions."""
Gate = Literal["auto", "manual"]
"""How the hub lets people in: at once when they have answered, or when the owner agrees."""


@dataclass(frozen=True)
class PublishedOriginal:
    """The original as it is published."""

    name: str
    """What it is called."""
    hub_id: str | None
    """The repository that it is published in; None if it is not known."""
    terms: Terms
    """On what terms it may be passed on."""
    file: str | None = None
    """The name of the GGUF file that it was read from, if it was one."""
    stored_as: str | None = None
    """What that file is quantized to, if it is: divergences are from it, not from what it was."""
    trimmed: Vocabulary | None = None
    """What is left of its vocabulary; None of a model that has all of it."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, hub_id: str | None) -> PublishedOriginal:
        """Read what is known of an original.

        Args:
            checkpoint: the original.
            hub_id: where it is published, if the user says so.

        Raises:
            UserError: its card cannot be read, or contradicts it.
        """
        placed = replace(checkpoint, hub_id=hub_id or checkpoint.hub_id)
        terms = terms_of(placed)
        if terms.problem:
            raise UserError(terms.problem)
        if hub_id:
            base = {"base_model": hub_id, "base_model_relation": RELATION}
            terms = replace(terms, fields={**terms.fields, **base})
        file = checkpoint.gguf_source.name if checkpoint.gguf_source else None
        stored_as = checkpoint.stored_as if checkpoint.quantized else None
        trimmed = checkpoint.trimmed
        return cls(checkpoint.name, placed.hub_id, terms, file, stored_as, trimmed)

    @property
    def questions(self) -> dict[str, Any]:
        """What the original's gate asks its visitors, by the names of a card's fields."""
        return {name: value for name, value in self.terms.fields.items() if name.startswith(GATE)}

    def gate(self, api: HfApi) -> Gate | None:
        """Ask the hub for the original's gate; None where there is none.

        Where the hub cannot be asked, a card with questions means ``manual``.
        """
        unasked: Gate | None = "manual" if self.questions else None
        if self.hub_id is None:
            return unasked
        try:
            gated = api.model_info(self.hub_id).gated
        except HUB_ERRORS:
            return unasked
        return gated or None
