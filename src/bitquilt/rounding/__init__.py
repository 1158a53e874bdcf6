"""Rounding: from a matrix and what reads it to codes and scales on a type."""

METHODS = ("nearest", "gptq", "full")
"""Nearest rounding alone; with error feedback; with descent and a refit of the scales too."""

ROUNDING_VERSION = 7
"""Raised where the same matrix is rounded to other bytes: a bank of an older one is refused."""
