"""ISO boxes (MP4, QuickTime): what a file claims, before FFmpeg believes it."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

# Boxes of boxes, on the way to the tables of frames.
_NESTED = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
# FFmpeg goes no deeper.
_DEEPEST = 10
# Where a table has its number of frames: a field, or the first of each pair of a list.
_FIELDS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
_LISTS = (b"stts", b"ctts")


def is_cut(file: BinaryIO, size: int) -> bool:
    """Whether a file of `size` bytes that begins as an MP4 ends inside one of its outermost boxes."""
    outermost = list(_boxes(file, 0, size))
    return bool(outermost) and outermost[0][0] == b"ftyp" and outermost[-1][2] > size


def claimed_frames(file: BinaryIO, size: int) -> int:
    """How many frames the tables of one kind speak of, at most; 0 for other files. FFmpeg allocates
    for as many: a few bytes could claim gigabytes."""
    totals = dict.fromkeys((*_FIELDS, *_LISTS), 0)
    for kind, begin, end in _tables(file, 0, size):
        file.seek(begin)
        if kind in _FIELDS:
            totals[kind] += int.from_bytes(file.read(_FIELDS[kind] + 4)[_FIELDS[kind] :], "big")
        else:
            totals[kind] += int(_pairs(file, begin, end)[:, 0].sum(dtype=np.uint64))
    file.seek(0)
    return max(totals.values())


def display_delays(file: BinaryIO, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """How much later than they are decoded frames are shown, for each track that says it: of neighbours with
    the same delay how many there are, and the delay, in the track's units of time, [n] and [n] int. The
    file is left where it was."""
    place = file.tell()
    found = [_pairs(file, begin, end) for kind, begin, end in _tables(file, 0, size) if kind == b"ctts"]
    file.seek(place)
    return [(pairs[:, 0].astype(int), pairs[:, 1].astype(np.int32)) for pairs in found]


def _pairs(file: BinaryIO, begin: int, end: int) -> np.ndarray:
    """A list of counts and what each is of: [n, 2] uint32."""
    file.seek(begin)
    length = min(int.from_bytes(file.read(8)[4:], "big") * 8, end - begin - 8)
    content = file.read(max(length // 8 * 8, 0))
    return np.frombuffer(content, ">u4", len(content) // 8 * 2).reshape(-1, 2)


def _tables(file: BinaryIO, begin: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """All tables of frames, in whatever order of nesting; a forged one may be without end."""
    for kind, first, last in _boxes(file, begin, end):
        if kind in _NESTED and depth < _DEEPEST:
            yield from _tables(file, first, min(last, end), depth + 1)
        elif kind in _FIELDS or kind in _LISTS:
            yield kind, first, min(last, end)


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, beginning and end of the content of each box in a part of a file; the last end may lie
    beyond that of the part."""
    while begin + 8 <= end:
        file.seek(begin)
        head = file.read(16)
        length, content = int.from_bytes(head[:4], "big"), begin + 8
        if length == 1:
            length, content = int.from_bytes(head[8:], "big"), begin + 16
        elif length == 0:  # to the end
            length = end - begin
        if length < content - begin:
            return
        begin += length
        yield head[4:8], content, begin
