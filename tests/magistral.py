"""Magistral Small as it is published, in small: a wrapper with vision, shards, tekken.json."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from bitquilt.bases.vision import write_vision
from bitquilt.gguf.tokenizer import SPLITTINGS
from bitquilt.models import open_checkpoint
from bitquilt.targets import GGUF
from tests.targets.conftest import Model

SHARDS = 10
SPECIALS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("[TOOL_CONTENT]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"),
)
RESERVED = 256
"""Control tokens, most of them without a text of their own; Tekken has 1,000."""
PROMPT = "First draft your thinking process (inner monologue) until you arrive at a response."
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
    "{% elif m.role == 'user' %}[INST]"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' or part.type == 'image_url' %}[IMG]{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}[/INST]"
    "{% else %}{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}"
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MERGED = (b"he", b"ll", b"hell", b"hello", b"12", b"el", b" C", b"Ca", b"mel")
TEXT = {
    **{"model_type": "mistral", "hidden_size": 256, "intermediate_size": 512, "head_dim": 64},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"max_position_embeddings": 1024, "sliding_window": None, "rms_norm_eps": 1e-5},
    **{"rope_parameters": {"rope_type": "default", "rope_theta": 1e9}},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11, "tie_word_embeddings": False},
}
VISION = {
    **{"model_type": "pixtral", "hidden_size": 64, "intermediate_size": 128, "head_dim": 32},
    # the converter knows a projector's matrix 2 only where there is a block 2
    **{"num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 112, "patch_size": 14},
    "hidden_act": "silu",
}
IMAGES = {
    **{"crop_size": {"height": 112, "width": 112}, "size": {"longest_edge": 112}},
    **{"image_mean": [0.48145466, 0.4578275, 0.40821073], "patch_size": 14, "do_resize": True},
    **{"image_std": [0.26862954, 0.26130258, 0.27577711], "rescale_factor": 1 / 255},
}


def tekken_of(pieces: list[bytes], specials: int = RESERVED) -> dict[str, object]:
    """A tekken.json as mistral-common has it, of pieces in the order of their merges."""
    (pattern,) = SPLITTINGS["tekken"].patterns
    return {
        "config": {
            "pattern": pattern,
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + specials,
            "default_num_special_tokens": specials,
            "version": "v13",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate(pieces)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True}
            for rank, text in enumerate(SPECIALS)
        ],
    }


def magistral_checkpoint(place: Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the model under ``place``; every tensor is random, norms included."""
    pieces = [bytes([byte]) for byte in range(256)] + list(MERGED)
    text = TEXT | {"vocab_size": len(pieces) + RESERVED}
    config = Mistral3Config(
        text_config=text, vision_config=VISION, image_token_index=10, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = Mistral3ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=std)
    directory = place / "Magistral-Tiny"
    model.to(dtype).save_pretrained(directory)
    _shard(directory)
    _state_as_published(directory / "config.json")
    (directory / "tekken.json").write_text(json.dumps(tekken_of(pieces)))
    (directory / "SYSTEM_PROMPT.txt").write_text(PROMPT)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    return directory


def seeing_files(place: Path) -> Path:
    """Write the model as a GGUF file, and its vision tower beside it, under ``place``."""
    directory = magistral_checkpoint(place)
    checkpoint = open_checkpoint(directory)
    model, file = Model(directory, checkpoint), place / "Magistral-Tiny-F32.gguf"
    GGUF.write(checkpoint, model.on("F32"), model.packed, file, "{}")
    write_vision(checkpoint, place / "mmproj-Magistral-Tiny.gguf")
    return file


def _state_as_published(path: Path) -> None:
    """Write what transformers 4 wrote: the bases of rotary embeddings beside the other fields."""
    config = json.loads(path.read_text())
    for part in ("text_config", "vision_config"):
        config[part]["rope_theta"] = config[part].pop("rope_parameters")["rope_theta"]
    del config["tie_word_embeddings"]
    config["text_config"].pop("tie_word_embeddings")
    path.write_text(json.dumps(config | {"transformers_version": "4.56.0"}, indent=2))


def _shard(directory: Path) -> None:
    """Deal the tensors out to files with an index, the last with the vision tower's end."""
    weights = load_file(directory / "model.safetensors")
    names = sorted(weights)
    files = {
        name: f"model-{1 + i * SHARDS // len(names):05}-of-{SHARDS:05}.safetensors"
        for i, name in enumerate(names)
    }
    for file in dict.fromkeys(files.values()):
        inside = {name: weights[name] for name in names if files[name] == file}
        save_file(inside, directory / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()
