"""Videos to frames, by FFmpeg (PyAV): only what is sampled is converted, and little else is decoded.

The frames there are come from the container, without decoding: from an MP4's index, else from a pass over
the packets. Decoding begins at the keyframe before a sampled frame and leaves out frames that no other
needs. Of 10 s of 720p H.264, 8 frames of 256 px cost half of what they cost a loop that seeks and decodes
for each, or less, and a fifth of decoding it all.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from jepa_jax.data.boxes import claimed_frames, display_delays, is_cut
from jepa_jax.data.fit import Fit
from jepa_jax.data.preprocess import centre
from jepa_jax.data.timeline import sample_times

# FFmpeg's readers that are let at data. Some of the others (playlists, lists of files) open further
# files, or find "video" in any text.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,h264,hevc,ivf,flv,asf,ogg,dv,mxf,nut,rm"
# Their packets have times of decoding alone (AVI), or not all have times (MPEG program streams): after
# a seek the guesses are others.
WITHOUT_TIMES = ("avi", "mpeg")
# Brands of photographs in ISO boxes (HEIC). FFmpeg's reader has each tile of one as a video.
_IMAGES = ("heic", "heix", "heim", "heis", "mif1")
# The filter nearest to `preprocess`' (as wide as the scale asks, so antialiased), and rounding, not
# truncation, where there is nothing to scale. On real 720p frames it is 0.3 of 255 levels off an exact
# conversion with Pillow's filter; FFmpeg's conversion at full size, then Pillow's filter, 1.2.
_FILTER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Decoders that leave out, when told so before a packet, that packet if no other needs it. Others look
# ahead (AV1), so that it would be another one.
_SKIPPING = ("h264", "hevc")
# No packet comes after more than so many that are shown later: codecs hold back 16 frames at most.
_REORDER = 16
# So few frames are decoded rather than sought past: a new start costs about as much.
_WORTH_A_SEEK = 8


@dataclasses.dataclass(frozen=True)
class _Index:
    """The frames there are, as the container has them.

    Attributes:
      times: [N] when each is first shown, in display order.
      stop: when the last one is no longer shown.
      unit: of these, in seconds.
      keys: [M] times of the frames at which decoding can begin; none if frames have no times of their own.
      seeks: [M] the timestamps that find them.
    """

    times: np.ndarray
    stop: int
    unit: float
    keys: np.ndarray
    seeks: np.ndarray


def read_video(
    file: BinaryIO,
    size: int,
    count: int,
    fit: Fit,
    *,
    start: float | None,
    end: float | None,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """`count` frames of a video of `size` bytes: [T, crop, crop, 3] uint8. See `decode.read_frames`.

    Colours are by the matrix and range that the video states, by FFmpeg's BT.601 where it states none;
    HDR is not tone-mapped, and what is transparent is white, but in VP9, of which FFmpeg does not say it.

    Raises:
      BadRecordError: the video cannot be used.
      Exception: nearly any, from FFmpeg, if it is damaged.
    """
    with _open(file, size, fit) as (container, stream):
        index = _index(container, stream, file, size, fit) or _scan(container, stream)
        if not len(index.times):
            raise fit.error("no frames")
        places = sample_times(
            index.times, index.stop, count, unit=index.unit, name=fit.name, start=start, end=end, rng=rng
        )
        wanted = index.times[places].tolist()
        found = _by_time(container, stream, index, sorted(set(wanted)), fit)
    if found is None:
        wanted = places.tolist()
        file.seek(0)
        with _open(file, size, fit) as (container, stream):
            found = _by_number(container, stream, set(wanted), fit)
    return np.stack([found[which] for which in wanted])


@contextlib.contextmanager
def _open(file: BinaryIO, size: int, fit: Fit) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video, ready to decode in one thread: clips are read in parallel already."""
    if claimed_frames(file, size) > size:
        raise fit.error("media not decodable", "it claims more frames than it has bytes")
    limits = {"max_pixels": str(fit.limits.max_pixels)}  # of what a decoder allocates
    # Opening decodes the first frames to learn more of them than is needed here: as long as a sampled
    # frame takes.
    options = limits | {"skip_frame": "all"}
    whitelist = {"format_whitelist": CONTAINERS}
    try:
        container = av.open(file, options=options, container_options=whitelist, buffer_size=2**17)
    except av.FFmpegError as error:
        if is_cut(file, size):
            raise fit.error("media truncated", "the file ends inside one of its boxes") from error
        raise
    with container:
        is_tiled = any(s.disposition & Disposition.dependent for s in container.streams.video)
        if is_tiled and container.metadata.get("major_brand") in _IMAGES:
            raise fit.error("media not decodable", "a HEIF image of several tiles: save it as JPEG")
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise fit.error("no video stream")
        stream = container.streams.best("video")
        stream = stream if stream in streams else streams[0]
        context = stream.codec_context
        if context is None:
            raise fit.error("media not decodable", "no decoder for this codec")
        if context.height and context.width:  # else only the first frame tells
            fit.scaled(context.height, context.width)
        context.options = limits
        context.thread_count = 1
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        yield container, stream


