"""EPIC-KITCHENS-100: what is being done in a kitchen, and what will be done next."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel

from jepa_jax.evaluation.annotations import locate, main_file, read_table
from jepa_jax.evaluation.benchmark import Answers, Benchmark, Item, Metrics
from jepa_jax.evaluation.classification import checked, class_embeddings, class_mean_recall, top_k_metrics
from jepa_jax.flags import UsageError

SPLITS = ("validation", "train")
QUERY = "What is the person doing?"
QUERY_AHEAD = "What will the person do next?"
# tau_a: the action is to be named so long before it starts.
AHEAD_SECONDS = 1.0
# The paper does not say how much of the past is seen.
OBSERVED_SECONDS = 4.0


class _Class(BaseModel):
    id: int
    key: str


class _Row(BaseModel):
    narration_id: str
    video_id: str
    start_timestamp: str
    stop_timestamp: str
    verb_class: int
    noun_class: int


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Verbs and nouns by class id, and the (verb, noun) pairs that are actions."""

    verbs: dict[int, str]
    nouns: dict[int, str]
    actions: list[tuple[int, int]]

    def texts(self, kind: str) -> tuple[list, list[str]]:
        """The ids of verbs, nouns or actions, and the text of each."""
        if kind == "action":
            return self.actions, [f"{self.verbs[v]} {self.nouns[n]}" for v, n in self.actions]
        names = self.verbs if kind == "verb" else self.nouns
        return list(names), list(names.values())


def seconds(timestamp: str) -> float:
    """ "00:01:02.50" -> 62.5.

    Raises:
      UsageError: it is no such time.
    """
    try:
        hours, minutes, rest = timestamp.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(rest)
    except ValueError as error:
        raise UsageError(f"{timestamp!r} is not a time of the form HH:MM:SS.ss") from error


def words(key: str) -> str:
    """A class key in words: "turn-on" -> "turn on", "board:chopping" -> "chopping board"."""
    thing, *kinds = key.split(":")
    return " ".join([*kinds, thing]).replace("-", " ")


def _vocabulary(path: pathlib.Path) -> Vocabulary:
    verbs, nouns = (
        {row.id: words(row.key) for row in read_table(locate(path, *names), _Class)}
        for names in (
            ("EPIC_100_verb_classes.csv",),
            ("EPIC_100_noun_classes_v2.csv", "EPIC_100_noun_classes.csv"),
        )
    )
    # As in the challenge, actions are the pairs that occur in training or validation.
    rows = [
        row
        for split in ("train", "validation")
        for row in read_table(locate(path, f"EPIC_100_{split}.csv"), _Row)
    ]
    pairs = {(row.verb_class, row.noun_class) for row in rows}
    known = sorted((verb, noun) for verb, noun in pairs if verb in verbs and noun in nouns)
    return Vocabulary(verbs, nouns, known)


def _score(
    items: Sequence[Item],
    predicted: np.ndarray,
    model: Answers,
    *,
    vocabulary: Vocabulary,
    measure: Callable[..., Metrics],
) -> Metrics:
    metrics = {}
    for kind in ("action", "verb", "noun"):
        ids, names = vocabulary.texts(kind)
        place = {found: index for index, found in enumerate(ids)}
        answers = [item.answer if kind == "action" else item.answer[kind == "noun"] for item in items]
        classes = class_embeddings(model.embed_text, checked([[name] for name in names]))
        found = measure(predicted, classes, np.array([place[answer] for answer in answers]))
        metrics |= {f"{kind}_{name}": metric for name, metric in found.items()}
    return metrics


def _recall_at_5(predicted: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> Metrics:
    return {"recall_at_5": class_mean_recall(predicted, classes, labels, k=5)}


def _read(
    path: pathlib.Path,
    split: str,
    query: str,
    span: Callable[[_Row], tuple[float, float]],
    measure: Callable[..., Metrics],
) -> Benchmark:
    vocabulary = _vocabulary(path)
    known = set(vocabulary.actions)
    items, unknown = [], {}
    for row in read_table(main_file(path, f"EPIC_100_{split}.csv"), _Row):
        start, end = span(row)
        if (row.verb_class, row.noun_class) not in known:
            unknown[row.narration_id] = f"verb {row.verb_class} with noun {row.noun_class} is no action"
        elif end <= 0:
            unknown[row.narration_id] = "nothing to see before it: it starts with the video"
        else:
            items.append(
                Item(
                    name=row.narration_id,
                    media=(row.video_id,),
                    start=max(0.0, start),
                    end=end,
                    query=query,
                    answer=(row.verb_class, row.noun_class),
                )
            )
    score = functools.partial(_score, vocabulary=vocabulary, measure=measure)
    return Benchmark(items=items, score=score, unknown=unknown)


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`EPIC_100_validation.csv`, `EPIC_100_train.csv` (for the actions), `EPIC_100_verb_classes.csv` and
    `EPIC_100_noun_classes_v2.csv`; media VIDEO.MP4, untrimmed."""
    measure = functools.partial(top_k_metrics, ks=(1, 5))
    return _read(
        path, split, QUERY, lambda row: (seconds(row.start_timestamp), seconds(row.stop_timestamp)), measure
    )


def read_anticipation(path: pathlib.Path, split: str) -> Benchmark:
    """The files of `read`; what is seen ends `AHEAD_SECONDS` before the action."""

    def before(row: _Row) -> tuple[float, float]:
        end = seconds(row.start_timestamp) - AHEAD_SECONDS
        return end - OBSERVED_SECONDS, end

    return _read(path, split, QUERY_AHEAD, before, _recall_at_5)
