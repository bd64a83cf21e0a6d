"""Retrieval over the pairs of any records: the query of each and the text that answers it."""

import numpy as np

from jepa_jax.config import EvalConfig
from jepa_jax.evaluation.clips import Clip, Subject
from jepa_jax.evaluation.retrieval import retrieval_metrics


def distinct_answers(clips: list[Clip], count: int) -> tuple[list[int], list[tuple[str, str]]]:
    """The first `count` clips of which no two have the same answer, by each one's first pair: their index
    and their (query, target)."""
    seen: dict[str, tuple[int, str]] = {}
    for i, clip in enumerate(clips):
        _, query, target = clip.pairs[0]
        seen.setdefault(target, (i, query))
    found = [(i, (query, target)) for target, (i, query) in seen.items()][:count]
    return [i for i, _ in found], [pair for _, pair in found]


def answer_embeddings(
    subject: Subject, clips: list[Clip], count: int
) -> tuple[list[int], list[str], np.ndarray, np.ndarray]:
    """Index of the clips, their answers, S^_Y under their queries [B, E], and S_Y of the answers [B, E]."""
    index, pairs = distinct_answers(clips, count)
    video = subject.answer([query for query, _ in pairs], index)
    answers = [target for _, target in pairs]
    return index, answers, video, subject.embed_text(answers)


def retrieval(subject: Subject, clips: list[Clip], config: EvalConfig):
    """Text-to-video and video-to-text over clips of distinct answers."""
    return retrieval_metrics(*answer_embeddings(subject, clips, config.retrieval_clips)[2:])


TASKS = {"retrieval": retrieval}
