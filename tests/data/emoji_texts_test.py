"""The words of emoji in motion, and the tokenizer trained on them."""

import itertools
import re

import numpy as np
import pytest
from transformers import AutoTokenizer

from jepa_jax.data.emoji_motion import texts
from jepa_jax.data.emoji_motion.scene import MOTIONS, sample_scene
from jepa_jax.data.emoji_motion.splits import seen_pairs
from jepa_jax.data.emoji_motion.things import THINGS, with_article
from jepa_jax.data.emoji_motion.tokenizer import build_tokenizer
from jepa_jax.data.tokenizer import SHIPPED

FOLDER = SHIPPED["emoji_motion"]


def words(text: str) -> str:
    """The text's words between single spaces, so that `in` compares whole words."""
    return f" {' '.join(re.findall(r'[a-z]+', text))} "


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(FOLDER))


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(np.random.default_rng(i), *pair) for i, pair in enumerate(seen_pairs())]


def test_phrasings_of_two_motions_never_meet():
    for one, other in itertools.permutations(MOTIONS, 2):
        for phrase in texts.motion_phrasings(one):
            assert not any(words(phrase) in words(p) for p in texts.motion_phrasings(other))


def test_the_first_and_last_wording_of_a_motion_are_short_enough_for_captions():
    for phrasings in texts.MOTION_PHRASINGS.values():
        assert len(set(phrasings)) == 4
        assert all(len(phrasings[place].split()) <= 2 for place in (0, 3))


def test_a_phrasing_means_one_thing_only():
    names = [texts.name_phrasings(thing.name) for thing in THINGS]
    captions = [texts.caption_phrasings(t.name, motion) for t in THINGS for motion in MOTIONS]
    motions = [texts.motion_phrasings(motion) for motion in MOTIONS]
    answers = [texts.yes_phrasings("cat"), texts.no_phrasings("cat")]
    counts = [texts.count_phrasings(1), texts.count_phrasings(2)]
    for group in (names, captions, motions, answers, counts):
        flat = [phrase for phrasings in group for phrase in phrasings]
        assert len(flat) == len(set(flat))


def test_pairs_answer_their_query_and_queries_never_hold_the_answer(scenes):
    for scene in scenes:
        found = texts.pairs(scene, np.random.default_rng(7))
        assert [kind for kind, _, _ in found] == [
            "describe", "what_is_it", "what_does_it_do", "is_present", "is_present", "how_many"
        ]  # fmt: skip
        by_kind = {kind: target for kind, _, target in found}
        captions = texts.caption_phrasings(scene.thing, scene.motion, scene.second)
        assert by_kind["describe"] in captions
        assert not scene.second or with_article(scene.second) in by_kind["describe"]
        assert by_kind["what_is_it"] in texts.name_phrasings(scene.thing)
        assert by_kind["what_does_it_do"] in texts.motion_phrasings(scene.motion)
        assert by_kind["how_many"] in texts.count_phrasings(2 if scene.second else 1)
        (_, there, yes), (_, absent, no) = (pair for pair in found if pair[0] == "is_present")
        assert yes.startswith("yes")
        assert no.startswith("no")
        shown = [words(with_article(name)) for name in (scene.thing, scene.second) if name]
        assert any(name in words(there) for name in shown)
        assert not any(name in words(absent) for name in shown)
        for _, query, target in found:
            assert words(target) not in words(query)
            assert len(query.split()) <= 12
            assert len(target.split()) <= 12


def test_every_phrasing_is_drawn(scenes):
    rng = np.random.default_rng(0)
    drawn = {query for scene in scenes[:100] for _, query, _ in texts.pairs(scene, rng)}
    fixed = {q for kind, group in texts.QUERIES.items() if kind != "is_present" for q in group}
    assert fixed <= drawn


def test_a_clip_without_a_named_motion_is_not_asked_what_it_does():
    scene = sample_scene(np.random.default_rng(0), "owl", "")
    found = {kind: target for kind, _, target in texts.pairs(scene, np.random.default_rng(0))}
    assert set(found) == set(texts.KINDS) - {"what_does_it_do"}
    assert found["describe"] in texts.caption_phrasings("owl", "")


def test_every_word_is_one_token(tokenizer):
    for text in texts.vocabulary():
        pieces = re.findall(r"[a-z]+|[^a-z ]", text)
        assert tokenizer.tokenize(text) == [
            piece if piece in ",?" else f"\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}{piece}"
            for piece in pieces
        ]


def test_tokens_read_back_as_the_text_and_pad_on_the_right(tokenizer):
    given = ["is there an owl?", "a cat", "Zürich, 日本!"]
    batch = tokenizer(given, padding=True)
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == [
        text.lower() for text in given
    ]
    ids, mask = batch["input_ids"][1], batch["attention_mask"][1]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert ids[sum(mask) - 1] == tokenizer.eos_token_id == 2
    assert mask == sorted(mask, reverse=True)
    assert 0 in mask
    assert set(ids[sum(mask) :]) == {tokenizer.pad_token_id} == {0}
    assert len(tokenizer) <= 1024


def test_the_shipped_tokenizer_is_the_one_the_script_trains():
    trained = build_tokenizer.train().to_str(pretty=True) + "\n"
    assert trained == (FOLDER / "tokenizer.json").read_text()


def test_a_caption_names_its_thing_and_motion_in_every_phrasing():
    for thing, motion in itertools.product(THINGS, MOTIONS):
        for second in ("", "dog"):
            for caption in texts.caption_phrasings(thing.name, motion, second):
                assert texts.named(caption) == (thing.name, motion)
    assert texts.named("a dog stands") == ("", "")
    assert texts.named("a dog dog spins") == ("", "spins")
    assert texts.named("here is a dog beside a cat that spins") == ("", "")
    assert texts.named("") == ("", "")
