"""Initial values of rows.

The value of a row that was never written is a pure function of (seed, table name, row): it does not
depend on the order of access, on tier sizes or on threads, and it takes no space.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONSTANT, _UNIFORM, _NORMAL = 0, 1, 2


@dataclass(frozen=True)
class Initializer:
    """Base of the initializers; use one of the subclasses."""

    def spec(self) -> tuple[int, float, float]:
        """(kind, a, b) as the core takes it."""
        raise TypeError("use te.init.Uniform, Normal, Zeros or Constant")


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform in [low, high)."""

    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Uniform(low={self.low}, high={self.high}): low must not exceed high")

    def spec(self) -> tuple[int, float, float]:
        """(kind, a, b) as the core takes it."""
        return _UNIFORM, self.low, self.high


@dataclass(frozen=True)
class Normal(Initializer):
    """Normal with the given mean and standard deviation. The default is `nn.EmbeddingBag`'s."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"Normal(std={self.std}): std must not be negative")

    def spec(self) -> tuple[int, float, float]:
        """(kind, a, b) as the core takes it."""
        return _NORMAL, self.mean, self.std


@dataclass(frozen=True)
class Constant(Initializer):
    """Every weight is `value`."""

    value: float = 0.0

    def spec(self) -> tuple[int, float, float]:
        """(kind, a, b) as the core takes it."""
        return _CONSTANT, self.value, 0.0


@dataclass(frozen=True)
class Zeros(Initializer):
    """Every weight is 0."""

    def spec(self) -> tuple[int, float, float]:
        """(kind, a, b) as the core takes it."""
        return _CONSTANT, 0.0, 0.0
