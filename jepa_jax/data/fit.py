"""What a decoder has to know of where its frames go: their size, and the record's limits."""

import dataclasses

from jepa_jax.data.preprocess import scaled_size
from jepa_jax.data.records import BadRecordError, Limits


@dataclasses.dataclass(frozen=True)
class Fit:
    """Frames of one record on their way to `crop` x `crop` pixels.

    Attributes:
      resize, crop: as in `preprocess.resize_and_crop`.
      name: of the record, for its errors.
      limits: that hold for it.
    """

    resize: int | None
    crop: int
    name: str
    limits: Limits

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """The size a frame is resized to, height and width, once it is known to be within the limits.

        Raises:
          BadRecordError: the frame has no pixels, or too many before or after.
        """
        if height <= 0 or width <= 0:
            raise self.error("no frames", f"{height} x {width} pixels")
        scaled = scaled_size(height, width, self.resize, self.crop)
        # A frame of 1 x 60,000 pixels would become one of 292 x 17,520,000.
        for h, w in ((height, width), scaled):
            if h * w > self.limits.max_pixels:
                raise self.error("media too large", f"{h} x {w} pixels, {self.limits.max_pixels} are allowed")
        return scaled

    def error(self, cause: str, detail: str = "") -> BadRecordError:
        """The record's error, to raise."""
        return BadRecordError(cause, self.name, detail)
