"""H.264 of two fields a frame, each a picture of its own, as broadcasters send it: no encoder here writes it.

Macroblocks are stored as they are (I_PCM), so a whole encoder is a screenful.
"""

import functools
import io
from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH, RATE, GROUP = 32, 64, 25, 10
# Of MPEG's clock.
_TICKS = 90_000 // RATE


class _Bits:
    def __init__(self):
        self._bits: list[int] = []

    def u(self, *lengths_and_values: tuple[int, int]) -> "_Bits":
        for length, value in lengths_and_values:
            self._bits += [(value >> i) & 1 for i in reversed(range(length))]
        return self

    def ue(self, *values: int) -> "_Bits":
        """Exponential Golomb codes."""
        for value in values:
            length = (value + 1).bit_length()
            self.u((length - 1, 0), (length, value + 1))
        return self

    def bytes(self, content: bytes) -> None:
        self._bits += np.unpackbits(np.frombuffer(content, np.uint8)).tolist()

    def align(self) -> "_Bits":
        return self.u((-len(self._bits) % 8, 0))

    def unit(self, reference: int, kind: int) -> bytes:
        """A NAL unit."""
        self.u((1, 1)).align()
        content, zeros = bytearray(), 0
        for byte in np.packbits(np.array(self._bits, np.uint8)).tolist():
            if zeros >= 2 and byte <= 3:
                content.append(3)
                zeros = 0
            content.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([reference << 5 | kind]) + bytes(content)


def _parameters() -> bytes:
    sequence = (
        _Bits().u((8, 77), (8, 0), (8, 30)).ue(0, 4, 2, 1).u((1, 0)).ue(WIDTH // 16 - 1, HEIGHT // 32 - 1)
    )
    # Not frames alone; of all that follows only the rate is said.
    sequence.u((2, 0), (2, 2), (1, 1), (4, 0), (1, 1), (32, 1), (32, 2 * RATE), (1, 1), (4, 0))
    picture = _Bits().ue(0, 0).u((2, 0)).ue(0, 0, 0).u((3, 0)).ue(0, 0, 0).u((3, 4))
    return sequence.unit(3, 7) + picture.unit(3, 8)


def _field(luma: np.ndarray, number: int, second: bool) -> bytes:
    place, group = number % GROUP, number // GROUP
    is_key = place == 0 and not second
    bits = _Bits().ue(0, 7, 0).u((8, place), (1, 1), (1, second))
    if is_key:
        bits.ue(group % 2).u((1, 0))
    bits.u((1, 0)).ue(0, 1)
    for row in range(0, len(luma), 16):
        for column in range(0, WIDTH, 16):
            bits.ue(25).align()
            block = luma[row : row + 16, column : column + 16]
            bits.bytes(block.tobytes() + bytes([128]) * 128)
    return b"\0\0\0\1\x09\x10" + bits.unit(3, 5 if is_key else 1)


def frame(number: int) -> np.ndarray:
    """[HEIGHT, WIDTH] uint8; in the second field other values than in the first."""
    bits = (number >> np.arange(8)) & 1
    luma = np.tile(np.repeat(bits * 160 + 48, WIDTH // 8), (HEIGHT, 1)).astype(np.uint8)
    luma[1::2] = luma[1::2] // 2 + 60
    return luma


@functools.cache
def _frame(number: int) -> tuple[bytes, bytes]:
    first, second = (_field(frame(number)[i::2], number, bool(i)) for i in (0, 1))
    return (_parameters() + first if number % GROUP == 0 else first), second


def video(container: str, count: int, *, alone: bool) -> bytes:
    """A video of numbered frames.

    Args:
      alone: each field is a packet with a time of its own; else the two of a frame are one packet.
    """
    frames = [_frame(number) for number in range(count)]
    raw = b"".join(map(b"".join, frames))
    if container == "h264":
        return raw
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(raw), format="h264") as source,
        av.open(file, "w", format=container) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, fields in enumerate(frames):
            parts = fields if alone else [b"".join(fields)]
            for i, part in enumerate(parts):
                packet = av.Packet(part)
                packet.stream, packet.time_base = stream, Fraction(1, 90_000)
                packet.pts = packet.dts = number * _TICKS + i * _TICKS // 2
                packet.duration = _TICKS // len(parts)
                packet.is_keyframe = number % GROUP == 0 and i == 0
                output.mux(packet)
    return file.getvalue()
