"""The default data's tasks. Each takes a Subject and the clips' labels and gives metrics
{"name": {"value": .., "chance": .., "n": ..}}; None where the split has nothing to ask about."""

import numpy as np

from jepa_jax.config import EvalConfig
from jepa_jax.data.emoji_motion import texts
from jepa_jax.data.emoji_motion.scene import MOTIONS
from jepa_jax.data.emoji_motion.things import THINGS
from jepa_jax.evaluation.captioning import caption_metrics
from jepa_jax.evaluation.classification import class_embeddings, top_k_metrics
from jepa_jax.evaluation.clips import Clip, Subject
from jepa_jax.evaluation.retrieval import ranks, retrieval_metrics
from jepa_jax.evaluation.wording import spread_metrics

NAMES = [thing.name for thing in THINGS]


def is_labelled(clip: Clip) -> bool:
    """Whether a clip is of the default data: other data may have fields of the same names."""
    kinds = {kind for kind, _, _ in clip.pairs}
    return clip.thing in NAMES and clip.motion in ("", *MOTIONS) and kinds >= {"describe", "what_is_it"}


def distinct_captions(clips: list[Clip], count: int) -> list[int]:
    """The first `count` clips of which no two show the same things in the same motion."""
    seen: dict[tuple, int] = {}
    for i, clip in enumerate(clips):
        seen.setdefault((clip.thing, clip.motion, clip.second), i)
    return list(seen.values())[:count]


