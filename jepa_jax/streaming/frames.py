"""Frames with their times from a file, a URL, a camera or an iterator, at an even rate."""

import dataclasses
import math
import os
import re
import time
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.container import InputContainer
from av.stream import Discard
from av.video.stream import VideoStream

from jepa_jax.data.decode_video import as_seen, video_of
from jepa_jax.data.video_index import frame_rate
from jepa_jax.errors import first_line

# What a URL may lead to: a playlist from elsewhere must not open files of this machine.
_NETWORK = "http,https,tcp,tls,udp,rtp,rtsp,rtmp,hls,crypto,data"
# To open, and between two packets: a network that is silent for so long is gone.
_PATIENCE = (20.0, 20.0)
# A longer step forward is a clock set anew, not a still picture.
_LONGEST_GAP = 3600.0


class NoVideoError(ValueError):
    """A source that cannot be watched at all."""


class SourceStoppedError(RuntimeError):
    """A source that ended before its time: unplugged, cut off, damaged."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A picture and when it is seen: seconds from the stream's start, [H, W, C] uint8 RGB; `duration` is for
    how long where no other follows it."""

    seconds: float
    pixels: np.ndarray
    duration: float = 0.0


class _Clock:
    """A source's own times to seconds from its first frame that only grow."""

    def __init__(self, period: float):
        self._period = period
        self._last: tuple[float, float] | None = None  # the source's time, ours

    def __call__(self, time: float | None) -> float:
        if self._last is None:
            self._last = (time or 0.0, 0.0)
            return 0.0
        before, seconds = self._last
        step = self._period if time is None else time - before
        if not 0 < step <= _LONGEST_GAP:  # a camera that reconnected, a tape that was joined
            step = self._period
        self._last = (before + step if time is None else time, seconds + step)
        return self._last[1]


def shown(source: str) -> str:
    """A source as a sentence may have it: a URL without the name, the password and the values of a query,
    of which a token is one, that it may hold."""
    # A password may hold any sign, as it stands; what follows a port is none.
    named = re.sub(r"://(?:[^/@:]*:(?!\d+/).*|[^/@]*)@", "://***@", source)
    address, mark, query = named.partition("?")
    if "://" not in address:
        return named
    return address + mark + re.sub(r"([^&;=]+=)?[^&;]+", lambda found: f"{found[1] or ''}***", query)


class _Waits:
    """The items of an iterable, and how many seconds the last one took to come."""

    def __init__(self, items: Iterable):
        self._items = iter(items)
        self.seconds = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        begin = time.monotonic()
        item = next(self._items)
        self.seconds = time.monotonic() - begin
        return item


def _nothing_came() -> str:
    return f"nothing came for {max(_PATIENCE):g} s"


def _reason(error: Exception) -> str:
    if isinstance(error, av.ExitError):  # how PyAV's timeout comes out
        return _nothing_came()
    return getattr(error, "strerror", None) or first_line(error)


def _time_of(frame: av.VideoFrame, container: InputContainer) -> float | None:
    """A source's own time of a frame, in seconds. AVI has times of decoding alone, in the order of which
    frames come out: FFmpeg's guesses of those of display go back and forth."""
    if container.format.name != "avi":
        return frame.time
    return None if frame.dts is None else float(frame.dts * frame.time_base)


def _leave_variants(container: InputContainer, stream: VideoStream) -> None:
    """Have the variants of a master playlist, the same video at other bit rates, not fetched beside it."""
    own = stream.metadata.get("variant_bitrate")
    for other in container.streams:
        if other.metadata.get("variant_bitrate", own) != own:  # what all of them share says none
            other.discard = Discard.all


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise NoVideoError(f"{name} has frames of {width} x {height} pixels; at most {max_pixels:,} are read")


