"""Videos to frames, by FFmpeg (PyAV): only what is sampled is converted, and little else is decoded.

The frames there are come from the container, without decoding: from an MP4's index, else from a pass over
the packets. Decoding begins at the keyframe before a sampled frame and leaves out frames that no other
needs. Of 10 s of 720p H.264, 8 frames of 256 px cost half of what they cost a loop that seeks and decodes
for each, or less, and a fifth of decoding it all.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from jepa_jax.data.boxes import claimed_frames, is_cut
from jepa_jax.data.fit import Fit
from jepa_jax.data.preprocess import centre
from jepa_jax.data.timeline import sample_times
from jepa_jax.data.video_index import REORDER, Index, find_frames, has_fields

# FFmpeg's readers that are let at data. Some of the others (playlists, lists of files) open further
# files, or find "video" in any text.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,h264,hevc,ivf,flv,asf,ogg,dv,mxf,nut,rm"
# Brands of photographs in ISO boxes (HEIC). FFmpeg's reader has each tile of one as a video.
_IMAGES = ("heic", "heix", "heim", "heis", "mif1")
# The filter nearest to `preprocess`' (as wide as the scale asks, so antialiased), and rounding, not
# truncation, where there is nothing to scale. On real 720p frames it is 0.3 of 255 levels off an exact
# conversion with Pillow's filter; FFmpeg's conversion at full size, then Pillow's filter, 1.2.
_FILTER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Decoders that leave out, when told so before a packet, that packet if no other needs it. Others look
# ahead (AV1), so that it would be another one.
_SKIPPING = ("h264", "hevc")
# So few frames are decoded rather than sought past: a new start costs about as much.
_WORTH_A_SEEK = 8
# From how many keyframes before a frame it is tried to decode it, one after the other.
_BACK = (0, 1, 2, 4, 8)


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
        index = find_frames(container, stream, file, size, fit)
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


def video_of(container: InputContainer) -> VideoStream | None:
    """The video that FFmpeg shows of several, such as the one said to be the default; no cover is one."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    return best if best in streams else next(iter(streams), None)


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
        if isinstance(error, av.ArgumentError):  # FFmpeg's word for all that is not in the list
            raise fit.error("media not decodable", "not of a format that is read here") from error
        raise
    with container:
        is_tiled = any(s.disposition & Disposition.dependent for s in container.streams.video)
        if is_tiled and container.metadata.get("major_brand") in _IMAGES:
            raise fit.error("media not decodable", "a HEIF image of several tiles: save it as JPEG")
        stream = video_of(container)
        if stream is None:
            raise fit.error("no video stream")
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


def _by_time(container, stream, index: Index, times: list[int], fit: Fit) -> dict[int, np.ndarray] | None:
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
        # What is marked as a keyframe need not be one, and nothing is shown there of a picture that is
        # renewed piece by piece: if the frame does not come, once more from one before.
        for first in dict.fromkeys(max(key - back, 0) for back in _BACK):
            packets = _from_key(container, stream, index, first, run[0])
            if packets is None:
                return None
            frames = _run(stream, packets, run, convert, fit, is_start=first == 0)
            if len(frames) == len(run):
                break
        else:
            at = (run[0] - index.times[0]) * index.unit
            raise fit.error("media not decodable", f"no frame comes out for second {at:.3f}")
        found |= frames
    return found


def _from_key(container, stream, index: Index, key: int, time: int) -> Iterator[Packet] | None:
    """The packets from a keyframe on, or from one before it, that is not shown after `time`, but for the
    first; None if no seek finds one."""
    # Where a seek ends too late, an earlier one is tried.
    for first in dict.fromkeys((key, max(key - 1, 0), 0)):
        container.seek(int(index.seeks[first]), stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None and packet.pts >= index.keys[first]:
                if packet.pts <= max(time, index.keys[0]):
                    return itertools.chain([packet], packets)
                break
    return None


def _run(
    stream, packets: Iterator[Packet], times: list[int], convert, fit: Fit, *, is_start: bool
) -> dict[int, np.ndarray]:
    """Decodes packets until the frames shown at ascending times are out.

    Of two frames, that which comes before a time is on show at it: a few packets hold no frame to show.
    Before the first that comes out it is that one if the packets begin where the video does; else the
    time has no frame here: where a picture is renewed piece by piece, the first ones are not shown.
    """
    context = stream.codec_context
    skipping, in_fields = context.name in _SKIPPING, has_fields(stream)
    wanted, missing, later = set(times), set(times), 0
    found: dict[int, np.ndarray] = {}
    shown: VideoFrame | None = None  # the last that came out

    def take(frame: VideoFrame | None) -> None:
        nonlocal shown
        now = np.inf if frame is None else frame.pts
        since, on_show = (-np.inf if is_start else now, frame) if shown is None else (shown.pts, shown)
        passed = [t for t in times if since <= t < now and t not in found]
        if passed and on_show is not None:
            found.update(dict.fromkeys(passed, convert(on_show)))
        if now in wanted:
            found[now] = convert(frame)
        shown = frame

    # What may be the second field of a wanted frame is decoded with it.
    is_second = is_over = False
    for packet in packets:
        if packet.pts is None and not (in_fields and packet.size):
            continue
        is_wanted = packet.pts in wanted
        if skipping:
            context.skip_frame = "DEFAULT" if is_wanted or is_second else "NONREF"
        for frame in context.decode(packet):
            take(frame)
        if is_over:
            break
        is_second = is_wanted and in_fields
        missing.discard(packet.pts)
        later += packet.pts is not None and packet.pts > times[-1]
        is_over = not missing or later > (2 * REORDER if in_fields else REORDER)
        is_over = is_over and (shown is not None or not is_start)
        if is_over and not is_second:
            break
    else:
        if missing:
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
        return _on_white(centre(_upright(_in_full_range(small, frame), frame), self._fit.crop))


def as_seen(frame: VideoFrame, width: int) -> np.ndarray:
    """A frame upright and on white, `width` pixels wide before it is turned: [H, W, 3] uint8 RGB."""
    # Interleaved, which takes a sixth of the time of planes where nothing is filtered.
    pixels = frame.to_ndarray(width=width, format="rgba" if _has_alpha(frame) else "rgb24")
    return np.ascontiguousarray(_on_white(_upright(_in_full_range(pixels, frame), frame)))


def _has_alpha(frame: VideoFrame) -> bool:
    return any(part.is_alpha for part in frame.format.components)


def _in_full_range(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """[H, W, C] with black at 0 and white at 255. FFmpeg takes monochrome frames, as of HEVC and AV1, to be
    so already, even where the video says that black is at 16 and white at 235."""
    if not frame.format.name.startswith("gray") or frame.color_range != ColorRange.MPEG:
        return pixels
    return np.rint(np.clip((pixels - np.float32(16)) * (255 / 219), 0, 255)).astype(np.uint8)


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
