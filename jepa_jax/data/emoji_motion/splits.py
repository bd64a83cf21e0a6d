"""Which (thing, motion) pairs training never sees, and which clips make up each split."""

import functools
import hashlib

from jepa_jax.data.emoji_motion.scene import MOTIONS
from jepa_jax.data.emoji_motion.things import THINGS

Pair = tuple[str, str]


@functools.cache
def unseen_pairs() -> tuple[Pair, ...]:
    """Returns the 270 (thing, motion) pairs, of 1,080, that are kept out of training.

    Every fourth thing misses three motions and the others two; every motion misses 30 things. So
    each thing is seen in at least 6 motions, and each motion with 90 things.
    """

    # A hash instead of a random generator: the same on every version of every library.
    def order(thing: str, motion: str = "") -> bytes:
        return hashlib.sha256(f"{thing}/{motion}".encode()).digest()

    missing = dict.fromkeys(MOTIONS, 0)
    chosen = set()
    for index, thing in enumerate(sorted((t.name for t in THINGS), key=order)):
        fewest = sorted(MOTIONS, key=lambda motion: (missing[motion], order(thing, motion)))
        for motion in fewest[: 3 if index % 4 == 0 else 2]:
            missing[motion] += 1
            chosen.add((thing, motion))
    return tuple((t.name, motion) for t in THINGS for motion in MOTIONS if (t.name, motion) in chosen)


@functools.cache
def seen_pairs() -> tuple[Pair, ...]:
    """Returns the 810 (thing, motion) pairs that training is made of."""
    unseen = set(unseen_pairs())
    return tuple((t.name, m) for t in THINGS for m in MOTIONS if (t.name, m) not in unseen)


def spread(pairs: tuple[Pair, ...], count: int) -> tuple[Pair, ...]:
    """Returns `count` of the pairs, evenly spaced, going round again where there are too few."""
    rounds, rest = divmod(count, len(pairs))
    return pairs * rounds + tuple(pairs[index * len(pairs) // rest] for index in range(rest))
