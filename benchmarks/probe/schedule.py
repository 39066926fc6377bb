"""What is trained on when, and how fast: all by the share of the time that has passed."""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks import Mixture

__all__ = ["RECIPES", "Rates", "Recipe", "Stage"]


@dataclass(frozen=True)
class Stage:
    """A mixture, and the share of the time from which on it is used."""

    start: float
    mixture: Mixture


@dataclass(frozen=True)
class Rates:
    """Peak learning rates of matrices (Muon), embeddings and vectors (AdamW); linear decay to zero from the start."""

    matrices: float = 0.012
    embedding: float = 3e-3
    vectors: float = 3e-3
    warm_up: int = 60

    def multiplier(self, step: int, passed: float) -> float:
        """Share of the peak rates at a step, `passed` of the time gone."""
        return min(1.0, (step + 1) / self.warm_up) * max(0.0, 1.0 - passed)


@dataclass(frozen=True)
class Recipe:
    """A curriculum and its rates."""

    name: str
    stages: tuple[Stage, ...]
    rates: Rates = field(default_factory=Rates)


_LONG = Mixture((2048, 4096, 8192, 16384, 32768), (0.56, 0.12, 0.14, 0.09, 0.09), plain=0.45, repeated=0.0)
_STAGES = (
    Stage(0.0, Mixture((512,), (1.0,), plain=0.35, repeated=0.15)),
    Stage(0.06, Mixture((1024,), (1.0,), plain=0.35, repeated=0.1)),
    Stage(0.2, Mixture((1024, 2048), (0.25, 0.75), plain=0.4, repeated=0.03)),
    Stage(0.58, Mixture((2048, 4096, 8192), (0.6, 0.2, 0.2), plain=0.4, repeated=0.02)),
    Stage(0.78, _LONG),
)
_SHORT = Mixture((512, 1024, 2048), (0.2, 0.3, 0.5))
RECIPES = {
    "full": Recipe("full", _STAGES),
    "more": Recipe("more", (Stage(0.0, _LONG),), Rates(matrices=0.006, embedding=1.5e-3, vectors=1.5e-3)),
    "try": Recipe("try", (Stage(0.0, _SHORT), Stage(0.5, _LONG))),
}