def caption_embeddings(
    subject: Subject, clips: list[Clip], count: int
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Index of the clips, their S^_Y under their captioning query, and S_Y of their captions."""
    index = distinct_captions(clips, count)
    pairs = [clips[i].pair("describe") for i in index]
    video = subject.answer([query for query, _ in pairs], index)
    return index, video, subject.embed_text([caption for _, caption in pairs])


def retrieval(subject: Subject, clips: list[Clip], config: EvalConfig):
    """Text-to-video and video-to-text over clips of distinct captions."""
    return retrieval_metrics(*caption_embeddings(subject, clips, config.retrieval_clips)[1:])


def what_is_it(subject: Subject, clips: list[Clip], _: EvalConfig):
    """The thing, among all names."""
    predicted = subject.answer([clip.pair("what_is_it")[0] for clip in clips])
    classes = class_embeddings(subject.embed_text, [texts.name_phrasings(n) for n in NAMES])
    labels = np.array([NAMES.index(clip.thing) for clip in clips])
    return top_k_metrics(predicted, classes, labels, ks=(1, 5))


def what_does_it_do(subject: Subject, clips: list[Clip], _: EvalConfig):
    """The motion, among all motions."""
    if not all(clip.motion for clip in clips):
        return None
    predicted = subject.answer([clip.pair("what_does_it_do")[0] for clip in clips])
    classes = class_embeddings(subject.embed_text, [texts.motion_phrasings(m) for m in MOTIONS])
    labels = np.array([MOTIONS.index(clip.motion) for clip in clips])
    return top_k_metrics(predicted, classes, labels, ks=(1,))


def words(target: str) -> list[str]:
    """The words of an answer, without its punctuation."""
    return target.replace(",", "").split()


def vqa(subject: Subject, clips: list[Clip], _: EvalConfig):
    """Closed questions (is some thing present, how many are there), the nearest candidate wins.

    `accuracy` counts every question alike. Chance is that of always giving the commonest answer.
    """
    candidates = {
        "is_present": [["yes", "yes, there is"], ["no", "no, there is not"]],
        "how_many": [texts.count_phrasings(1), texts.count_phrasings(2)],
    }
    metrics, totals = {}, np.zeros(3)
    for kind, phrasings in candidates.items():
        asked = [
            (i, query, next(k for k, (word, *_) in enumerate(phrasings) if word in words(target)))
            for i, clip in enumerate(clips)
            for found, query, target in clip.pairs
            if found == kind
        ]
        index, queries, labels = (list(column) for column in zip(*asked, strict=True))
        predicted = subject.answer(queries, index)
        classes = class_embeddings(subject.embed_text, phrasings)
        metric = top_k_metrics(predicted, classes, np.array(labels), ks=(1,))["top_1"]
        metric["chance"] = float(np.bincount(labels).max() / len(labels))
        metrics[kind] = metric
        totals += np.array([metric["value"], metric["chance"], 1]) * metric["n"]
    value, chance, n = totals
    metrics["accuracy"] = {"value": value / n, "chance": chance / n, "n": int(n)}
    return metrics


def wording(subject: Subject, clips: list[Clip], _: EvalConfig):
    """How far answers spread over the phrasings of the questions that every clip answers."""
    questions = {
        "describe": (None, None),
        "what_is_it": (
            [texts.name_phrasings(name) for name in NAMES],
            [NAMES.index(clip.thing) for clip in clips],
        ),
        "how_many": (
            [texts.count_phrasings(1), texts.count_phrasings(2)],
            [int(bool(clip.second)) for clip in clips],
        ),
    }
    if all(clip.motion for clip in clips):
        motions = [texts.motion_phrasings(motion) for motion in MOTIONS]
        questions["what_does_it_do"] = (motions, [MOTIONS.index(clip.motion) for clip in clips])
    metrics = {}
    for kind, (phrasings, labels) in questions.items():
        answers = np.stack([subject.answer([query] * len(clips)) for query in texts.QUERIES[kind]])
        classes = None if phrasings is None else class_embeddings(subject.embed_text, phrasings)
        right = None if labels is None else np.array(labels)
        spread = spread_metrics(answers, classes, right, is_vqa=kind == "how_many")
        metrics |= {f"{kind}_{name}": metric for name, metric in spread.items()}
    return metrics


def share(hits: np.ndarray, chance: float) -> dict:
    """A metric that is a share of yes or no: [n] bool."""
    return {"value": float(np.mean(hits)) if len(hits) else 0.0, "chance": chance, "n": len(hits)}


def nearest_named(subject: Subject, video: np.ndarray) -> list[tuple[str, str]]:
    """The thing and the motion of the nearest caption of all that name one thing: what an embedding
    tells, whoever reads it. [B, E] -> B pairs."""
    pairs = [(name, motion) for name in NAMES for motion in MOTIONS]
    classes = class_embeddings(subject.embed_text, [texts.caption_phrasings(*pair) for pair in pairs])
    return [pairs[i] for i in np.argmax(video @ classes.T, axis=1)]


def decode(subject: Subject, clips: list[Clip], config: EvalConfig):
    """The captions that the decoder writes, over the clips that `retrieval` is measured on.

    `named` is the share whose thing and motion are both right, of clips that find their own caption among
    all of these clips. `nearest_named` is that of the nearest of all captions there could be, in place of
    the decoder: a gallery of a few hundred is easier than 120 things times 9 motions. `named_as_nearest` is
    the decoder's share where that nearest is right. Chance is that of a pair taken at random.
    """
    if not all(clip.motion for clip in clips):
        return None
    index, video, text = caption_embeddings(subject, clips, config.retrieval_clips)
    found = ranks(video, text, np.eye(len(index), dtype=bool)) == 1
    shown = [clips[i] for i in index]
    written = subject.decode(video)

    def right(named):
        pairs = zip(named, shown, strict=True)
        return np.array([pair == (clip.thing, clip.motion) for pair, clip in pairs])

    by_text, by_nearest = right(map(texts.named, written)), right(nearest_named(subject, video))
    chance = 1 / (len(NAMES) * len(MOTIONS))
    references = [texts.caption_phrasings(clip.thing, clip.motion, clip.second) for clip in shown]
    return {
        "named": share(by_text[found], chance),
        "nearest_named": share(by_nearest[found], chance),
        "named_as_nearest": share(by_text[by_nearest], chance),
        "named_of_all": share(by_text, chance),
        **caption_metrics(written, references),
    }


TASKS = {
    "retrieval": retrieval,
    "what_is_it": what_is_it,
    "what_does_it_do": what_does_it_do,
    "vqa": vqa,
}

# Not of the end of every training run: it asks each question in all its phrasings.
ON_REQUEST = {"wording": wording}
# Those of models that have a decoder.
TEXT_TASKS = {"decode": decode}
