"""Every word of the data: captions, queries and answers, all at most 12 words, lower case.

Each meaning has several phrasings, the first of which is canonical; no two meanings share one.
"""

import re

import numpy as np

from jepa_jax.data.emoji_motion.scene import MOTIONS, Scene
from jepa_jax.data.emoji_motion.things import THINGS, with_article

KINDS: tuple[str, ...] = ("describe", "what_is_it", "what_does_it_do", "is_present", "how_many")

# "{}" stands for the thing asked about. No query holds the words of an answer to it.
QUERIES: dict[str, tuple[str, ...]] = {
    "describe": (
        "describe the clip",
        "what happens here?",
        "write a caption",
        "caption this clip",
        "tell me what the clip shows",
    ),
    "what_is_it": (
        "what is it?",
        "what is the main thing?",
        "name the thing in the clip",
        "which thing is this?",
        "what is this called?",
    ),
    "what_does_it_do": (
        "what does it do?",
        "how does it move?",
        "what is happening to it?",
        "describe its motion",
        "which motion is this?",
    ),
    "is_present": (
        "is there {}?",
        "do you see {}?",
        "does the clip show {}?",
        "is {} in the clip?",
        "can you find {} here?",
    ),
    "how_many": (
        "how many things are there?",
        "how many do you see?",
        "count the things",
        "what is the number of things?",
        "how many things does the clip show?",
    ),
}

# The first and the last have at most two words: see `caption_phrasings`.
MOTION_PHRASINGS: dict[str, tuple[str, ...]] = {
    "moves left": ("moves left", "slides to the left", "travels toward the left", "goes left"),
    "moves right": ("moves right", "slides to the right", "travels toward the right", "goes right"),
    "moves up": ("moves up", "slides upward", "travels toward the top", "rises"),
    "moves down": ("moves down", "slides downward", "travels toward the bottom", "sinks"),
    "grows": ("grows", "gets bigger", "becomes larger and larger", "expands"),
    "shrinks": ("shrinks", "gets smaller", "becomes tinier and tinier", "contracts"),
    "blinks": ("blinks", "flashes on and off", "appears and disappears", "flickers"),
    "spins": ("spins", "turns round and round", "rotates about its centre", "whirls"),
    "stays still": ("stays still", "does not move", "keeps the same spot", "rests"),
}

# The share of answers in their canonical phrasing; the others share the rest.
CANONICAL_SHARE = 0.7


def name_phrasings(name: str) -> list[str]:
    """Returns the ways to answer "what is it?"."""
    named = with_article(name)
    return [named, name, f"it is {named}", f"this is {named}"]


def motion_phrasings(motion: str) -> list[str]:
    """Returns the ways to answer "what does it do?"."""
    return list(MOTION_PHRASINGS[motion])


def caption_phrasings(thing: str, motion: str, second: str = "") -> list[str]:
    """Returns the ways to describe a clip; motion is "" where only the things are named."""
    named = with_article(thing)
    if not motion:
        beside = f" beside {with_article(second)}" if second else ""
        return [f"{start}{named}{beside}" for start in ("", "here is ", "we see ", "there is ")]
    first, other, third, last = MOTION_PHRASINGS[motion]
    phrasings = [f"{named} {first}", f"here {named} {other}", f"{named} {third}"]
    phrasings.append(f"we see {named} that {last}")
    if second:
        links = ("beside", "near", "next to", "by")
        phrasings = [f"{p} {link} {with_article(second)}" for p, link in zip(phrasings, links, strict=True)]
    return phrasings


def named(text: str) -> tuple[str, str]:
    """Returns the thing and the motion that a caption names, "" for what it does not."""
    head = re.split(r" (?:beside|near|next to|by) ", text)[0]
    for start in ("here ", "we see "):
        head = head.removeprefix(start)
    motion, said = max(
        ((m, p) for m, phrasings in MOTION_PHRASINGS.items() for p in phrasings if head.endswith(f" {p}")),
        key=lambda found: len(found[1]),
        default=("", ""),
    )
    noun = head.removesuffix(said).strip().removesuffix(" that")
    return next((thing.name for thing in THINGS if with_article(thing.name) == noun), ""), motion


def yes_phrasings(name: str) -> list[str]:
    """Returns the ways to say that the thing is present."""
    return ["yes", "yes, there is", f"yes, there is {with_article(name)}"]


def no_phrasings(name: str) -> list[str]:
    """Returns the ways to say that the thing is absent."""
    return ["no", "no, there is not", f"no, there is no {name}"]


def count_phrasings(count: int) -> list[str]:
    """Returns the ways to say one or two."""
    return {
        1: ["one", "one thing", "exactly one"],
        2: ["two", "two things", "exactly two"],
    }[count]


def pairs(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Returns (kind, query, target) of each question the clip can answer.

    One pair per kind, two of "is_present": about a thing that is there and about one that is not.
    Clips without a named motion have no "what_does_it_do".
    """

    def query(kind: str) -> str:
        return QUERIES[kind][rng.integers(len(QUERIES[kind]))]

    def answer(phrasings: list[str]) -> str:
        if rng.random() < CANONICAL_SHARE:
            return phrasings[0]
        return phrasings[1 + rng.integers(len(phrasings) - 1)]

    present = [name for name in (scene.thing, scene.second) if name]
    captions = caption_phrasings(scene.thing, scene.motion, scene.second)
    asked = [
        ("describe", query("describe"), answer(captions)),
        ("what_is_it", query("what_is_it"), answer(name_phrasings(scene.thing))),
    ]
    if scene.motion:
        does = answer(motion_phrasings(scene.motion))
        asked.append(("what_does_it_do", query("what_does_it_do"), does))
    there = present[rng.integers(len(present))]
    absent = there
    while absent in present:
        absent = THINGS[rng.integers(len(THINGS))].name
    for name, phrasings in ((there, yes_phrasings(there)), (absent, no_phrasings(absent))):
        asked.append(("is_present", query("is_present").format(with_article(name)), answer(phrasings)))
    asked.append(("how_many", query("how_many"), answer(count_phrasings(len(present)))))
    return asked


def vocabulary() -> list[str]:
    """Returns texts that together hold every word in every position the generator can give it."""
    texts = [query for kind in KINDS if kind != "is_present" for query in QUERIES[kind]]
    texts += count_phrasings(1) + count_phrasings(2)
    for thing in THINGS:
        texts += [query.format(with_article(thing.name)) for query in QUERIES["is_present"]]
        texts += name_phrasings(thing.name) + yes_phrasings(thing.name) + no_phrasings(thing.name)
        for motion in ("", *MOTIONS):
            texts += caption_phrasings(thing.name, motion)
            texts += caption_phrasings(thing.name, motion, second=thing.name)
    for motion in MOTIONS:
        texts += motion_phrasings(motion)
    return texts
