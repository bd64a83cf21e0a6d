"""Photographs of telephones (HEIC)."""

import pytest

from jepa_jax.data.decode import read_frames
from jepa_jax.data.records import BadRecordError, Media
from tests.data import clips


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return (len(body) + 8).to_bytes(4, "big") + kind + body


def full(kind: bytes, *content: bytes, version: int = 0) -> bytes:
    """A box that says its version."""
    return box(kind, bytes([version, 0, 0, 0]), *content)


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2, "big") for number in numbers)


def photograph(tiles: int) -> bytes:
    """One or several equal pictures side by side, as one image: JPEGs, where telephones have HEVC."""
    tile = clips.picture(clips.numbered(7), "JPEG", quality=95)
    size, whole = ((w.to_bytes(4, "big") + clips.HEIGHT.to_bytes(4, "big")) for w in (96, 96 * tiles))
    items = range(1, tiles + 1)
    grid = tiles + 1 if tiles > 1 else 1
    about_grid = bytes([0, 0, 0, tiles - 1]) + words(96 * tiles, clips.HEIGHT)

    def entry(item: int) -> bytes:
        return full(b"infe", words(item, 0), b"jpeg\0" if item in items else b"grid\0", version=2)

    def meta(begin: int) -> bytes:
        every = sorted({*items, grid})
        places = [words(i, 0, 0, 1) + begin.to_bytes(4, "big") + len(tile).to_bytes(4, "big") for i in items]
        if grid not in items:
            places.append(words(grid, 1, 0, 1) + bytes(4) + len(about_grid).to_bytes(4, "big"))
        properties = [words(i) + (b"\1\1" if i in items else b"\1\2") for i in every]
        return full(
            b"meta",
            full(b"hdlr", b"\0\0\0\0pict", bytes(13)),
            full(b"pitm", words(grid)),
            full(b"iinf", words(len(every)), *map(entry, every)),
            full(b"iref", box(b"dimg", words(grid, tiles, *items))) if tiles > 1 else b"",
            box(
                b"iprp",
                box(b"ipco", full(b"ispe", size), full(b"ispe", whole)),
                full(b"ipma", len(every).to_bytes(4, "big"), *properties),
            ),
            full(b"iloc", b"\x44\0", words(len(every)), *places, version=1),
            box(b"idat", about_grid),
        )

    head = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", tile)


def test_a_tile_is_not_taken_for_the_photograph():
    options = {"resize": None, "crop": 64, "name": "a", "limits": clips.LIMITS}
    assert clips.numbers(read_frames(Media(content=photograph(1)), 2, **options)) == [7, 7]
    with pytest.raises(BadRecordError, match="HEIF image of several tiles"):
        read_frames(Media(content=photograph(3)), 2, **options)
