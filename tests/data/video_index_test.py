"""Which frames a video has: by its container, and where that is not enough, as of what cameras, recorders and
broadcasters leave: renewed in pieces, begun anywhere, joined."""

import io

import av
import numpy as np
import pytest

from jepa_jax.data.fit import Fit
from jepa_jax.data.video_index import find_frames
from tests.data import clips
from tests.data.decode_test import KINDS, read_numbers

FIT = Fit(resize=None, crop=clips.HEIGHT, name="clip", limits=clips.LIMITS)


@pytest.mark.parametrize("kind", ["mp4", "fragments", "matroska", "mpegts", "hevc", "avi"])
def test_every_frame_is_listed_once_and_in_the_order_of_display(kind):
    content = clips.clip(**KINDS[kind])
    decoded = clips.full_decode(content)
    with av.open(io.BytesIO(content)) as container:
        index = find_frames(container, container.streams.video[0], io.BytesIO(content), len(content), FIT)
    assert len(index.times) == len(decoded) == 53
    if kind == "avi":  # which has no times of display: its frames are counted
        assert index.times.tolist() == list(range(53))
        assert not len(index.keys)
        return
    assert index.times.tolist() == [frame.pts for frame in decoded]
    keys = np.array([frame.pts for frame in decoded if frame.key_frame])
    assert len(index.keys) == len(keys) > 3
    assert (index.keys <= keys).all()
    if kind != "hevc":  # in an MP4, and with frames before a keyframe that come after it
        assert index.keys.tolist() == keys.tolist()
    assert index.stop - index.times[-1] == decoded[1].pts - decoded[0].pts


def test_a_picture_that_is_renewed_piece_by_piece():
    """Where decoding can begin nothing is shown until all of the picture is new."""
    frames = [av.VideoFrame.from_ndarray(clips.numbered(i)) for i in range(150)]
    refreshed = {"options": {"x264-params": "intra-refresh=1:keyint=30", "bf": "0"}}
    content = clips.clip(150, frames=frames, **refreshed)
    assert read_numbers(content, 8) == [9, 28, 46, 65, 84, 103, 121, 140]
    assert read_numbers(content, 2, start=65 / 25, end=67 / 25) == [65, 66]


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_a_picture_that_is_renewed_more_slowly_than_decoding_can_begin(container):
    """With B-frames the next such points come before all of the picture is new."""
    options = {"x264-params": "intra-refresh=1:keyint=5:bframes=8"}
    content = clips.clip(60, container=container, options=options)
    for first in range(0, 60, 7):
        assert read_numbers(content, 1, start=first / 25, end=(first + 1) / 25) == [first]
    assert read_numbers(content, 5) == [6, 18, 30, 42, 54]


def test_a_recording_of_a_picture_that_is_renewed_piece_by_piece_shows_nothing_at_first():
    options = {"x264-params": "intra-refresh=1:keyint=30:bframes=0"}
    content = clips.clip(100, container="mpegts", options=options)[188 * 40 :]
    first = 100 - len(clips.full_decode(content))
    assert read_numbers(content, 1, end=0.04) == [first]


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
        ("libx265", {"x265-params": "log-level=none:open-gop=1:keyint=12:bframes=3"}),
        ("mpeg2video", {"g": "12", "bf": "2"}),
    ],
)
def test_a_segment_whose_first_packets_need_the_one_before(codec, options):
    """Frames that are shown before the first keyframe, and others at their own times none the less."""
    whole = clips.clip(60, container="mpegts", codec=codec, options=options)
    with av.open(io.BytesIO(whole)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    places = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    content = whole[packets[places[1]].pos :]
    first = min(packet.pts for packet in packets[places[1] :])
    hidden = (packets[places[1]].pts - first) // 3600
    assert hidden > 0
    key = 60 - len(clips.full_decode(content))
    assert read_numbers(content, 2, end=2 / 25) == [key, key]
    count = 60 - key + hidden
    expected = [max(key - hidden + int((i + 0.5) * count / 16), key) for i in range(16)]
    assert read_numbers(content, 16) == expected


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_that_begins_anywhere_is_sampled_from_its_first_keyframe_on(codec):
    whole = clips.clip(50, container="mpegts", codec=codec, options={"g": "11", "bf": "0"})
    content = whole[188 * 40 :]
    count = len(clips.full_decode(content))
    assert 20 < count < 40
    assert read_numbers(content, 5) == [50 - count + int((i + 0.5) * count / 5) for i in range(5)]


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_videos_that_were_joined_as_files(container):
    """As recorders and the segments of live streams are: each begins at the same time."""
    frames = [av.VideoFrame.from_ndarray(clips.numbered(i)) for i in range(60)]
    parts = [clips.clip(len(some), container=container, frames=some) for some in (frames[:40], frames[40:])]
    assert read_numbers(b"".join(parts), 6) == [5, 15, 25, 35, 45, 55]
    assert read_numbers(b"".join(parts), 2, start=1.6, end=2.0) == [42, 47]
