"""Which format a model file has, or why it can be of none.

Cheap to import, so that what is no such file is refused before the heavy libraries are.
"""

from __future__ import annotations

from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.models.sources.resolve import DEMO, may_be_hub_id
from bitquilt.runtime.files import require_readable
from bitquilt.runtime.near import suggestion
from bitquilt.targets import TARGETS, Target


def format_of(reference: str | Path) -> Target:
    """Return the format of a GGUF file or an MLX directory.

    Args:
        reference: its path.

    Raises:
        UserError: it is neither of the two, or may not be read.
    """
    path = Path(reference)
    require_readable(path)
    for target in TARGETS.values():
        if target.holds(path):
            return target
    makes = f"`bitquilt quantize {reference} --bits 4.5` makes one"
    if str(reference) == DEMO or (path / "config.json").is_file():
        raise UserError(f"{reference} is a model, not a quantized file of one; {makes}")
    if may_be_hub_id(str(reference)):
        raise UserError(
            f"{reference} does not exist here; if it is a hub id, it names a model, not a "
            f"quantized file of one, and {makes}"
        )
    if not path.exists():
        raise UserError(f"{reference} does not exist{suggestion(path)}")
    raise UserError(
        f"{reference} is neither a GGUF file nor an MLX directory; give what `bitquilt "
        "quantize` wrote, or another file of these kinds"
    )
