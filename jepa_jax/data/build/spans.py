"""A span of a longer video, cut out without encoding anything again."""

import io
import math
from typing import BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from jepa_jax.data.boxes import claimed_frames
from jepa_jax.data.decode_video import CONTAINERS, WITHOUT_TIMES
from jepa_jax.data.records import Media

# How far before a span its keyframe is looked for, in seconds, then farther: what a container finds is a
# keyframe by the order of decoding, which may be shown after the span begins.
_MARGINS = (1.0, 10.0, 60.0, math.inf)


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
      None if it is no video or one that cannot be cut: without times, or the part is too large or no smaller.
    """
    source = media.content
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            found = _cut(file, media.start or 0.0, media.end, max_bytes)
        # PyAV's errors are of many kinds, and this is no place to judge the video.
        except (av.FFmpegError, ValueError, TypeError):
            return None
    if found is None or len(found[0]) >= size:
        return None
    content, offset = found
    start = None if media.start is None else max(media.start - offset, 0.0)
    end = None if media.end is None else media.end - offset
    return Media(content=content, kind=media.kind, start=start, end=end)


def _cut(file: BinaryIO, start: float, end: float | None, max_bytes: int) -> tuple[bytes, float] | None:
    """The new file, and at what second of the old one it begins."""
    for margin in _MARGINS:
        file.seek(0)
        with open_video(file) as container:
            if not container.streams.video:
                return None
            stream = container.streams.best("video")
            if stream.start_time is None or container.format.name in WITHOUT_TIMES:
                return None
            if start > margin:
                place = stream.start_time + round((start - margin) / stream.time_base)
                container.seek(place, stream=stream)
            packets = _find(container, stream, start, end, max_bytes)
            if packets:
                return _copy(stream, packets)
            if start <= margin:
                break
    return None


def _find(
    container: InputContainer, stream: VideoStream, start: float, end: float | None, max_bytes: int
) -> list[Packet]:
    """The packets from the last keyframe on that is shown at `start` or before, to that of the first frame
    after the span, until which the last one in it is on show; none if there is no such keyframe where the
    container stands, or they are too many bytes."""
    first = stream.start_time + round(start / stream.time_base)
    stop = None if end is None else stream.start_time + round(end / stream.time_base)
    packets: list[Packet] = []
    size, after = 0, math.inf
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.pts is None or packet.dts is None:
            return []
        if packet.dts > after:
            break
        if stop is not None and packet.pts >= stop:
            after = min(after, packet.pts)
        if packet.is_keyframe and packet.pts <= first:
            packets, size = [], 0
        packets.append(packet)
        size += packet.size
        if size > max_bytes:
            return []
    return packets if packets and packets[0].is_keyframe and packets[0].pts <= first else []


def _copy(stream: VideoStream, packets: list[Packet]) -> tuple[bytes, float] | None:
    first = packets[0].pts
    # Frames that are shown before the keyframe need what is before it.
    timed = [(packet, packet.pts - first, packet.dts - first) for packet in packets if packet.pts >= first]
    for kind in ("mp4", "matroska"):
        content = _write(kind, stream, timed)
        if content is not None:
            return content, float((first - stream.start_time) * stream.time_base)
    return None


def _write(kind: str, stream: VideoStream, packets: list[tuple[Packet, int, int]]) -> bytes | None:
    """A file of packets with new times to show and to decode them; None if this kind of file does not hold
    the codec, or its times are coarser than the stream's."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=kind) as container:
            copy = container.add_stream_from_template(stream)
            copy.time_base = stream.time_base
            container.start_encoding()
            if copy.time_base > stream.time_base:
                return None
            for packet, pts, dts in packets:
                packet.stream, packet.pts, packet.dts = copy, pts, dts
                container.mux(packet)
    except (av.FFmpegError, ValueError):
        return None
    return file.getvalue()
