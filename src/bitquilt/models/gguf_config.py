"""A canonical config as metadata of a GGUF file, and the config that a file's metadata means."""

from __future__ import annotations

from bitquilt.errors import UnknownFamilyError, UserError
from bitquilt.gguf.container import GgufTensor, MetadataValue
from bitquilt.gguf.header import GgufHeader
from bitquilt.gguf.metadata import Hyperparameters, hyperparameter_keys, read_hyperparameters
from bitquilt.gguf.rope import ROPE_FREQS, RopeFactors, rope_factors
from bitquilt.models.architectures import GGUF_ARCHITECTURES, Architecture, architecture_of
from bitquilt.models.architectures.conditions import first_failed
from bitquilt.models.config import ModelConfig, head_dim, rope


def gguf_keys(config: ModelConfig) -> dict[str, MetadataValue]:
    """Every key under the architecture's name that llama.cpp needs to build the graph.

    Raises:
        UserError: the config asks for something that llama.cpp computes differently.
    """
    family = architecture_of(config)
    failed = first_failed(config, family.gguf_conditions)
    if failed is not None:
        raise UserError(
            f"{failed.field} = {config.get(failed.field)} in a {family.model_type} model cannot "
            f"be written exactly as GGUF: {failed.because}; give --to=mlx"
        )
    hyperparameters = Hyperparameters(
        context_length=_context_length(config, family),
        embedding_length=int(config["hidden_size"]),
        block_count=int(config["num_hidden_layers"]),
        feed_forward_length=int(config["intermediate_size"]),
        head_count=int(config["num_attention_heads"]),
        head_count_kv=int(config["num_key_value_heads"]),
        head_dim=head_dim(config),
        rms_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope(config),
        vocab_size=int(config["vocab_size"]),
    )
    own = family.gguf_keys(config)
    return hyperparameter_keys(family.gguf_architecture, hyperparameters, own)


def gguf_rope_factors(config: ModelConfig) -> RopeFactors | None:
    """The divisors that the file carries as ``rope_freqs.weight``, if its RoPE is scaled so.

    Raises:
        UserError: llama.cpp does not read them for this family.
    """
    factors = rope_factors(rope(config), head_dim(config))
    if factors is not None and not architecture_of(config).reads_rope_freqs:
        raise UserError(
            "llama.cpp reads Llama 3 RoPE scaling for llama models only, not for "
            f"{config['model_type']}; give --to=mlx"
        )
    return factors


def config_of(header: GgufHeader) -> ModelConfig:
    """The Hugging Face config that a model's metadata amounts to.

    Raises:
        UserError: the architecture is unknown, a field is missing, or one says what no config of
            the family can.
    """
    family = architecture_in(header)
    _refuse_other_models(header)
    h = read_hyperparameters(header)
    config = {
        "model_type": family.model_type,
        "hidden_size": h.embedding_length,
        "intermediate_size": h.feed_forward_length,
        "num_hidden_layers": h.block_count,
        "num_attention_heads": h.head_count,
        "num_key_value_heads": h.head_count_kv,
        "head_dim": h.head_dim,
        "max_position_embeddings": h.context_length,
        "rms_norm_eps": h.rms_epsilon,
        "vocab_size": h.vocab_size,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": h.rope,
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": header.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return config | family.gguf_fields(header, config)


def architecture_in(header: GgufHeader) -> Architecture:
    """The family that a file is read as. Mistral is written as llama, which it computes as.

    Raises:
        UserError: it is none that bitquilt knows.
    """
    family = GGUF_ARCHITECTURES.get(header.architecture)
    if family is None:
        if header.architecture == "clip":
            raise UserError(
                f"{header.path} is the vision tower of a model; give the model's own file, beside "
                "which it is found"
            )
        raise UnknownFamilyError(
            f"{header.path} has architecture {header.architecture or 'unknown'}; bitquilt reads "
            f"GGUF files of {', '.join(GGUF_ARCHITECTURES)} as checkpoints",
            "give the Hugging Face directory that it was made from",
        )
    return family


def hf_tensors(header: GgufHeader) -> dict[str, GgufTensor]:
    """The tensor table under Hugging Face names.

    Raises:
        UserError: a tensor has no place in the architecture.
    """
    family = architecture_in(header)
    return {
        family.hf_name(name): tensor
        for name, tensor in header.tensors.items()
        if name != ROPE_FREQS
    }


def _refuse_other_models(header: GgufHeader) -> None:
    experts = header.get("expert_count", 0)
    if experts:
        raise UserError(
            f"{header.path} is a mixture of {experts} experts, and bitquilt reads only dense "
            "models; quantize another model"
        )
    if "token_embd.weight" not in header.tensors:
        raise UserError(
            f"{header.path} has no token_embd.weight, so it is not a whole language model; "
            "download it again"
        )


def _context_length(config: ModelConfig, family: Architecture) -> int:
    """The longest context in which llama.cpp's full attention is what the model was trained with.

    Where llama.cpp has no sliding window for a family, there is no difference within one window.
    """
    longest = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if family.runs_windows or not window:
        return longest
    if not family.window_everywhere and not config.get("use_sliding_window"):
        return longest
    return min(longest, int(window))
