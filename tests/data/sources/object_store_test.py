"""A source in an object store holds what the same files hold on a disk."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import ClassVar

import fsspec
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from .making import opened, png, write, write_tar

ROOT = pathlib.Path(__file__).parents[3]


class Bucket(MemoryFileSystem):
    """Takes the place of s3fs: the same protocol, objects in memory."""

    protocol = ("s3",)
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("s3://"))


@pytest.fixture
def bucket():
    # For all of the process: epath keeps the file systems that it has opened.
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield epath.Path("s3://bucket")
    Bucket.store.clear()


def manifest(folder):
    rows = [{"media": f"{name}.png", "caption": f"a {name}"} for name in ("cat", "dog", "gone")]
    return write(folder, cat__png=png(), dog__png=png(3, 4), manifest__jsonl="\n".join(map(json.dumps, rows)))


def beside(folder):
    write(folder / "train", cat__png=png(), cat__txt="a cat", dog__png=png(3, 4), dog__txt="a dog")
    return folder


def shard(folder):
    members = [("0.png", png()), ("0.txt", b"a cat"), ("1.png", png(3, 4)), ("1.txt", b"a dog")]
    with tempfile.TemporaryDirectory() as place:
        content = write_tar(epath.Path(place) / "0.tar", members).read_bytes()
    return write(folder, **{"00000__tar": content})


@pytest.mark.parametrize("form", [manifest, beside, shard])
def test_it_is_what_it_is_on_a_disk(form, bucket, tmp_path):
    here, there = opened(form(epath.Path(tmp_path))), opened(form(bucket / "set"))
    assert [there.name(i) for i in range(len(there))] == [here.name(i) for i in range(len(here))]
    for i in range(2):
        assert there.pairs(i) == here.pairs(i)
        both = [source[i].media.content for source in (here, there)]
        assert len({x if isinstance(x, bytes) else x.read_bytes() for x in both}) == 1


def test_the_package_that_is_missing_is_named():
    """In a process of its own: one that has opened a bucket before keeps what opened it."""
    program = "import sys; sys.modules['gcsfs'] = None; from tests.data.sources.making import opened; "
    done = subprocess.run(
        [sys.executable, "-c", program + "opened('gs://bucket/set')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert re.search(r"ValueError: gs://bucket/set.*gcsfs.*'jepa_jax\[gcs\]'", done.stderr), done.stderr
