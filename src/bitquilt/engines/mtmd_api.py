"""The part of llama.cpp's libmtmd that we use: images in, embeddings out.

As in :mod:`.llama_api`, layouts are those of the pinned build, whose defaults are compared.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from typing import Any, ClassVar

from bitquilt.engines.llama_api import PINNED, check_layout

MARKER = b"<__media__>"
"""What stands for an image in a text."""
TEXT_CHUNK = 0
"""Of enum mtmd_input_chunk_type."""


class MtmdParams(ctypes.Structure):
    """struct mtmd_context_params."""

    _fields_: ClassVar = [
        ("use_gpu", c_bool),
        ("device", c_void_p),
        ("print_timings", c_bool),
        ("n_threads", c_int32),
        ("image_marker", c_char_p),
        ("media_marker", c_char_p),
        ("flash_attn_type", c_int32),
        ("warmup", c_bool),
        ("image_min_tokens", c_int32),
        ("image_max_tokens", c_int32),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("batch_max_tokens", c_int32),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
    ]


class MarkedText(ctypes.Structure):
    """struct mtmd_input_text."""

    _fields_: ClassVar = [
        ("text", c_char_p),
        ("text_len", c_size_t),
        ("add_special", c_bool),
        ("parse_special", c_bool),
    ]


class BitmapOptions(ctypes.Structure):
    """struct mtmd_helper_init_opt, which is about videos."""

    _fields_: ClassVar = [
        ("fps_target", c_float),
        ("ffmpeg_bin_dir", c_char_p),
        ("timestamp_interval_ms", c_int64),
    ]


class Bitmap(ctypes.Structure):
    """struct mtmd_helper_bitmap_wrapper."""

    _fields_: ClassVar = [("bitmap", c_void_p), ("video", c_void_p)]


KNOWN_MTMD_DEFAULTS = {
    "use_gpu": True,
    "device": None,
    "print_timings": True,
    "n_threads": 4,
    "image_marker": None,
    "media_marker": MARKER,
    "flash_attn_type": -1,
    "warmup": True,
    "image_min_tokens": -1,
    "image_max_tokens": -1,
    "cb_eval": None,
    "batch_max_tokens": 1024,
}
KNOWN_BITMAP_DEFAULTS = {"fps_target": 4.0, "ffmpeg_bin_dir": None, "timestamp_interval_ms": 5000}

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mtmd_context_params_default": (MtmdParams, []),
    "mtmd_init_from_file": (c_void_p, [c_char_p, c_void_p, MtmdParams]),
    "mtmd_support_vision": (c_bool, [c_void_p]),
    "mtmd_decode_use_mrope": (c_bool, [c_void_p]),
    "mtmd_decode_use_non_causal": (c_bool, [c_void_p, c_void_p]),
    "mtmd_helper_init_opt_default": (BitmapOptions, []),
    "mtmd_helper_bitmap_init_from_buf": (
        Bitmap,
        [c_void_p, c_char_p, c_size_t, c_bool, BitmapOptions],
    ),
    "mtmd_bitmap_free": (None, [c_void_p]),
    "mtmd_input_chunks_init": (c_void_p, []),
    "mtmd_input_chunks_free": (None, [c_void_p]),
    "mtmd_input_chunks_size": (c_size_t, [c_void_p]),
    "mtmd_input_chunks_get": (c_void_p, [c_void_p, c_size_t]),
    "mtmd_tokenize": (
        c_int32,
        [c_void_p, c_void_p, POINTER(MarkedText), POINTER(c_void_p), c_size_t],
    ),
    "mtmd_input_chunk_get_type": (c_int32, [c_void_p]),
    "mtmd_input_chunk_get_n_tokens": (c_size_t, [c_void_p]),
    "mtmd_input_chunk_get_tokens_text": (POINTER(c_int32), [c_void_p, POINTER(c_size_t)]),
    "mtmd_encode_chunk": (c_int32, [c_void_p, c_void_p]),
    "mtmd_get_output_embd": (POINTER(c_float), [c_void_p]),
    "llama_model_n_embd_inp": (c_int32, [c_void_p]),
    "llama_set_causal_attn": (None, [c_void_p, c_bool]),
}


def load_mtmd(library: Any) -> None:
    """Give the functions of the loaded library their types.

    Raises:
        EngineMissingError: they are laid out otherwise than in the pinned build.
    """
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    check_layout(PINNED, library.mtmd_context_params_default(), KNOWN_MTMD_DEFAULTS)
    check_layout(PINNED, library.mtmd_helper_init_opt_default(), KNOWN_BITMAP_DEFAULTS)
