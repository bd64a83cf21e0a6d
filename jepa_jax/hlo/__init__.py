"""What a compiled program does: a walk over XLA's optimised text, every loop as often as it runs.

XLA's own cost analysis counts the body of a loop once. Here a body counts as often as its condition
lets it, and of a conditional the dearer branch.
"""

from jepa_jax.hlo.program import Cost, Program
from jepa_jax.hlo.text import HloError

__all__ = ["Cost", "HloError", "Program"]
