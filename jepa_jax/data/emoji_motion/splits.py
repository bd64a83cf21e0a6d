"""Which (thing, motion) pairs training never sees, and which clips make up each split."""

import functools
import hashlib

from jepa_jax.data.emoji_motion.scene import MOTIONS
from jepa_jax.data.emoji_motion.things import THINGS

Pair = tuple[str, str]


@functools.cache
def unseen_pairs() -> tuple[Pair, ...]:
    """Returns the 120 (thing, motion) pairs, of 1,080, that are kept out of training.

    Every thing misses one motion, and every motion 13 or 14 things. Were more kept out, a model could
    learn to tell a thing by the motions it is never seen in.
    """

    # A hash instead of a random generator: the same on every version of every library.
    def order(thing: str, motion: str = "") -> bytes:
        return hashlib.sha256(f"{thing}/{motion}".encode()).digest()

    missing = dict.fromkeys(MOTIONS, 0)
    chosen = set()
    for thing in sorted((t.name for t in THINGS), key=order):
        motion = min(MOTIONS, key=lambda motion: (missing[motion], order(thing, motion)))
        missing[motion] += 1
        chosen.add((thing, motion))
    return tuple((t.name, motion) for t in THINGS for motion in MOTIONS if (t.name, motion) in chosen)


@functools.cache
def seen_pairs() -> tuple[Pair, ...]:
    """Returns the 960 (thing, motion) pairs that training is made of."""
    unseen = set(unseen_pairs())
    return tuple((t.name, m) for t in THINGS for m in MOTIONS if (t.name, m) not in unseen)


def spread(pairs: tuple[Pair, ...], count: int) -> tuple[Pair, ...]:
    """Returns `count` of the pairs, evenly spaced, going round again where there are too few."""
    rounds, rest = divmod(count, len(pairs))
    return pairs * rounds + tuple(pairs[index * len(pairs) // rest] for index in range(rest))
