"""Frames to the size the X-Encoder takes; still uint8, for the device normalises."""

import numpy as np
from PIL import Image


def scaled_size(height: int, width: int, resize: int | None, crop: int) -> tuple[int, int]:
    """Height and width of a frame whose short side is made `resize` pixels, or `crop` where it is None.

    Raises:
      ValueError: `resize` is smaller than `crop`.
    """
    resize = crop if resize is None else resize
    if resize < crop:
        raise ValueError(f"data.resize={resize} is smaller than the crop of {crop} pixels")
    # In integers: by a float scale 480 x 720 comes to 292 x 437, not 438, and its centre moves.
    short = min(height, width)
    return resize * height // short, resize * width // short


def centre(frames: np.ndarray, crop: int) -> np.ndarray:
    """The middle of each frame: [..., H, W, C] -> [..., crop, crop, C]."""
    height, width = frames.shape[-3:-1]
    top, left = (height - crop) // 2, (width - crop) // 2
    return frames[..., top : top + crop, left : left + crop, :]


def resize_and_crop(frames: np.ndarray, resize: int | None, crop: int) -> np.ndarray:
    """Short side to `resize` pixels, the long side in proportion, then the centre `crop` x `crop`.

    V-JEPA 2 was released with 292 and 256 (a ratio of 256 / 224); None goes straight to `crop`. Sizes
    and offsets are those of its processor in `transformers`, pixels within one level of 255: both
    filter bilinearly with antialiasing.

    Args:
      frames: [T, H, W, C] uint8.

    Returns:
      [T, crop, crop, C] uint8.

    Raises:
      ValueError: `resize` is smaller than `crop`.
    """
    size = scaled_size(*frames.shape[1:3], resize, crop)
    if size != frames.shape[1:3]:
        images = [Image.fromarray(f).resize(size[::-1], Image.BILINEAR) for f in frames]
        frames = np.stack([np.asarray(image) for image in images])
    return centre(frames, crop)


def sample_frames(frames: np.ndarray, count: int) -> np.ndarray:
    """`count` frames uniformly over the clip, each the middle of its share: [T, ...] -> [count, ...]."""
    if len(frames) == count:
        return frames
    index = (np.arange(count) + 0.5) * len(frames) / count
    return frames[index.astype(int)]


def shift(frames: np.ndarray, down: int, right: int) -> np.ndarray:
    """The content of all frames moved by so many pixels, up or left if negative, the border repeated:
    [T, H, W, C] -> [T, H, W, C].

    Raises:
      ValueError: a move of the whole height or width, or more.
    """
    height, width = frames.shape[1:3]
    if abs(down) >= height or abs(right) >= width:
        raise ValueError(f"{height} x {width} pixels cannot be moved by {down} down and {right} right")
    to_rows, from_rows, empty_rows, border_row = _moved(height, down)
    to_columns, from_columns, empty_columns, border_column = _moved(width, right)
    out = np.empty_like(frames)
    out[:, to_rows, to_columns] = frames[:, from_rows, from_columns]
    out[:, to_rows, empty_columns] = out[:, to_rows, border_column]
    out[:, empty_rows] = out[:, border_row]
    return out


def _moved(size: int, by: int) -> tuple[slice, slice, slice, slice]:
    """Where what stays goes, where it comes from, what is left empty, and the border beside that."""
    if by >= 0:
        return slice(by, None), slice(None, size - by), slice(None, by), slice(by, by + 1)
    return slice(None, by), slice(-by, None), slice(size + by, None), slice(size + by - 1, size + by)
