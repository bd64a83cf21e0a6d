"""The default data's tasks. Each takes a Subject and the clips' labels and gives metrics
{"name": {"value": .., "chance": .., "n": ..}}; None where the split has nothing to ask about."""

import numpy as np

from jepa_jax.config import EvalConfig
from jepa_jax.data.emoji_motion import texts
from jepa_jax.data.emoji_motion.scene import MOTIONS
from jepa_jax.data.emoji_motion.things import THINGS
from jepa_jax.evaluation.classification import class_embeddings, top_k_metrics
from jepa_jax.evaluation.clips import Clip, Subject
from jepa_jax.evaluation.retrieval import retrieval_metrics
from jepa_jax.evaluation.wording import spread_metrics

NAMES = [thing.name for thing in THINGS]


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
        spread = spread_metrics(answers, classes, None if labels is None else np.array(labels))
        metrics |= {f"{kind}_{name}": metric for name, metric in spread.items()}
    return metrics


TASKS = {
    "retrieval": retrieval,
    "what_is_it": what_is_it,
    "what_does_it_do": what_does_it_do,
    "vqa": vqa,
}

# Not of the end of every training run: it asks each question in all its phrasings.
ON_REQUEST = {"wording": wording}
