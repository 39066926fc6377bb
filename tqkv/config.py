"""What a cache is told: rates, codes, window and capacity, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["RATES", "TILE_TOKENS", "CacheOptions"]

TILE_TOKENS = 16  # tokens that the packed layout keeps together
RATES = (2.0, 2.5, 3.0, 3.5, 4.0)
_CODES = ("chain", "mse", "prod")
_KEY_PLANS = ("oblivious", "calibrated")
_SCALES = ("unbiased", "least_squares", "norm")
# The paper's codes are there to reproduce the paper, so they keep the paper's scale.
_DEFAULT_SCALES = {"chain": ("unbiased", "unbiased"), "mse": ("norm", "norm"), "prod": ("norm", "norm")}


@dataclass(frozen=True)
class CacheOptions:
    """Validated options of a `TurboQuantCache`; its parameters describe them.

    Attributes
    ----------
    key_bits, value_bits : float
        Bits per dimension without scales.
    code : str
        "chain", "mse" or "prod".
    memory : int
        Memory of the chain.
    key_scale, value_scale : str
        "unbiased" (<x_hat, x> = |x|^2), "least_squares" (least |x_hat - x|) or "norm" (|x_hat| near |x|).
    centre_keys : bool
        Whether the mean key of every head and channel is taken off before coding.
    key_plan : str
        "oblivious" (the rotation alone) or "calibrated" (a map for every head, from the first prompt).
    sink_tokens, recent_tokens : int
        Tokens at the start and at the end that stay in full precision.
    skip_layers : frozenset of int
        Full-attention layers left in full precision.
    max_length : int or None
        Tokens to allocate once for all; None grows.
    seed : int
        Seed of the rotations.
    """

    key_bits: float
    value_bits: float
    code: str
    memory: int
    key_scale: str
    value_scale: str
    centre_keys: bool
    key_plan: str
    sink_tokens: int
    recent_tokens: int
    skip_layers: frozenset[int]
    max_length: int | None
    seed: int

    @classmethod
    def checked(
        cls,
        *,
        num_layers: int,
        bits: Any,
        key_bits: Any,
        value_bits: Any,
        code: Any,
        memory: Any,
        key_scale: Any,
        value_scale: Any,
        centre_keys: Any,
        key_plan: Any,
        sink_tokens: Any,
        recent_tokens: Any,
        skip_layers: Any,
        max_length: Any,
        seed: Any,
    ) -> CacheOptions:
        """Options from what a caller passed; `num_layers` bounds `skip_layers`.

        Raises
        ------
        ValueError
            Naming the argument, the rule and the value.
        """
        code = _choice("code", code, _CODES)
        scales = _DEFAULT_SCALES[code]
        options = cls(
            key_bits=_rate("key_bits", bits if key_bits is None else key_bits, code),
            value_bits=_rate("value_bits", bits if value_bits is None else value_bits, code),
            code=code,
            memory=_integer("memory", memory, 2, 3),
            key_scale=_choice("key_scale", scales[0] if key_scale is None else key_scale, _SCALES),
            value_scale=_choice("value_scale", scales[1] if value_scale is None else value_scale, _SCALES),
            centre_keys=_flag("centre_keys", centre_keys),
            key_plan=_choice("key_plan", key_plan, _KEY_PLANS),
            sink_tokens=_integer("sink_tokens", sink_tokens, 0, 1 << 16),
            recent_tokens=_integer("recent_tokens", recent_tokens, 0, 1 << 16),
            skip_layers=_layers(skip_layers, num_layers),
            max_length=None if max_length is None else _integer("max_length", max_length, 1, 1 << 31),
            seed=_integer("seed", seed, 0, 2**63 - 1),
        )
        options._check_together()
        return options

    def _check_together(self) -> None:
        if self.recent_tokens % TILE_TOKENS:
            raise ValueError(f"recent_tokens must be a multiple of {TILE_TOKENS}, got {self.recent_tokens}")
        if self.code == "prod" and (self.key_scale, self.value_scale) != ("norm", "norm"):
            raise ValueError(
                "key_scale and value_scale must be 'norm' for code 'prod', whose estimate is unbiased without a scale, "
                f"got {self.key_scale!r} and {self.value_scale!r}"
            )
        if self.max_length is not None:
            least = self.sink_tokens + self.recent_tokens + TILE_TOKENS
            if self.max_length < least:
                raise ValueError(
                    f"max_length must be at least sink_tokens + recent_tokens + {TILE_TOKENS} = {least}, "
                    f"got {self.max_length}"
                )
            if self.recent_tokens == 0:
                raise ValueError(
                    f"recent_tokens must be at least {TILE_TOKENS} where max_length is given, got 0"
                )


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def _rate(name: str, value: Any, code: str) -> float:
    rates = tuple(rate for rate in RATES if code != "prod" or rate == math.floor(rate))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in rates:
        raise ValueError(
            f"{name} must be one of {', '.join(f'{rate:g}' for rate in rates)} for code {code!r}, got {value!r}"
        )
    return float(value)


def _layers(value: Any, num_layers: int) -> frozenset[int]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(f"skip_layers must be layer indices, got {value!r}")
    layers = []
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not -num_layers <= item < num_layers:
            raise ValueError(f"skip_layers must be indices of {num_layers} layers, got {item!r}")
        layers.append(item % num_layers)
    return frozenset(layers)
