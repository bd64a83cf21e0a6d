"""The frames that a video has, as its container lists them: without decoding."""

import dataclasses
import itertools
from fractions import Fraction
from typing import BinaryIO

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from jepa_jax.data.boxes import display_delays
from jepa_jax.data.fit import Fit

# Their packets have times of decoding alone (AVI), or not all have times (MPEG program streams): after
# a seek the guesses are others.
WITHOUT_TIMES = ("avi", "mpeg")
# No packet comes after more than so many that are shown later: codecs hold back 16 frames at most.
REORDER = 16
# FFmpeg's order of fields that is none.
_PROGRESSIVE = 1


@dataclasses.dataclass(frozen=True)
class Index:
    """The frames there are, as the container has them.

    Attributes:
      times: [N] when each is first shown, in display order.
      stop: when the last one is no longer shown.
      unit: of these, in seconds.
      keys: [M] times of the frames at which decoding can begin, in an MP4 perhaps some frames early; none if
        frames have no times of their own.
      seeks: [M] the timestamps that find them.
    """

    times: np.ndarray
    stop: int
    unit: float
    keys: np.ndarray
    seeks: np.ndarray


def find_frames(container: InputContainer, stream: VideoStream, file: BinaryIO, size: int, fit: Fit) -> Index:
    """From an MP4's index if it has them, else from a pass over the packets."""
    return _listed(container, stream, file, size, fit) or _scanned(container, stream)


def _listed(
    container: InputContainer, stream: VideoStream, file: BinaryIO, size: int, fit: Fit
) -> Index | None:
    """From an MP4's index. It lists times of decoding: those of display are the same but for the order
    if the rate is constant. If it is not, and for fragments and other containers, None."""
    entries = stream.index_entries
    if not container.format.name.startswith("mov") or not 0 < len(entries) <= min(stream.frames, size):
        return None
    entries = list(entries)
    if max(entry.pos + entry.size for entry in entries) > size:
        raise fit.error("media truncated", "its index lists frames past the end of the file")
    shown = np.array([entry.timestamp for entry in entries if not entry.is_discard])
    steps = np.diff(shown)
    if not len(steps) or np.ptp(steps) or steps[0] <= 0 or stream.start_time is None:
        return None
    # An encoder that looks ahead decodes at a constant rate what is shown late at the end.
    for counts, delays in display_delays(file, size):
        if counts.sum() != len(entries):
            return None
        late = np.repeat(delays, counts)[[not entry.is_discard for entry in entries]]
        if (np.diff(np.sort(shown + late)) != steps[0]).any():
            return None
    shift = stream.start_time - shown[0]
    seeks = np.array([entry.timestamp for entry in entries if entry.is_keyframe])
    times = shown + shift
    return Index(times, times[-1] + steps[0], float(stream.time_base), seeks + shift, seeks)


def _scanned(container: InputContainer, stream: VideoStream) -> Index:
    """From a pass over the packets."""
    every = [
        (packet.is_discard, (packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe))
        for packet in container.demux(stream)
        if packet.size
    ]
    # What comes before the first keyframe, in a recording that begins anywhere, does not decode.
    first = next((i for i, (_, (*_, is_key)) in enumerate(every) if is_key), 0)
    packets = [packet for is_hidden, packet in every[first:] if not is_hidden]
    packets = _frames_of_fields(packets, stream) if has_fields(stream) else packets
    timed = all(pts is not None for pts, *_ in packets) and container.format.name not in WITHOUT_TIMES
    if not timed or _begins_again(packets, container, stream):
        unit = 1 / float(frame_rate(stream) or 25)
        return Index(np.arange(len(packets)), len(packets), unit, np.arange(0), np.arange(0))
    packets.sort(key=lambda packet: packet[0])
    times = np.array([pts for pts, *_ in packets])
    stop = packets[-1][0] + packets[-1][2] if packets else 0
    # An edit list may hide the keyframe that the first frames need.
    hidden = [packet for _, packet in itertools.takewhile(lambda each: each[0], every[first:])]
    keys = [packet for packet in hidden + packets if packet[3] and packet[0] is not None]
    # Seeks are by times of decoding, but in Matroska.
    seek = 0 if container.format.name.startswith("matroska") else 1
    seeks = np.array([key[seek] if key[seek] is not None else key[0] for key in keys])
    return Index(times, stop, float(stream.time_base), np.array([key[0] for key in keys]), seeks)


def _begins_again(packets: list[tuple], container: InputContainer, stream: VideoStream) -> bool:
    """Whether a video was joined of files (`cat a.ts b.ts`) that each count time anew: a time is of several
    frames then."""
    decoded = [dts for _, dts, *_ in packets if dts is not None]
    if container.format.name == "mpegts" and (np.diff(decoded) < 0).any():
        return True
    most = 2 * REORDER if has_fields(stream) else REORDER
    # How many more packets come before one than are shown before it: no more than those before it that are
    # shown later, and just as many if none after it is shown earlier.
    order = np.argsort([pts for pts, *_ in packets], kind="stable")
    return bool((order - np.arange(len(order)) > most).any())


def frame_rate(stream: VideoStream) -> Fraction | None:
    """Frames a second, None where nothing tells. Of a video without a container, whose frames have no times,
    FFmpeg's average is 25 whatever the video itself says."""
    average = stream.average_rate if stream.start_time is not None else None
    return average or stream.guessed_rate


def has_times(container: InputContainer, stream: VideoStream) -> bool:
    """Whether frames are known by their times, by a pass over the packets."""
    return bool(len(_scanned(container, stream).keys))


def has_fields(stream: VideoStream) -> bool:
    """Whether the two fields of a frame may be packets of their own, of which one frame comes out."""
    return stream.codec_context.name == "h264" and stream.codec_context.field_order != _PROGRESSIVE


def field_time(stream: VideoStream) -> float:
    """How long a field is shown, in the stream's units; 0 where the video does not say it."""
    rate = stream.codec_context.framerate
    return 0.5 / float(rate * stream.time_base) if rate else 0.0


def _frames_of_fields(packets: list[tuple], stream: VideoStream) -> list[tuple]:
    """Packets as `_scanned` has them, without second fields that have no time of their own, as in most
    transport streams; of the others none is a key: what begins there begins with half a frame."""
    half = field_time(stream)
    found: list[tuple] = []
    is_first = False  # whether the last one is a field that waits for its second
    for pts, dts, duration, is_key in packets:
        is_field = abs(duration - half) < half / 2
        is_second = is_field and is_first
        is_first = is_field and not is_second
        if not is_second:
            found.append((pts, dts, duration, is_key))
        elif pts is None:
            shown, decoded, before, was_key = found[-1]
            found[-1] = shown, decoded, before + duration, was_key
        else:
            found.append((pts, dts, duration, False))
    return found
