"""The probe's network in training: Qwen3 in pieces over flat tokens, so that one compiled graph serves every length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Network", "Shape", "rotary_tables"]


@dataclass(frozen=True)
class Shape:
    """Sizes of the network, by the names that transformers gives them.

    The defaults are the probe's: 15.7 M parameters, embeddings tied.
    """

    vocab_size: int = 4096
    hidden_size: int = 384
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 128
    intermediate_size: int = 1024
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 40960

    def config(self) -> dict[str, Any]:
        """The content of config.json for `Qwen3ForCausalLM`."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "use_cache": True,
            "use_sliding_window": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 3,
            "dtype": "bfloat16",
            "initializer_range": 0.02,
        }


def rotary_tables(shape: Shape, length: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, [length, head_dim] each."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=device) / shape.head_dim
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] / shape.rope_theta**exponents
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight.to(x.dtype) * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _project(
    x: Tensor, norm: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, q_norm: Tensor, k_norm: Tensor,
    cos: Tensor, sin: Tensor, eps: float, head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries, keys and values of one layer, [tokens, heads, head_dim] each, after the rotary embedding."""
    queries, keys = wq.shape[0] // head_dim, wk.shape[0] // head_dim
    out = functional.linear(_normed(x, norm, eps), torch.cat((wq, wk, wv)).to(x.dtype))
    out = out.view(x.shape[0], queries + 2 * keys, head_dim)
    cos, sin = cos[:, None], sin[:, None]
    q = _rotated(_normed(out[:, :queries], q_norm, eps), cos, sin)
    k = _rotated(_normed(out[:, queries : queries + keys], k_norm, eps), cos, sin)
    return q, k, out[:, queries + keys :].contiguous()


def _feed(
    x: Tensor, attended: Tensor, wo: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float
) -> Tensor:
    """The rest of a layer after attention, residual connections included, [tokens, hidden_size]."""
    x = x + functional.linear(attended, wo.to(x.dtype))
    opened, raised = functional.linear(_normed(x, norm, eps), torch.cat((gate, up)).to(x.dtype)).chunk(2, -1)
    return x + functional.linear(functional.silu(opened) * raised, down.to(x.dtype))


def _between(
    x: Tensor, attended: Tensor, feed: tuple[Tensor, ...], project: tuple[Tensor, ...],
    cos: Tensor, sin: Tensor, eps: float, head_dim: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """From one attention to the next."""
    x = _feed(x, attended, *feed, eps)
    return (x, *_project(x, *project, cos, sin, eps, head_dim))


def _head(
    x: Tensor, attended: Tensor, feed: tuple[Tensor, ...], norm: Tensor, embedding: Tensor, eps: float
) -> Tensor:
    x = _normed(_feed(x, attended, *feed, eps), norm, eps)
    return functional.linear(x, embedding.to(x.dtype)).float()


def _losses(
    x: Tensor, attended: Tensor, feed: tuple[Tensor, ...], norm: Tensor, embedding: Tensor,
    targets: Tensor, weights: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Weighted sums of the cross entropy, one for each row of `weights`, and the number of right answer tokens."""
    logits = _head(x, attended, feed, norm, embedding, eps)
    picked = logits.gather(1, targets[:, None]).squeeze(1)
    entropy = torch.logsumexp(logits, -1) - picked
    right = ((picked >= logits.amax(-1)) & (weights[1] > 0)).sum()
    return (weights * entropy).sum(-1), right


class Network:
    """Qwen3 with tied embeddings: parameters in float32 under transformers' names, computation in `dtype`.

    Parameters
    ----------
    shape : Shape
        Sizes.
    device : str
        Where parameters live.
    dtype : torch.dtype
        Type of the activations.

    Attributes
    ----------
    parameters : dict of str to nn.Parameter
        By transformers' names.
    """

    def __init__(
        self, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.bfloat16, seed: int = 0
    ) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, nn.Parameter] = {}
        inside = shape.num_attention_heads * shape.head_dim
        outside = shape.num_key_value_heads * shape.head_dim

        def add(name: str, *size: int, deviation: float = 0.0) -> None:
            if len(size) == 1:
                value = torch.ones(size)
            else:
                value = torch.randn(size, generator=generator) * deviation
            self.parameters[name] = nn.Parameter(value.to(device))

        hidden, wide, spread = shape.hidden_size, shape.intermediate_size, shape.hidden_size**-0.5
        add("model.embed_tokens.weight", shape.vocab_size, hidden, deviation=0.02)
        for index in range(shape.num_hidden_layers):
            layer = f"model.layers.{index}."
            add(layer + "self_attn.q_proj.weight", inside, hidden, deviation=spread)
            add(layer + "self_attn.k_proj.weight", outside, hidden, deviation=spread)
            add(layer + "self_attn.v_proj.weight", outside, hidden, deviation=spread)
            add(layer + "self_attn.o_proj.weight", hidden, inside)  # zero: a layer starts as the identity
            add(layer + "self_attn.q_norm.weight", shape.head_dim)
            add(layer + "self_attn.k_norm.weight", shape.head_dim)
            add(layer + "mlp.gate_proj.weight", wide, hidden, deviation=spread)
            add(layer + "mlp.up_proj.weight", wide, hidden, deviation=spread)
            add(layer + "mlp.down_proj.weight", hidden, wide)
            add(layer + "input_layernorm.weight", hidden)
            add(layer + "post_attention_layernorm.weight", hidden)
        add("model.norm.weight", hidden)
        self._project: Callable[..., Any] = _project
        self._between: Callable[..., Any] = _between
        self._losses: Callable[..., Any] = _losses
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def compile(self) -> None:
        """Compile the pieces between attentions; they see flat tokens, so one graph serves every length."""
        self._project, self._between, self._losses = (
            torch.compile(piece, dynamic=False, fullgraph=True) for piece in (_project, _between, _losses)
        )

    def matrices(self) -> list[nn.Parameter]:
        """The weight matrices inside layers."""
        return [p for name, p in self.parameters.items() if p.dim() == 2 and "embed" not in name]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take parameters from `state`.

        Raises
        ------
        ValueError
            If names or shapes differ.
        """
        if set(state) != set(self.parameters):
            different = sorted(set(state) ^ set(self.parameters))
            raise ValueError(f"state must have the network's parameters; these differ: {different[:4]}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if state[name].shape != parameter.shape:
                    got = tuple(state[name].shape)
                    raise ValueError(f"{name} must be {tuple(parameter.shape)}, got {got}")
                parameter.copy_(state[name])

    def losses(self, tokens: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted cross entropies of a batch.

        Parameters
        ----------
        tokens, targets : Tensor
            int64 [batch, length]: each token and the one that follows it.
        weights : Tensor
            float32 [2, batch * length]: weights of the two sums.

        Returns
        -------
        sums : Tensor
            float32 [2], nats times weight.
        right : Tensor
            Number of targets with a second weight above zero that are the most likely token.
        """
        x, attended = self._trunk(tokens)
        last = self._feed_weights(self.shape.num_hidden_layers - 1)
        return self._losses(
            x, attended, last, *self._ends(), targets.reshape(-1), weights, self.shape.rms_norm_eps
        )

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits, float32 [batch, length, vocab_size], of tokens, int64 [batch, length]."""
        with torch.no_grad():
            x, attended = self._trunk(tokens)
            last = self._feed_weights(self.shape.num_hidden_layers - 1)
            return _head(x, attended, last, *self._ends(), self.shape.rms_norm_eps).view(*tokens.shape, -1)

    def _trunk(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All layers but the last feed-forward: the residual stream and the last attention's output, flat."""
        shape, (batch, length) = self.shape, tokens.shape
        cos, sin = self._rotary(batch, length)
        x = functional.embedding(tokens.reshape(-1), self.parameters["model.embed_tokens.weight"]).to(
            self.dtype
        )
        q, k, v = self._project(x, *self._project_weights(0), cos, sin, shape.rms_norm_eps, shape.head_dim)
        for index in range(1, shape.num_hidden_layers):
            x, q, k, v = self._between(
                x, self._attend(q, k, v, batch, length), self._feed_weights(index - 1),
                self._project_weights(index), cos, sin, shape.rms_norm_eps, shape.head_dim,
            )  # fmt: skip
        return x, self._attend(q, k, v, batch, length)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, batch: int, length: int) -> Tensor:
        q, k, v = (t.view(batch, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(batch * length, -1)

    def _rotary(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        if (batch, length) not in self._tables:
            cos, sin = rotary_tables(self.shape, length, self.dtype, self.device)
            self._tables[batch, length] = cos.repeat(batch, 1), sin.repeat(batch, 1)
        return self._tables[batch, length]

    def _layer(self, index: int, *names: str) -> tuple[Tensor, ...]:
        return tuple(self.parameters[f"model.layers.{index}.{name}.weight"] for name in names)

    def _project_weights(self, index: int) -> tuple[Tensor, ...]:
        names = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")
        return self._layer(index, "input_layernorm", *(f"self_attn.{name}" for name in names))

    def _feed_weights(self, index: int) -> tuple[Tensor, ...]:
        names = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        return self._layer(index, "self_attn.o_proj", "post_attention_layernorm", *names)

    def _ends(self) -> tuple[Tensor, Tensor]:
        return self.parameters["model.norm.weight"], self.parameters["model.embed_tokens.weight"]
