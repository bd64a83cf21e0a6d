"""Decodes to events."""

import json

import numpy as np
import pytest

from jepa_jax.streaming.events import EventLog, read_events
from jepa_jax.streaming.online import Decode


def test_equal_texts_in_a_row_are_one_event_and_ends_meet_beginnings(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    said = [("a", 0.3), ("b", 0.5), ("b", 0.7), ("b", 0.6), ("a", 0.2)]
    new = [log.add(Decode(10.0 * i, 10.0 * i + 3, np.zeros(2)), *words) for i, words in enumerate(said)]
    assert new == [True, True, False, False, True]
    # An event is in the file as soon as it has ended: a kill loses the last one alone.
    assert [event.text for event in read_events(tmp_path / "events.jsonl")] == ["a", "b"]
    log.end(47.0)
    log.close()
    found = read_events(tmp_path / "events.jsonl")
    assert [(e.start, e.end, e.at, e.text, e.score) for e in found] == [
        (0, 10, 3, "a", 0.3),
        (10, 40, 23, "b", 0.7),
        (40, 47, 43, "a", 0.2),
    ]
    assert log.decodes == 5


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\r"])
def test_what_else_ends_lines_is_part_of_a_text(end, tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    for i in range(2):
        log.add(Decode(i, i + 0.5, np.zeros(2)), f"{i}a{end}b", 0.5)
    log.end(2)
    log.close()
    assert [event.text for event in read_events(tmp_path / "events.jsonl")] == [f"0a{end}b", f"1a{end}b"]


def test_lines_are_json_and_half_a_line_is_left_out(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.add(Decode(0, 1, np.zeros(2)), "naïve “quotes”\n", 1 / 3)
    log.end(2)
    log.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"start": 2')
    (line, _) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line) == {"start": 0, "end": 2, "at": 1, "text": "naïve “quotes”\n", "score": 0.3333}
    assert len(read_events(tmp_path / "events.jsonl")) == 1
