"""Something-Something v2: 174 classes of what is done with some thing."""

import pathlib

from pydantic import BaseModel

from jepa_jax.evaluation import classification
from jepa_jax.evaluation.annotations import locate, main_file, read_json
from jepa_jax.evaluation.benchmark import Benchmark, Item

SPLITS = ("validation", "train")
QUERY = "What is being done in the video?"
TEMPLATES = ("{}", "someone is {}", "a video of {}")


class _Row(BaseModel):
    id: str
    template: str


def phrase(template: str) -> str:
    """The class as a phrase: "Putting [something] on a surface" -> "putting something on a surface"."""
    plain = template.replace("[", "").replace("]", "")
    return plain[:1].lower() + plain[1:]


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`labels.json` ({CLASS: id}) and `validation.json` ([{"id", "template"}]), media ID.webm."""
    labels = read_json(locate(path, "labels.json", "something-something-v2-labels.json"), dict[str, str])
    rows = read_json(main_file(path, f"{split}.json", f"something-something-v2-{split}.json"), list[_Row])
    # labels.json has the classes without the brackets of a row's template.
    places = {phrase(name): place for place, name in enumerate(labels)}
    items, unknown = [], {}
    for row in rows:
        place = places.get(phrase(row.template))
        if place is None:
            unknown[row.id] = f"template {row.template!r} is not among the labels"
        else:
            items.append(Item(name=row.id, media=(row.id,), query=QUERY, answer=place))
    classes = [classification.phrased(phrase(name), TEMPLATES) for name in labels]
    return classification.benchmark(items, classes, unknown)
