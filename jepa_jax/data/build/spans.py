"""A span of a longer video, cut out without encoding anything again."""

import functools
import io
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream
from etils import epath

from jepa_jax.data.boxes import claimed_frames
from jepa_jax.data.decode_video import CONTAINERS
from jepa_jax.data.records import Media
from jepa_jax.data.video_index import REORDER, WITHOUT_TIMES, field_time, has_fields, has_times

# How far before a span its keyframe is looked for, in seconds, then farther: what a container finds is a
# keyframe by the order of decoding, which may be shown after the span begins.
_MARGINS = (1.0, 10.0, 60.0, math.inf)
# Of so many frames one after another in a file the earliest is shown before all that follow: codecs hold back
# `REORDER` at most.
_WINDOW = REORDER + 1
# FFmpeg's readers that go on where another file begins.
_JOINABLE = ("mpegts", "matroska,webm")
# Seconds by which a cut's times may differ from those of the whole.
_ROUNDED = 0.001


def open_video(file: BinaryIO) -> InputContainer:
    """A video to read, by its content.

    Raises:
      av.FFmpegError: it is none.
      ValueError: it claims more frames than it has bytes, for which FFmpeg would take memory.
    """
    size = file.seek(0, io.SEEK_END)
    if claimed_frames(file, size) > size:
        raise ValueError(f"more frames than {size} bytes can hold")
    return av.open(file, container_options={"format_whitelist": CONTAINERS})


def cut_span(media: Media, max_bytes: int) -> Media | None:
    """The packets of a video's span, from the keyframe before it on, as a video of their own.

    The frames in the span are the same, at the same distances in time; others may stand before and after
    them, so the result has a span too. Sound is left out.

    Args:
      media: bytes or a path, with a start or an end.
      max_bytes: of the result.

    Returns:
      None if it is no video or one that cannot be cut: without times, joined of files that each count time
      anew, or the part is too large, no smaller, or would show nothing at first.
    """
    source = media.content
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            found = _cut(file, media.start or 0.0, media.end, max_bytes)
            if found is None or len(found[0]) >= size:
                return None
            if _first_shown(found[0]) > (media.start or 0.0) - found[1] + _ROUNDED:
                return None
            if not (_is_timed(file) if isinstance(source, bytes) else _is_timed_at(source, size)):
                return None
        # PyAV's errors are of many kinds, and this is no place to judge the video.
        except (av.FFmpegError, ValueError, TypeError):
            return None
    content, offset = found
    # What an edit list hides before the first frame is in the cut like any other frame.
    start = None if media.start is None and offset >= 0 else max((media.start or 0.0) - offset, 0.0)
    end = None if media.end is None else media.end - offset
    return Media(content=content, kind=media.kind, start=start, end=end)


def _first_shown(content: bytes) -> float:
    """At what second a video shows something: not at its beginning where a picture is renewed piece by piece.

    Raises as `open_video`, or what decoding does.
    """
    with open_video(io.BytesIO(content)) as container:
        stream = container.streams.best("video")
        first = next(container.decode(stream), None)
        if first is None or first.pts is None:
            return math.inf
        return float((first.pts - (stream.start_time or 0)) * stream.time_base)


def _is_timed(file: BinaryIO) -> bool:
    """Whether a time is of one frame. It takes a pass over all packets of what may have been joined."""
    file.seek(0)
    with open_video(file) as container:
        stream = container.streams.best("video")
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        return container.format.name not in _JOINABLE or has_times(container, stream)


@functools.lru_cache(maxsize=64)
def _is_timed_at(path: epath.Path, size: int) -> bool:
    """The same of a file, whose spans are often cut one after the other."""
    with path.open("rb") as file:
        return _is_timed(file)