def _index(
    container: InputContainer, stream: VideoStream, file: BinaryIO, size: int, fit: Fit
) -> _Index | None:
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
    return _Index(times, times[-1] + steps[0], float(stream.time_base), seeks + shift, seeks)


def _scan(container: InputContainer, stream: VideoStream) -> _Index:
    """From a pass over the packets."""
    packets = [
        (packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard
    ]
    if any(pts is None for pts, *_ in packets) or container.format.name in WITHOUT_TIMES:
        unit = 1 / float(stream.average_rate or 25)
        return _Index(np.arange(len(packets)), len(packets), unit, np.arange(0), np.arange(0))
    packets.sort(key=lambda packet: packet[0])
    times = np.array([pts for pts, *_ in packets])
    stop = packets[-1][0] + packets[-1][2] if packets else 0
    keys = [packet for packet in packets if packet[3]]
    # Seeks are by times of decoding, but in Matroska.
    seek = 0 if container.format.name.startswith("matroska") else 1
    seeks = np.array([key[seek] if key[seek] is not None else key[0] for key in keys])
    return _Index(times, stop, float(stream.time_base), np.array([key[0] for key in keys]), seeks)


def _by_time(container, stream, index: _Index, times: list[int], fit: Fit) -> dict[int, np.ndarray] | None:
    """The frames shown at ascending times: each time's [crop, crop, 3]; None if no seek finds them."""
    if not len(index.keys):
        return None
    convert = _Converter(stream, fit)
    # Runs of times that are decoded without a seek in between: keyframe and times.
    runs: list[tuple[int, list[int]]] = []
    last_key = -1
    for time in times:
        key = max(int(np.searchsorted(index.keys, time, "right")) - 1, 0)
        if runs:
            passed = np.searchsorted(index.times, (runs[-1][1][-1], index.keys[key]))
        if runs and (key == last_key or passed[1] - passed[0] <= _WORTH_A_SEEK):
            runs[-1][1].append(time)
        else:
            runs.append((key, [time]))
        last_key = key
    found = {}
    for key, run in runs:
        # What is marked as a keyframe need not be one: if the frame does not come, once more from the
        # one before.
        for first in dict.fromkeys((key, max(key - 1, 0))):
            packets = _from_key(container, stream, index, first, run[0])
            if packets is None:
                return None
            frames = _run(stream, packets, run, convert, fit)
            if len(frames) == len(run):
                break
        else:
            at = (run[0] - index.times[0]) * index.unit
            raise fit.error("media not decodable", f"no frame comes out for second {at:.3f}")
        found |= frames
    return found


def _from_key(container, stream, index: _Index, key: int, time: int) -> Iterator[Packet] | None:
    """The packets from a keyframe on, or from one before it, that is not shown after `time`; None if no
    seek finds one."""
    # Where a seek ends too late, an earlier one is tried.
    for first in dict.fromkeys((key, max(key - 1, 0), 0)):
        container.seek(int(index.seeks[first]), stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None and packet.pts >= index.keys[first]:
                if packet.pts <= time:
                    return itertools.chain([packet], packets)
                break
    return None


def _run(stream, packets: Iterator[Packet], times: list[int], convert, fit: Fit) -> dict[int, np.ndarray]:
    """Decodes packets until the frames shown at ascending times are out.

    Of two frames, that which comes before a time is on show at it: a few packets hold no frame to show.
    """
    context = stream.codec_context
    skipping = context.name in _SKIPPING
    wanted, missing, later = set(times), set(times), 0
    found: dict[int, np.ndarray] = {}
    shown: VideoFrame | None = None  # the last that came out

    def take(frame: VideoFrame | None) -> None:
        nonlocal shown
        now = np.inf if frame is None else frame.pts
        passed = [t for t in times if t < now and t not in found]
        if passed and shown is not None:
            found.update(dict.fromkeys(passed, convert(shown)))
        if now in wanted:
            found[now] = convert(frame)
        shown = frame

    for packet in packets:
        if packet.pts is None:
            continue
        if skipping:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in context.decode(packet):
            take(frame)
        missing.discard(packet.pts)
        later += packet.pts > times[-1]
        if not missing or later > _REORDER:
            break
    else:
        raise fit.error("media truncated", "it ends before a sampled frame")
    for frame in context.decode(None):  # that were held back, to come out in order
        take(frame)
    take(None)
    return found


def _by_number(container, stream, numbers: set[int], fit: Fit) -> dict[int, np.ndarray]:
    """The frames at places in the order of display, by decoding from the beginning. Some packets hold no
    frame: past the last, it is the last."""
    convert = _Converter(stream, fit)
    found: dict[int, np.ndarray] = {}
    shown = None
    for number, frame in enumerate(container.decode(stream)):
        shown = frame
        if number in numbers:
            found[number] = convert(frame)
        if len(found) == len(numbers):
            break
    if shown is None:
        raise fit.error("no frames")
    return {number: found[number] if number in found else convert(shown) for number in numbers}


class _Converter:
    """Decoded frames to upright [crop, crop, 3] uint8 RGB of square pixels."""

    def __init__(self, stream: VideoStream, fit: Fit):
        self._fit = fit
        self._stream = stream
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        if frame.is_corrupt:
            raise self._fit.error("media not decodable", "a sampled frame is damaged")
        # What the container says of a pixel's shape goes first. Many (MPEG-TS, AVI) say nothing: then the
        # decoder knows it, but not before the first frame.
        stream = self._stream
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
        height, width = self._fit.scaled(frame.height, max(round(frame.width * aspect), 1))
        # Planes of R, G and B are filtered in two thirds of the time of interleaved ones.
        planes = "gbrap" if _has_alpha(frame) else "gbrp"
        small = self._reformatter.reformat(
            frame, width, height, planes, interpolation=_FILTER, threads=1
        ).to_ndarray()
        return _on_white(centre(_upright(small, frame), self._fit.crop))


def as_seen(frame: VideoFrame, width: int) -> np.ndarray:
    """A frame upright and on white, `width` pixels wide before it is turned: [H, W, 3] uint8 RGB."""
    # Interleaved, which takes a sixth of the time of planes where nothing is filtered.
    pixels = frame.to_ndarray(width=width, format="rgba" if _has_alpha(frame) else "rgb24")
    return np.ascontiguousarray(_on_white(_upright(pixels, frame)))


def _has_alpha(frame: VideoFrame) -> bool:
    return any(part.is_alpha for part in frame.format.components)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] of [H, W, 3], or of [H, W, 4] whose last channel tells how little of the white is seen."""
    if pixels.shape[2] == 3:
        return pixels
    opaque = pixels[..., 3:] / np.float32(255)
    return np.rint(pixels[..., :3] * opaque + 255 * (1 - opaque)).astype(np.uint8)


def _upright(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """[H, W, C] as the display matrix turns and mirrors it: by multiples of 90 degrees."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside data of a kind that PyAV has no name for, such as EXIF: no mirroring then
        return np.rot90(pixels, round(frame.rotation / 90))
    if matrix is None:
        return pixels
    # Display x = a * x + c * y, y = b * x + d * y; 2 more columns are of perspective.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
