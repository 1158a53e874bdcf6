"""The process of the converter, apart from our packages: run by path, it imports nothing of them.

    python converter_child.py SCRIPT SPLITTING MTP METADATA ARGUMENTS…

The converter knows how a tokenizer splits text by a hash of what it makes of one text, and refuses
tokenizers whose hash it does not know, such as those with a vocabulary of their own. SPLITTING is
the name that bitquilt found in the tokenizer's own rules; it is used for such tokenizers.

The converter also believes a config that speaks of blocks which predict further tokens. MTP is
empty if there are no weights of any.

METADATA are texts that the file's metadata shall have besides, as JSON. Where the key
"bitquilt.header_only" is among them, the converter writes the header alone, and an empty line to
standard output. After that it reads names of tensors from standard input, one a line, and answers
each with the number of its bytes, eight bytes little-endian, and these.

It reads configs as they are published. What newer versions of transformers leave out when they save
a model is asked of transformers' own class of the config.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

_RENAMED = {
    "n_ctx": "max_position_embeddings",
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
}
"""Fields that transformers no longer has → what it has of the same meaning."""
_HEADER_ONLY = "bitquilt.header_only"


def run_converter(
    script: str, splitting: str, mtp: str, metadata: str, arguments: list[str]
) -> None:
    """Import the converter from where it is, and call it."""
    directory, name = os.path.split(os.path.abspath(script))
    # Python put this file's directory first: packages there are not the converter's
    sys.path[0] = directory
    converter: Any = importlib.import_module(name.removesuffix(".py"))
    _tolerate_older_gguf()
    _round_to_bf16_in_torch()
    _refuse_code_of_models()
    _keep_published_fields(_class(converter, "ModelBase"))
    if splitting:
        _teach(_class(converter, "TextModel"), splitting)
    if pairs := json.loads(metadata):
        _add_pairs(_class(converter, "TextModel"), pairs)
    if _HEADER_ONLY in pairs:
        _serve_numbers()
    if not mtp:
        _class(converter, "ModelBase").no_mtp = True
        _count_no_further_blocks()
    if "--mmproj" in arguments:
        _keep_embedding_of_breaks()
    _name_lacking_architectures(converter)
    sys.argv = [script, *arguments]
    _run_with_lacking_fields(converter, arguments[0])


def _run_with_lacking_fields(converter: Any, directory: str) -> None:
    """Call the converter, again with each field that it looks for in vain and transformers has."""
    base, given = _class(converter, "ModelBase"), dict[str, Any]()
    load = base.load_hparams

    def load_hparams(*args: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = load(*args, **options)
        _add_missing(found, given)
        rope = found.get("rope_parameters")
        if isinstance(rope, dict) and "full_attention" in rope:  # where some look without it
            _add_missing(
                rope, {name: given[name] for name in given.keys() & rope["full_attention"].keys()}
            )
        return found

    base.load_hparams = staticmethod(load_hparams)
    while True:
        try:
            converter.main()
            return
        except KeyError as error:
            field = error.args[0]
            value = field_of_transformers(directory, field)
            if value is None or field in given:
                raise
            given[field] = value


def field_of_transformers(directory: str, field: Any) -> Any:
    """Return what transformers computes a model with; None where its class has no such field."""
    if not (isinstance(field, str) and field.isidentifier()):
        return None
    config: Any = importlib.import_module("transformers").AutoConfig.from_pretrained(directory)
    text, field = config.get_text_config(), _RENAMED.get(field, field)
    parts = [text, config]
    if field.startswith("global_"):  # it is a setting of layers that attend to everything now
        layers = zip(getattr(text, "layer_types", ()), text.per_layer_config, strict=False)
        parts = [layer for kind, layer in layers if kind == "full_attention"]
        field = field.removeprefix("global_")
    values = [getattr(part, field, None) for part in parts]
    ropes = [getattr(part, "rope_parameters", None) or {} for part in parts]
    values += [rope.get("full_attention", rope).get(field) for rope in ropes]
    return next((one for one in values if isinstance(one, bool | int | float | str | list)), None)


def _name_lacking_architectures(converter: Any) -> None:
    """Say which architecture it is that the package of gguf is too old for."""
    own = getattr(converter, "get_model_class", None)
    if own is None:  # older converters are one file, and as old as their gguf
        return
    names: Any = importlib.import_module("gguf").MODEL_ARCH_NAMES

    def get_model_class(name: str, *args: Any, **options: Any) -> Any:
        found = own(name, *args, **options)
        if found.model_arch not in names:
            sys.exit(f"its package gguf is older than the converter, and lacks {name}")
        return found

    converter.get_model_class = get_model_class


def _refuse_code_of_models() -> None:
    """Load tokenizers without the code that a model's directory may bring and converters allow."""
    auto: Any = importlib.import_module("transformers").AutoTokenizer
    load = auto.from_pretrained

    def from_pretrained(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "trust_remote_code": False})

    auto.from_pretrained = from_pretrained


class Members:
    """An enumeration that has None for members that it lacks."""

    def __init__(self, own: Any) -> None:
        """Stand for an enumeration."""
        self._own = own

    def __getattr__(self, name: str) -> Any:
        """Get a member, or None."""
        return getattr(self._own, name, None)


def _tolerate_older_gguf() -> None:
    """Let modules of the converter be imported that mention architectures which gguf lacks.

    The gguf of the package is older than its converter, and a module has many architectures.
    """
    gguf: Any = importlib.import_module("gguf")
    for name in ("MODEL_ARCH", "MODEL_TENSOR"):
        if hasattr(gguf, name):
            setattr(gguf, name, Members(getattr(gguf, name)))