def _cut(file: BinaryIO, start: float, end: float | None, max_bytes: int) -> tuple[bytes, float] | None:
    """The new file, and at what second of the old one it begins."""
    for margin in _MARGINS:
        file.seek(0)
        with open_video(file) as container:
            if not container.streams.video:
                return None
            stream = container.streams.best("video")
            # Without a decoder nothing is known of the frames.
            is_known = stream.codec_context is not None and stream.start_time is not None
            if not is_known or container.format.name in WITHOUT_TIMES:
                return None
            head = list(_head(container, stream))
            shown = [packet.pts for packet in head if packet.size and not packet.is_discard]
            if not shown or None in shown:
                return None
            # A cut of fields might begin or end with half a frame.
            shortest = min(packet.duration or math.inf for packet in head)
            if has_fields(stream) and shortest < 1.5 * field_time(stream):
                return None
            origin = min(shown)
            if start > margin:
                place = origin + round((start - margin) / stream.time_base)
                container.seek(place, stream=stream)
                head = []
            first = origin + round(start / stream.time_base)
            stop = None if end is None else origin + round(end / stream.time_base)
            found = itertools.chain(head, container.demux(stream))
            packets = _find(found, origin, first, stop, max_bytes)
            if packets:
                return _copy(stream, packets, origin)
            if start <= margin:
                break
    return None


def _head(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The first packets that decode, the frame that is shown first among them."""
    shown = 0
    for packet in itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream)):
        yield packet
        shown += not packet.is_discard
        if shown == _WINDOW:
            return


def _find(found: Iterable[Packet], origin: int, first: int, stop: int | None, max_bytes: int) -> list[Packet]:
    """The packets from the last keyframe on that is shown at `first` or before, to that of the first frame
    after the span, until which the last one in it is on show; none if there is no such keyframe among those
    that are given, frames after the clip's first are hidden, or they are too many bytes."""
    packets: list[Packet] = []
    size, later, after = 0, 0, math.inf
    for packet in found:
        if not packet.size:
            continue
        if packet.pts is None or (packet.is_discard and packet.pts >= origin):
            return []
        if stop is not None and packet.pts >= stop:
            after = min(after, packet.pts)
        later += packet.pts > after
        if later == _WINDOW:
            break
        if packet.is_keyframe and packet.pts <= first:
            packets, size = [], 0
        packets.append(packet)
        size += packet.size
        if size > max_bytes:
            return []
    while packets and packets[-1].pts > after:
        packets.pop()
    return packets if packets and packets[0].is_keyframe and packets[0].pts <= first else []


def _copy(stream: VideoStream, packets: list[Packet], origin: int) -> tuple[bytes, float] | None:
    first = packets[0].pts
    # Frames that are shown before the keyframe need what is before it.
    packets = [packet for packet in packets if packet.pts >= first]
    decoded = [packet.dts for packet in packets]
    if any(packet.dts is None or packet.dts > packet.pts for packet in packets):
        # Matroska has none, and FFmpeg makes none for the first of frames in another order than shown; some
        # MP4s have frames that are shown before them.
        order = sorted(packet.pts for packet in packets)
        delay = max(time - packet.pts for time, packet in zip(order, packets, strict=True))
        decoded = [time - delay for time in order]
    timed = [(packet, packet.pts - first, dts - first) for packet, dts in zip(packets, decoded, strict=True)]
    # Matroska's unit of time is a millisecond. In the finer one of an MP4 such times are no constant rate.
    kinds = ("mp4", "matroska")
    for kind in kinds[::-1] if stream.time_base == Fraction(1, 1000) else kinds:
        content = _write(kind, stream, timed)
        if content is not None:
            return content, float((first - origin) * stream.time_base)
    return None


def _write(kind: str, stream: VideoStream, packets: list[tuple[Packet, int, int]]) -> bytes | None:
    """A file of packets with new times to show and to decode them; None if this kind of file does not hold
    the codec, or its times are coarser than the stream's."""
    file = io.BytesIO()
    try:
        # Matroska has identifiers at random else, and files would differ from one build to the next.
        with av.open(file, "w", format=kind, options={"fflags": "+bitexact"}) as container:
            copy = container.add_stream_from_template(stream)
            copy.time_base = stream.time_base
            if stream.container.format.name.startswith("matroska") and stream.average_rate:
                # There it is written, and says how long the last frame is shown.
                copy.codec_context.framerate = stream.average_rate
            container.start_encoding()
            if copy.time_base > stream.time_base:
                return None
            for packet, pts, dts in packets:
                packet.stream, packet.pts, packet.dts = copy, pts, dts
                # A last frame that is shown for no time is none in an MP4.
                packet.duration = packet.duration or 1
                container.mux(packet)
    except (av.FFmpegError, ValueError):
        return None
    return file.getvalue()
