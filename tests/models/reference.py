"""transformers models to compare with: the original as published, and the canonical form."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from bitquilt.models import Checkpoint

TOKENS = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(1))


def original_logits(directory: Path) -> torch.Tensor:
    """What transformers computes from the published files."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    return _logits(model)


def canonical_logits(checkpoint: Checkpoint) -> torch.Tensor:
    """What transformers computes from the canonical config and tensors alone."""
    config = transformers.CONFIG_MAPPING[checkpoint.config["model_type"]](**checkpoint.config)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    loaded = {name: checkpoint.load(name) for name in checkpoint.shapes}
    result = model.load_state_dict(loaded, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= ({"lm_head.weight"} if checkpoint.tied else set())
    model.tie_weights()
    return _logits(model)


def _logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(TOKENS).logits
    return logits
