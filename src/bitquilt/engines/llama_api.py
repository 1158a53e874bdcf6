"""The part of llama.cpp's C API that we use, from the library inside xllamacpp's wheel.

The layouts are those of llama.h in the pinned build and of no other: the version is checked, then
the layout, by asking for default parameters and comparing them with llama.cpp's known defaults.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint32, c_void_p
from pathlib import Path
from typing import Any, ClassVar

from bitquilt.errors import EngineMissingError, UserError
from bitquilt.gguf.header import read_header

PINNED = "2026.10.11549"
TYPE_F32 = 0
FLASH_ATTENTION_OFF = 0
NORMAL, CONTROL, USER_DEFINED = 1 << 2, 1 << 3, 1 << 4
"""Of enum llama_token_attr."""
ERROR_LEVEL = 4
"""Of enum ggml_log_level."""
_PLACE = re.compile(r"^(?:\w+: )?(?:error loading model(?: \w+)*: )*")
"""What llama.cpp puts before a reason: its function, and what it was at."""
_UNKNOWN = "unknown model architecture"

Token = c_int32
LogCallback = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class ModelParams(ctypes.Structure):
    """struct llama_model_params."""

    _fields_: ClassVar = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        ("unused", c_void_p * 4),
    ]


class ContextParams(ctypes.Structure):
    """struct llama_context_params; what we never set is not told apart from kv_unified on.

    The tail is longer than any field there: a structure this large travels in memory, where the
    callee reads only its own part.
    """

    _fields_: ClassVar = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("callbacks", c_void_p * 3),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("untold", c_void_p * 12),
    ]


class Batch(ctypes.Structure):
    """struct llama_batch."""

    _fields_: ClassVar = [
        ("n_tokens", c_int32),
        ("token", POINTER(Token)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


KNOWN_MODEL_DEFAULTS = {
    "devices": None,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "main_gpu": 0,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
}
KNOWN_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
}

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_log_set": (None, [LogCallback, c_void_p]),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    "llama_model_meta_val_str": (c_int32, [c_void_p, c_char_p, c_char_p, ctypes.c_size_t]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_model_is_recurrent": (c_bool, [c_void_p]),
    "llama_model_is_hybrid": (c_bool, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_state_seq_get_size": (ctypes.c_size_t, [c_void_p, c_int32]),
    "llama_state_seq_get_data": (ctypes.c_size_t, [c_void_p, c_void_p, ctypes.c_size_t, c_int32]),
    "llama_state_seq_set_data": (ctypes.c_size_t, [c_void_p, c_void_p, ctypes.c_size_t, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_batch_init": (Batch, [c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_bos": (Token, [c_void_p]),
    "llama_vocab_eos": (Token, [c_void_p]),
    "llama_vocab_is_control": (c_bool, [c_void_p, Token]),
    "llama_vocab_get_text": (c_char_p, [c_void_p, Token]),
    "llama_vocab_get_attr": (c_int32, [c_void_p, Token]),
    "llama_token_to_piece": (
        c_int32,
        [c_void_p, Token, c_char_p, c_int32, c_int32, c_bool],
    ),
    "llama_vocab_is_eog": (c_bool, [c_void_p, Token]),
    "llama_tokenize": (
        c_int32,
        [c_void_p, c_char_p, c_int32, POINTER(Token), c_int32, c_bool, c_bool],
    ),
}


def load_library() -> ctypes.CDLL:
    """Load the library and give its functions their types.

    Raises:
        EngineMissingError: xllamacpp is missing, of another version, or laid out otherwise.
    """
    found = importlib.util.find_spec("xllamacpp")
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if found is None or version != PINNED:
        raise EngineMissingError(
            f"bitquilt runs llama.cpp through xllamacpp {PINNED}, but {version} is installed; run "
            f"`pip install xllamacpp=={PINNED}`"
        )
    folder = Path((found.submodule_search_locations or [""])[0])
    try:
        library = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so"))))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (StopIteration, OSError, AttributeError) as error:
        raise EngineMissingError(
            f"xllamacpp {version} does not export llama.cpp's C API on this platform ({error}); "
            f"run `pip install --force-reinstall xllamacpp=={PINNED}` on Linux or macOS"
        ) from error
    check_layout(version, library.llama_model_default_params(), KNOWN_MODEL_DEFAULTS)
    check_layout(version, library.llama_context_default_params(), KNOWN_CONTEXT_DEFAULTS)
    return library


def load_model(library: Any, path: str, params: ctypes.Structure) -> Any:
    """Load a GGUF file; the handle is its pointer.

    Args:
        library: as :func:`load_library` gives it.
        path: of the file.
        params: of struct llama_model_params.

    Raises:
        EngineMissingError: this llama.cpp does not know the file's architecture.
        UserError: llama.cpp refuses the file.
    """
    said: list[str] = []

    def hear(level: int, text: bytes | None, _: Any) -> None:
        if level == ERROR_LEVEL and text is not None:
            said.append(_PLACE.sub("", text.decode(errors="replace").strip()))

    heard = LogCallback(hear)  # which must live while it may be called
    library.llama_log_set(heard, None)
    model = library.llama_model_load_from_file(os.fsencode(path), params)
    library.llama_log_set(LogCallback(), None)
    if model:
        return model
    architecture = read_header(Path(path)).architecture  # which may say what is wrong, too
    reason = said[0] if said else "it says no reason"
    if _UNKNOWN in reason:
        raise EngineMissingError(
            f"the llama.cpp of xllamacpp {PINNED} does not know the architecture {architecture} of "
            f"{path}; run the file in a newer llama.cpp"
        )
    raise UserError(f"llama.cpp cannot load {path}: {reason}; check it with bitquilt inspect")


def check_layout(version: str, params: ctypes.Structure, known: dict[str, Any]) -> None:
    """Compare default parameters with those that are known.

    Raises:
        EngineMissingError: one of them is another, so that the structure is laid out otherwise.
    """
    for field, value in known.items():
        if getattr(params, field) != value:
            raise EngineMissingError(
                f"xllamacpp {version} lays out llama.cpp's parameters differently ({field} reads "
                f"{getattr(params, field)}, not {value}); run `pip install --force-reinstall "
                f"xllamacpp=={PINNED}`"
            )
