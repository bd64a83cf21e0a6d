"""What an MP4 claims."""

import io

import numpy as np

from jepa_jax.data.boxes import claimed_frames, display_delays
from jepa_jax.data.build.spans import cut_span
from jepa_jax.data.records import Media


def box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + kind + content


def nested(content: bytes, *kinds: bytes) -> bytes:
    for kind in reversed(kinds):
        content = box(kind, content)
    return content


TRACK = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def test_delays_are_read_and_the_file_stays_where_it_was():
    pairs = np.array([(0, 3), (2, 512), (1, 2**32 - 4)], ">u4").tobytes()  # the first: no flags, 3 pairs
    file = io.BytesIO(nested(box(b"ctts", pairs), *TRACK))
    file.seek(5)
    # Three pairs are said to be there, and two are.
    ((counts, delays),) = display_delays(file, len(file.getvalue()))
    assert (counts.tolist(), delays.tolist(), file.tell()) == ([2, 1], [512, -4], 5)


def test_a_list_shorter_than_its_head_does_not_read_the_rest_of_the_file():
    content = nested(box(b"stts", b"\0\0\0\0"), *TRACK) + bytes(range(256))
    assert claimed_frames(io.BytesIO(content), len(content)) == 0


def test_boxes_nested_without_end_do_not_end_a_build():
    content = box(b"ftyp", b"isom\0\0\0\0") + nested(b"", *[b"moov"] * 5000)
    assert claimed_frames(io.BytesIO(content), len(content)) == 0
    assert cut_span(Media(content=content, start=0.1), 2**20) is None
