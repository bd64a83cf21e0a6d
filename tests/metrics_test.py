"""What a run writes down about itself."""

import json
import math
import time
import tracemalloc

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_jax import flags, metrics
from jepa_jax.evaluate import format_table
from jepa_jax.metrics import NotFiniteError, RunLog, plot_loss, read_lines
from tests import tiny


def scalars(loss: float, grad_norm: float = 1.0) -> dict:
    names = ("alignment", "uniformity", "accuracy", "temperature", "learning_rate")
    return {"loss": np.float32(loss), "grad_norm": np.float32(grad_norm)} | dict.fromkeys(
        names, np.float32(0.5)
    )


def run(workdir, start: int, losses: list[float], **changes):
    log = RunLog(workdir, tiny.run_config(**changes), start)
    for step, loss in enumerate(losses, start + 1):
        log.step(step, scalars(loss))
    log.close()


def test_lines_after_the_checkpoint_are_written_again_once(tmp_path):
    run(tmp_path, 0, [5.0, 4.0, 3.0], log_every=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    run(tmp_path, 2, [2.5, 2.0], log_every=1)
    rows = [row for _, row in read_lines(tmp_path / "metrics.jsonl")]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 5.0), (2, 4.0), (3, 2.5), (4, 2.0)]


def test_every_nth_step_and_the_last_are_logged(tmp_path):
    run(tmp_path, 0, [1.0] * 7, log_every=3, steps=7)
    assert [row["step"] for _, row in read_lines(tmp_path / "metrics.jsonl")] == [3, 6, 7]


@pytest.mark.parametrize(("name", "value"), [("loss", math.nan), ("loss", math.inf), ("grad_norm", math.nan)])
def test_what_is_not_finite_stops_at_its_step(tmp_path, name, value):
    log = RunLog(tmp_path, tiny.run_config(log_every=5), 0)
    log.step(1, scalars(1.0))
    with pytest.raises(NotFiniteError, match=f"{name} is .* at step 2"):
        log.step(2, scalars(1.0) | {name: np.float32(value)})
    log.close()


def test_the_loss_curve_needs_a_line(tmp_path):
    plot_loss(tmp_path)
    assert not (tmp_path / "loss.png").exists()
    run(tmp_path, 0, [2.0, 1.0], log_every=1)
    plot_loss(tmp_path)
    assert (tmp_path / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("terms", "curves"),
    [
        (("alignment", "uniformity", "accuracy"), 4),
        (("alignment",), 2),  # sigmoid, cosine, l1, l2
        (("invariance", "variance", "covariance"), 4),
        (("invariance", "sigreg"), 3),
    ],
)
def test_the_loss_curve_is_of_the_terms_that_the_objective_has(tmp_path, monkeypatch, terms, curves):
    line = {"loss": 1.0, "temperature": 0.07, **dict.fromkeys(terms, 0.5)}
    rows = [json.dumps({"step": step, **line}) + "\n" for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    drawn = []
    monkeypatch.setattr(metrics, "save_figure", lambda figure, *_, **__: drawn.append(figure))
    plot_loss(tmp_path)
    assert sum(len(axes.lines) for axes in drawn[0].axes) == curves


def test_the_table_shows_shares_as_percentages_and_ranks_as_ranks():
    metric = {"value": 0.5, "chance": 0.004, "untrained": 0.01, "shuffled": 0.25, "n": 256}
    rank = metric | {"value": 3.5}
    text = format_table({"retrieval": {"unseen/recall_at_1": metric, "unseen/median_rank": rank}})
    lines = text.splitlines()
    assert lines[2].split() == ["retrieval", "unseen/recall_at_1", "50.0%", "0.4%", "1.0%", "25.0%", "256"]
    assert lines[3].split()[2] == "3.5"
    assert len({len(line) for line in lines}) == 1


def test_rows_are_json_of_plain_numbers(tmp_path):
    run(tmp_path, 0, [2.0], log_every=1)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert all(isinstance(value, int | float) for value in row.values())
    assert {"samples_per_second", "data_wait"} <= row.keys()


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path):
    """As it shows them without its own fast reader, and as others read its files."""
    run(tmp_path, 0, [5.0, 4.0, 3.0], log_every=1)
    run(tmp_path, 2, [2.5, 2.0], log_every=1)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(x.step, x.value) for x in events.Scalars("loss")] == [(1, 5.0), (2, 4.0), (3, 2.5), (4, 2.0)]
    # Seconds since 1970, by which TensorBoard draws curves over time.
    assert all(abs(x.wall_time - time.time()) < 3600 for x in events.Scalars("loss"))


def test_a_progress_bar_that_cannot_be_written_ends_no_training(tmp_path, monkeypatch):
    def main(arguments):
        run(tmp_path, 0, [5.0, 4.0], log_every=1)
        return 0

    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        assert flags.run(main, []) == 0
    assert len(list(read_lines(tmp_path / "metrics.jsonl"))) == 2


def test_damaged_lines_are_left_out(tmp_path, caplog):
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_bytes(b'{"step": 1}\n{"st\xffp": 2}\n[]\n{"loss": 1}\n{"step": 3}\n{"step"')
    assert [row["step"] for _, row in read_lines(path)] == [1, 3]
    assert "3 damaged lines are left out" in caplog.text


def test_a_long_run_goes_on_without_all_its_lines_in_memory(tmp_path):
    """Nor does its curve need them."""
    path, log = tmp_path / "metrics.jsonl", tiny.run_config(steps=20_001)
    row = dict.fromkeys(("loss", "accuracy", "alignment", "uniformity", "grad_norm", "temperature"), 0.125)
    lines = [json.dumps({"step": step, **row}) + "\n" for step in range(1, 20_001)]
    path.write_text("".join(lines))
    plot_loss(tmp_path)  # imports what it needs
    tracemalloc.start()
    try:
        RunLog(epath.Path(tmp_path), log, 19_999).close()
        resumed = tracemalloc.get_traced_memory()[1]
        plot_loss(tmp_path)
        drawn = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.read_text() == "".join(lines[:-1])
    assert resumed < path.stat().st_size / 2
    assert drawn < 5 * path.stat().st_size
