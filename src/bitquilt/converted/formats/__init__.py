"""What differs between the bases of GGUF and MLX: one object a format, listed here.

In: a base by the format's own converter, matrices on types. Out: the file or directory.

    base_format.py     what a format says and does
    gguf_file.py       a GGUF file from its base
    mlx_directory.py   an MLX directory from its base
    mlx_place.py       where the base of an MLX directory is
    mlx_recipe.py      recipes by the names of mlx-lm's modules
"""

from __future__ import annotations

from bitquilt.converted.formats.base_format import BaseFormat
from bitquilt.converted.formats.gguf_file import GgufBase
from bitquilt.converted.formats.mlx_directory import MlxDirectory

FORMATS: dict[str, type[BaseFormat]] = {one.target.name: one for one in (GgufBase, MlxDirectory)}
"""The name of an output format → what becomes of its bases."""
