"""What is found of a run in its work directory."""

import logging

import pytest
from etils import epath

from jepa_jax import flags, runs
from tests import tiny


@pytest.fixture
def workdir(tmp_path):
    workdir = epath.Path(tmp_path)
    (workdir / "config.json").write_text(flags.config_to_json(tiny.run_config(seed=7)))
    (workdir / "checkpoints").mkdir()
    return workdir


def save(workdir, *steps):
    for step in steps:
        (workdir / "checkpoints" / str(step)).mkdir()


def test_a_run_and_one_of_its_checkpoints(workdir):
    save(workdir, 9, 100)
    (workdir / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir()  # not yet whole
    assert runs.saved_steps(workdir) == [9, 100]
    assert runs.find_run(workdir) == (workdir, None)
    assert runs.find_run(workdir / "checkpoints" / "9") == (workdir, 9)
    assert runs.run_config(workdir).seed == 7


def test_what_is_no_run_is_refused(workdir, tmp_path):
    with pytest.raises(flags.UsageError, match="has no checkpoint yet"):
        runs.find_run(workdir)
    save(workdir, 9, 100)
    with pytest.raises(flags.UsageError, match=r"no checkpoint of step 10: there are 9, 100$"):
        runs.find_run(workdir / "checkpoints" / "10")
    (workdir / "config.json").unlink()
    for path in (workdir, workdir / "checkpoints" / "9", epath.Path(tmp_path / "nowhere")):
        with pytest.raises(flags.UsageError, match=r"neither a work directory of a run .* nor converted"):
            runs.find_run(path)


def test_other_tokenizers_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        runs.compare_tokenizers(None, "now", epath.Path("runs/x"))
        runs.compare_tokenizers("now", "now", epath.Path("runs/x"))
        assert not caplog.messages
        runs.compare_tokenizers("then", "now", epath.Path("runs/x"))
    assert caplog.messages == ["a tokenizer or its library is not the one that runs/x has learned with"]
