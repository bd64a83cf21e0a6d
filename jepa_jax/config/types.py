"""Types and checks that all configurations share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

OPTIONS = {
    "frozen": True,
    "kw_only": True,
    "config": ConfigDict(extra="forbid", strict=True, validate_default=False),
}
NonEmpty = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
# What float32 holds, in which all is computed: there less would be 0, and more infinite.
_MOST = 2.0**127
PositiveFloat = Annotated[float, Field(ge=2.0**-126, le=_MOST, allow_inf_nan=False)]
# Odds relative to others': further apart, their sums and quotients are no numbers.
MOST_WEIGHT = 1e12
Weight = Annotated[float, Field(ge=1 / MOST_WEIGHT, le=MOST_WEIGHT)]
Factor = Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# What a layer computes again in its backward pass: nothing; norms, activations and rotations; those and
# the wide products of its MLP; all of it.
Remat = Literal["none", "elementwise", "mlp", "layer"]
# JAX's random numbers start from 32 bits.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Of float32 again: nearer to 1, what is missing to it would be wrong by more than 3%, and nearer yet nothing.
Decay = Annotated[float, Field(ge=0, le=0.999999)]


def divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    """Raise ValueError, with both names, unless one value is a multiple of the other."""
    if value % divisor:
        raise ValueError(
            f"{name}={value} is not a multiple of {divisor_name}={divisor}: choose values that divide"
        )