def open_video(source: str, *, device: str | None = None, max_pixels: int = 2**26) -> Iterator[Frame]:
    """The frames of whatever FFmpeg opens, one at a time, so that hours of video take no memory: as in
    training upright, of square pixels and on white.

    Times start at 0. Where a source's clock jumps back or by more than an hour they go on evenly; those of a
    camera that sends JPEGs over HTTP, without any, are when they come.

    Args:
      source: a file, a URL (http, https, rtsp, rtmp, udp, hls), or a camera.
      device: FFmpeg's name of a camera's interface: "v4l2", "avfoundation", "dshow".
      max_pixels: of a frame; a larger one is refused.

    Raises:
      NoVideoError: it cannot be opened, or has no frames.
      SourceStoppedError: it ends in an error, or well before the length it declares.
    """
    name = shown(source)
    if os.path.isfile(source) and not os.path.getsize(source):
        raise NoVideoError(f"{name} is an empty file")
    options = {"protocol_whitelist": _NETWORK} if "://" in source else {}
    # FFmpeg takes what is before a colon for a protocol, but of a path that is absolute.
    where = os.path.abspath(source) if device is None and os.path.isfile(source) else source
    try:
        container = av.open(where, format=device, options=options, timeout=_PATIENCE)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise NoVideoError(f"{name} cannot be opened as a video: {_reason(error)}") from error
    with container:
        stream = video_of(container)
        if stream is None:
            raise NoVideoError(f"{name} holds no video")
        if stream.codec_context is None:  # FFmpeg knows what it is, as an SVG, and cannot decode it
            raise NoVideoError(f"{name} holds a kind of video that cannot be decoded here")
        _check_size(name, stream.width, stream.height, max_pixels)
        _leave_variants(container, stream)
        period = float(1 / (frame_rate(stream) or 25))
        begin = (container.start_time or 0) / av.time_base
        declared = container.duration / av.time_base if container.duration else 0.0
        if container.format.name.startswith("matroska"):  # counted from 0, wherever it begins
            declared -= begin
        # That of the video alone, where it is known: sound may go on without pictures.
        own = float(stream.duration * stream.time_base) if stream.duration else None
        declared = declared if own is None else min(own, declared)
        aspect = stream.sample_aspect_ratio or 1
        # Pictures one after another, as many cameras send them: FFmpeg takes any for 25 a second.
        is_untimed = "://" in source and container.format.name == "mpjpeg"
        clock, seconds, came = _Clock(period), None, 0.0
        packets, silent = _Waits(container.demux()), 0.0
        try:
            for packet in packets:
                if not packet.size:  # the end
                    silent = max(silent, packets.seconds)
                is_video = packet.stream.index == stream.index
                if packet.pts is not None and (is_video or own is None):
                    stop = packet.pts + (packet.duration or 0)
                    came = max(came, float(stop * packet.time_base) - begin)
                if not is_video:
                    continue
                for frame in packet.decode():
                    width = max(round(frame.width * aspect), 1)
                    _check_size(name, width, frame.height, max_pixels)  # it may change on the way
                    seconds = clock(time.monotonic() if is_untimed else _time_of(frame, container))
                    duration = float(frame.duration * frame.time_base) if frame.duration else period
                    duration = duration if 0 < duration <= _LONGEST_GAP else period
                    came = max(came, seconds + duration)
                    yield Frame(seconds, as_seen(frame, width), duration)
        except (av.FFmpegError, OSError) as error:
            if seconds is None:
                raise NoVideoError(f"{name} holds no frame that can be read: {_reason(error)}") from error
            raise SourceStoppedError(f"{name} stopped after {seconds:.1f} s: {_reason(error)}") from error
        if seconds is None:
            raise NoVideoError(f"{name} holds no frames")
        # FFmpeg makes a plain end of its timeout where a live playlist gets no more pieces.
        if "://" in source and silent >= max(_PATIENCE):
            raise SourceStoppedError(f"{name} stopped after {seconds:.1f} s: {_nothing_came()}")
        # A file that is cut off and a connection that is lost often look like a plain end.
        if came + 1 < 0.95 * declared:
            raise SourceStoppedError(
                f"{name} stopped after {came:.1f} s of the {declared:.1f} s that it declares"
            )


def from_arrays(arrays: Iterable[np.ndarray], rate: float) -> Iterator[Frame]:
    """Frames [H, W, C] uint8 RGB of any iterator, `rate` a second, each copied: a camera's are often one
    array that is filled again and again.

    Raises:
      ValueError: a frame of another form, or a rate that is not above 0.
    """
    check_positive("rate", rate)
    for i, given in enumerate(arrays):
        pixels = np.array(given)
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError(f"a frame must be [H, W, 3] uint8, got {pixels.shape} {pixels.dtype}")
        yield Frame(i / rate, pixels, 1 / rate)


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless a value is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be a number above 0")


# A window of so few seconds that its frames are more than a camera's would be the last one again and again.
_HIGHEST_RATE = 1000.0


def check_rate(size: int, window: float) -> None:
    """Raise ValueError unless `size` frames in `window` seconds are a rate that some camera has."""
    if size / window > _HIGHEST_RATE:
        raise ValueError(
            f"window={window:g} is too short: {size} frames in it are {size / window:g} a second, and at "
            f"most {_HIGHEST_RATE:g} are taken"
        )


def at_rate(frames: Iterable[Frame], rate: float) -> Iterator[Frame]:
    """One frame at each multiple of 1 / rate seconds: the first not before it, or, where the source
    is slower, the last one again, that at the end for as long as it is seen."""
    due, last = 0, None
    rounding = 1e-6  # times are sums of rounded periods
    for frame in frames:
        now = frame.seconds + rounding
        while last is not None and (due + 1) / rate <= now:
            yield Frame(due / rate, last.pixels)
            due += 1
        if due / rate <= now:
            yield Frame(due / rate, frame.pixels)
            due += 1
        last = frame
    while last is not None and due / rate < last.seconds + last.duration - rounding:
        yield Frame(due / rate, last.pixels)
        due += 1
