"""Models of random weights by name: for speed and memory, which do not depend on what the weights are."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["MODELS", "random_config", "random_model"]

_QWEN3_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_QWEN36_27B = {
    "vocab_size": 248320,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
}
_TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
_TINY_LINEAR = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2}
MODELS = {
    "qwen3-8b": ("Qwen3ForCausalLM", "Qwen3Config", _QWEN3_8B, _TINY),
    "qwen3.6-27b": (
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        _QWEN36_27B,
        _TINY | _TINY_LINEAR | {"linear_num_value_heads": 4},
    ),
}


def random_config(name: str, tiny: bool = False) -> PreTrainedConfig:
    """The configuration of a name of `MODELS`, or of a tiny model of its kind."""
    _, config_class, full_size, tiny_size = MODELS[name]
    return getattr(transformers, config_class)(
        **(tiny_size if tiny else full_size), max_position_embeddings=1 << 23, pad_token_id=None
    )


def random_model(name: str, tiny: bool, device: torch.device) -> PreTrainedModel:
    """A model of random weights: bfloat16, made on the device; float32 if `tiny`."""
    config = random_config(name, tiny)
    with torch.device("meta"):
        model = getattr(transformers, MODELS[name][0])(config)
    model = model.to(torch.float32 if tiny else torch.bfloat16).to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
        # Buffers that no checkpoint holds are computed when a module is made, so they are made again.
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
        for key, parameter in model.named_parameters():
            if key.endswith("norm.weight") and name == "qwen3-8b":
                parameter.fill_(1.0)
    return model