def _round_to_bf16_in_torch() -> None:
    """Round as gguf-py does, to the same bits, which takes numpy seconds a GB.

    What is not a number is left to gguf-py.
    """
    torch: Any = importlib.import_module("torch")
    try:
        kind: Any = importlib.import_module("gguf.quants").BF16
    except (ImportError, AttributeError):  # another version's gguf, which is as fast as it is
        return
    own = kind.quantize_blocks

    def quantize_blocks(blocks: Any) -> Any:
        rounded = torch.from_numpy(blocks).bfloat16()
        if rounded.sum().isnan():
            return own(blocks)
        return rounded.view(torch.uint8).numpy()

    kind.quantize_blocks = quantize_blocks


def _serve_numbers() -> None:
    """Let the converter write its header alone, and give the tensors that are asked for."""
    writer: Any = importlib.import_module("gguf").GGUFWriter
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed meanwhile is no answer

    def write_tensors_to_file(self: Any, *, progress: bool = False) -> None:
        del progress
        self.write_ti_data_to_file()
        self.close()
        answers.write(b"\n")
        answers.flush()
        infos = {name: info for part in self.tensors for name, info in part.items()}
        for line in sys.stdin.buffer:
            data = _computed(infos[line.decode().removesuffix("\n")].tensor)
            answers.write(data.nbytes.to_bytes(8, "little"))
            answers.write(memoryview(data).cast("B") if data.flags.c_contiguous else data.tobytes())
            answers.flush()

    writer.write_tensors_to_file = write_tensors_to_file


def _computed(tensor: Any) -> Any:
    """Compute what a converter put off, and keep nothing of it: it may be asked for again."""
    lazy: Any = importlib.import_module("gguf.lazy").LazyBase
    known: dict[int, Any] = {}

    def value(one: Any) -> Any:
        if one._data is None and id(one) not in known:
            known[id(one)] = one._func(*one._recurse_apply(one._args, value), **one._kwargs)
        return known[id(one)] if one._data is None else one._data

    return value(tensor) if isinstance(tensor, lazy) else tensor


def _keep_published_fields(model_base: Any) -> None:
    """Show the converter what config.json says, too: newer versions of transformers rename it."""
    load = model_base.load_hparams

    def load_hparams(directory: Any, *args: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = load(directory, *args, **options)
        path = os.path.join(directory, "config.json")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as stream:
                _add_missing(found, json.load(stream))
        _name_text_architecture(found)
        _name_as_converter_does(found)
        return found

    model_base.load_hparams = staticmethod(load_hparams)


def _name_text_architecture(found: dict[str, Any]) -> None:
    """Name the class of a wrapper's language model, where the converter knows only that one."""
    text = found.get("text_config")
    try:
        known: Any = importlib.import_module("conversion").TEXT_MODEL_MAP
    except ImportError:  # older converters are one file
        return
    own = (found.get("architectures") or [None])[0]
    if not isinstance(text, dict) or text.get("architectures") or own in known:
        return
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    name = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.get("model_type"))
    if name in known:
        text["architectures"] = [name]


def _name_as_converter_does(found: dict[str, Any]) -> None:
    """Name the class as its authors did, whose capitals transformers has changed: Mpt, Phimoe.

    A name that is none of these may be a trainer's own; the type says which class it is.
    """
    try:
        known: Any = importlib.import_module("conversion").TEXT_MODEL_MAP
    except ImportError:  # older converters are one file
        return
    names = found.get("architectures") or [""]
    if isinstance(names[0], str) and names[0] not in known:
        same = [name for name in known if name.lower() == names[0].lower()]
        auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
        own = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(found.get("model_type"))
        same += [own] if own in known else []
        if same:
            found["architectures"] = [same[0], *names[1:]]


def _add_missing(found: dict[str, Any], published: dict[str, Any]) -> None:
    for name, value in published.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            _add_missing(found[name], value)
        else:
            found.setdefault(name, value)


def _count_no_further_blocks() -> None:
    """Tell MiMo V2's converter, which counts three blocks for further tokens, that there are none.

    The count is not in the config.
    """
    try:
        importlib.import_module("conversion.mimo").MimoV2Model._n_nextn = 0
    except (ImportError, AttributeError):  # other versions do not count them
        return


def _class(converter: Any, name: str) -> Any:
    """A class of the converter; older converters are one file."""
    own = getattr(converter, name, None)
    return own or getattr(importlib.import_module("conversion.base"), name)


def _keep_embedding_of_breaks() -> None:
    """Let Pixtral's vision tower see the token embedding, of which it needs a row.

    The converter looks for the row of the token that ends a row of an image, but among the tensors
    that are not the language model's. Without it llama.cpp refuses the file.
    """
    try:
        llava: Any = importlib.import_module("conversion.llava").LlavaVisionModel
    except ImportError:  # older converters are one file, and do not leave it out
        return
    own = llava.filter_tensors

    def filter_tensors(item: tuple[str, Any]) -> tuple[str, Any] | None:
        found: tuple[str, Any] | None = own(item)
        return item if found is None and item[0].endswith("embed_tokens.weight") else found

    llava.filter_tensors = staticmethod(filter_tensors)


def _teach(text_model: Any, splitting: str) -> None:
    known = text_model.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return splitting

    text_model.get_vocab_base_pre = get_vocab_base_pre


def _add_pairs(text_model: Any, pairs: dict[str, str]) -> None:
    prepare = text_model.prepare_metadata

    def prepare_metadata(self: Any, *args: Any, **options: Any) -> None:
        prepare(self, *args, **options)
        for key, value in pairs.items():
            self.gguf_writer.add_string(key, value)

    text_model.prepare_metadata = prepare_metadata


if __name__ == "__main__":
    run_converter(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
