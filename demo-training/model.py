"""The demo model in plain torch: Llama 4's dense text layer, with transformers' tensor names.

Shapes: B batch, T positions, W width, H query heads, K key heads, D head dimension.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, KEY_HEADS, HEAD_DIM, MLP, VOCABULARY = 256, 14, 4, 2, 64, 768, 8192
EPSILON, ROPE_THETA = 1e-5, 500000.0

CONFIG = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "attention_bias": False,
    "attention_chunk_size": 32768,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": False,
    "bos_token_id": 8176,
    "eos_token_id": [8177, 8184, 8185],
    "floor_scale": 8192,
    "for_llm_compressor": False,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 0,
    "intermediate_size": 1024,  # the width of experts, of which there are none
    "intermediate_size_mlp": MLP,
    # transformers derives these from no_rope_layers and then refuses its surplus entries
    "layer_types": ["chunked_attention"] * LAYERS,
    "max_position_embeddings": 2048,
    "moe_layers": [],
    "no_rope_layers": [1] * 22,  # 1: rotary; longer than the model, as the whole family's is
    "num_attention_heads": HEADS,
    "num_experts_per_tok": 0,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KEY_HEADS,
    "num_local_experts": 0,
    "output_router_logits": False,
    "pad_token_id": 8180,
    "rms_norm_eps": EPSILON,
    "rope_scaling": None,
    "rope_theta": ROPE_THETA,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": VOCABULARY,
}
GENERATION = {
    "bos_token_id": 8176,
    "do_sample": True,
    "eos_token_id": [8177, 8184, 8185],
    "pad_token_id": 8180,
    "temperature": 0.6,
    "top_p": 0.95,
}


def rotary(positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine, [T, D/2]."""
    inverse = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2, device=device).float() / HEAD_DIM)
    angles = torch.outer(torch.arange(positions, device=device).float(), inverse)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs, as Llama 4 does; x is [B, T, heads, D]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]  # [T, 1, D/2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def rms_norm(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (rms_norm(x) * self.weight).to(x.dtype)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(WIDTH, KEY_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(WIDTH, KEY_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        heads = F.linear(x, weight).unflatten(-1, (-1, HEAD_DIM))  # [B, T, H + 2K, D]
        q, k, v = heads.split((HEADS, KEY_HEADS, KEY_HEADS), dim=2)
        q, k = (rms_norm(rotate(y, cos, sin)).to(v.dtype) for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # [B, heads, T, D]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, MLP, bias=False)
        self.up_proj = nn.Linear(WIDTH, MLP, bias=False)
        self.down_proj = nn.Linear(MLP, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = Norm()
        self.self_attn = Attention()
        self.post_attention_layernorm = Norm()
        self.feed_forward = FeedForward()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.feed_forward(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # what writes to the residual stream starts at zero: every layer as the identity
                writes = "o_proj" in name or "down_proj" in name
                nn.init.normal_(weight, std=0.0 if writes else 0.02)

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids [B, T] -> normalized hidden states [B, T, W]."""
        cos, sin = rotary(ids.shape[1], ids.device)
        x = self.embed_tokens(ids)
        if torch.is_autocast_enabled(ids.device.type):
            x = x.to(torch.get_autocast_dtype(ids.device.type))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return head_loss(self.hidden(ids), self.embed_tokens.weight, targets)


@torch.compile
def head_loss(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, embedding).float()  # the embedding is the head
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def save(model: nn.Module, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v.bfloat16().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", CONFIG), ("generation_config.json", GENERATION)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
