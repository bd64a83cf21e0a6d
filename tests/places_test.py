"""Places on this machine, and those that are refused; buckets are in `bucket_test.py`."""

import pathlib
import resource
import subprocess
import sys

import pytest
from etils import epath

from jepa_jax.places import Lines, PlaceError, check_savable, held, is_local, place, write_whole

ROOT = pathlib.Path(__file__).parent.parent


def test_a_place_here_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place("runs/../runs/one") == place(tmp_path / "runs/one") == tmp_path / "runs/one"
    assert is_local(tmp_path)
    assert not is_local("gs://bucket/run")


@pytest.mark.parametrize("kind", ["s3", "hdfs", "https"])
def test_a_store_that_nothing_is_written_to_is_refused(kind):
    with pytest.raises(PlaceError, match=f"{kind}://bucket/run is in an object store that nothing"):
        place(f"{kind}://bucket/run")


@pytest.mark.parametrize("name", ["lr[1e-4]", "run*", "runs?/one", "gs://bucket/run[1"])
def test_a_place_where_orbax_saves_what_it_cannot_read_is_refused(name):
    with pytest.raises(PlaceError, match="in its path, where arrays that are saved cannot be read back"):
        check_savable(name)
    check_savable("a place/äöü 🙂 #%{x}]")


def test_the_extra_that_is_missing_is_named():
    """In a process of its own: one that has opened a bucket before keeps what opened it."""
    program = (
        "import sys; sys.modules['gcsfs'] = None; from jepa_jax.places import place; place('gs://bucket')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert "PlaceError: gs://bucket: gs:// needs pip install 'jepa_jax[gcs]'" in done.stderr


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    write_whole(path, b"new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("config.json", "new")]


def test_a_line_is_on_the_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("of an earlier run\n")
    lines = Lines(path, [b"kept\n"])
    lines.add("added\n")
    assert path.read_text() == "kept\nadded\n"
    lines.flush()
    assert path.read_text() == "kept\nadded\n"


def test_a_line_that_the_disk_has_no_room_for_spoils_no_other(tmp_path):
    """A limit on a file's size stands for the full disk: both cut what is written."""
    lines = Lines(epath.Path(tmp_path) / "lines", [b"first\n"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="lines"):
            lines.add("second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    lines.add("third\n")
    assert (tmp_path / "lines").read_text() == "first\nthird\n"


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    refused = pytest.raises(PlaceError, match=f"^another training is at work in {tmp_path}: wait")
    with held(tmp_path, "training"), refused, held(tmp_path, "training"):
        pass
    with held(tmp_path, "training"):
        pass
    with held("gs://bucket/run", "training"):  # where there is no lock
        pass
