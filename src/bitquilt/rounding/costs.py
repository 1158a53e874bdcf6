"""What rounding a matrix takes, by type: the unit in which progress is counted.

The unit is a second of one thread of one machine, that of the table in docs/decisions/forecast.md.
"""

from __future__ import annotations

from bitquilt import qtypes
from bitquilt.qtypes.iquants import Codebook
from bitquilt.qtypes.mlx_affine import Affine

TABLE = 0.45
"""What a weight of an embedding or a head costs of one in a block: it takes no error feedback."""
LINKED_ROUNDING, LINKED_POLISHING = 1.2, 2.0
"""How many times as long rounding and polishing take in a block as the table says, which is of rows
that do not make up for each other (docs/decisions/output-feedback.md)."""


def rounding_seconds(qtype_name: str, weights: int, table: bool = False) -> float:
    """Return the seconds that one thread takes to round so many weights to a type."""
    return weights * _nanoseconds(qtype_name)[0] * 1e-9 * (TABLE if table else LINKED_ROUNDING)


def polishing_seconds(qtype_name: str, weights: int) -> float:
    """Return the seconds that one thread takes to polish them."""
    return weights * _nanoseconds(qtype_name)[1] * 1e-9 * LINKED_POLISHING


def _nanoseconds(qtype_name: str) -> tuple[float, float]:
    """Return nanoseconds of a weight: rounded, polished."""
    qtype = qtypes.get(qtype_name)
    if isinstance(qtype, Codebook):
        return 660.0, 750.0
    if isinstance(qtype, Affine):
        return 200.0, 330.0
    return _BY_NAME.get(qtype_name, (180.0, 390.0))


_BY_NAME = {
    "BF16": (60.0, 0.0),
    "F32": (50.0, 0.0),
    "Q8_0": (90.0, 360.0),
    "Q2_0": (150.0, 370.0),
    "TQ1_0": (150.0, 370.0),
    "TQ2_0": (150.0, 370.0),
    "MXFP4": (150.0, 370.0),
    "NVFP4": (200.0, 370.0),
    "nvfp4": (200.0, 370.0),
    "mxfp8": (200.0, 370.0),
    "Q4_1": (310.0, 430.0),
    "Q5_1": (310.0, 490.0),
    "Q2_K": (260.0, 300.0),
    "Q3_K": (240.0, 400.0),
    "Q4_K": (280.0, 300.0),
    "Q5_K": (290.0, 300.0),
    "Q6_K": (160.0, 280.0),
    "IQ4_XS": (340.0, 390.0),
    "IQ4_NL": (480.0, 500.0),
}
