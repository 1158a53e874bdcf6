"""What a published model says of itself, and what of that its quantized files have to repeat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.licence import LICENCE_FILES, card_metadata
from bitquilt.models.sources import resolve

INHERITED = ("language", "pipeline_tag")
GATE = "extra_gated_"
"""Prefix of the fields that ask visitors something before they get the files."""
RESTRICTED = ("noncommercial", "non-commercial", "cc-by-nc", "research")
"""Licences whose name has one of these forbid commercial use."""


_OF_HTTP = (base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
HUB_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError, OfflineModeIsEnabled, OSError, *_OF_HTTP)
"""The errors of the hub and of the HTTP library below it, which differs between versions."""
Gate = Literal["auto", "manual"]
"""How the hub lets people in: at once when they have answered, or when the owner agrees."""


@dataclass(frozen=True)
class PublishedOriginal:
    """The original as it is published: its place on the hub and its terms."""

    name: str
    """What it is called."""
    hub_id: str | None
    """The repository that it is published in; None if it is not known."""
    metadata: dict[str, Any]
    """The front matter of its card."""
    licence_files: tuple[Path, ...]
    """The files that state the licence."""

    @classmethod
    def of(cls, reference: str, checkpoint: Checkpoint, hub_id: str | None) -> PublishedOriginal:
        """Read the card beside the weights.

        Args:
            reference: what the user called the original.
            checkpoint: the same, opened.
            hub_id: where it is published, where ``reference`` does not say so.
        """
        directory = checkpoint.tokenizer_dir
        metadata = card_metadata(directory) if directory else {}
        files = [directory / name for name in LICENCE_FILES] if directory else []
        return cls(
            checkpoint.name,
            hub_id or _hub_id(reference),
            metadata,
            tuple(file for file in files if file.is_file()),
        )

    @property
    def licence(self) -> dict[str, Any]:
        """The fields that name the licence; empty where the original names none."""
        names = ("license", "license_name", "license_link")
        return {name: self.metadata[name] for name in names if self.metadata.get(name)}

    @property
    def licence_name(self) -> str:
        """The licence's name for people; empty where the original names none."""
        return str(self.licence.get("license_name") or self.licence.get("license") or "")

    @property
    def non_commercial(self) -> bool:
        """Whether the licence's name says that commercial use is not allowed."""
        said = f"{self.licence.get('license', '')} {self.licence.get('license_name', '')}".lower()
        return any(word in said for word in RESTRICTED)

    @property
    def passed_on(self) -> dict[str, Any]:
        """Fields that the quantized model's card repeats, the questions of a gate among them."""
        return {
            name: value
            for name, value in self.metadata.items()
            if name in INHERITED or name.startswith(GATE)
        }

    def gate(self, api: HfApi) -> Gate | None:
        """Ask the hub for the original's gate; None where there is none.

        Where the hub cannot be asked, a card with questions means ``manual``.
        """
        asks = any(name.startswith(GATE) for name in self.metadata)
        unasked: Gate | None = "manual" if asks else None
        if self.hub_id is None:
            return unasked
        try:
            gated = api.model_info(self.hub_id).gated
        except HUB_ERRORS:
            return unasked
        return gated or None


def _hub_id(reference: str) -> str | None:
    """The reference itself, if it is neither a path nor the demo."""
    return reference if resolve.on_hub(reference) else None
