"""Renders scenes: artwork over a background, with sub-pixel motion. NumPy and Pillow only."""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image

from jepa_jax.data.emoji_motion.pack import load_pack
from jepa_jax.data.emoji_motion.scene import DIRECTIONS, Background, Scene
from jepa_jax.data.emoji_motion.things import THINGS

# A sprite is kept at these scales, so that the bilinear sampling below never shrinks by more than
# sqrt(2) and hence needs no prefilter.
LEVEL_SCALES = tuple(2.0 ** (-half / 2) for half in range(7))
# Alpha below this counts as empty when the picture is cropped to its content.
EMPTY_ALPHA = 8


@dataclasses.dataclass(frozen=True)
class Sprite:
    """One thing's picture, cropped to its content and premultiplied by its alpha.

    Attributes:
      levels: for each scale, the frames (one, unless animated). The images are in mode RGBX with
        alpha in the X: Pillow would un- and re-premultiply an RGBA image around every transform.
      sides: for each scale, the longest side of the content in pixels.
    """

    levels: tuple[tuple[Image.Image, ...], ...]
    sides: tuple[float, ...]


def make_sprite(frames: np.ndarray) -> Sprite:
    """Returns the sprite of a picture or an animation, [N,H,W,4] uint8 with straight alpha."""
    # All frames are cropped alike, or an animation would lose its own motion.
    rows, columns = np.nonzero((frames[..., 3] >= EMPTY_ALPHA).any(axis=0))
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    crops = [Image.fromarray(frame).convert("RGBa").crop(box) for frame in frames]
    width, height = crops[0].size
    levels, sides = [], []
    for scale in LEVEL_SCALES:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        level = []
        for crop in crops:
            pixels = np.asarray(crop.resize(size, Image.Resampling.HAMMING)).copy()
            # Filtering can leave a colour above its alpha by a rounding error.
            pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
            # An empty rim lets the outermost pixels fade out instead of ending hard.
            padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
            level.append(Image.frombytes("RGBX", padded.shape[1::-1], padded.tobytes()))
        levels.append(tuple(level))
        sides.append(float(max(size)))
    return Sprite(tuple(levels), tuple(sides))


@functools.cache
def load_artwork(kind: str) -> dict[str, Sprite]:
    """Returns {name: sprite} of "google", "fluent_3d" or "animated"; the last lacks some of the things."""
    pack = load_pack()
    if kind == "animated":
        pairs = zip(pack.animated_thing, pack.animated, strict=True)
        return {THINGS[index].name: make_sprite(frames) for index, frames in pairs}
    stills = {"google": pack.google, "fluent_3d": pack.fluent_3d}[kind]
    return {thing.name: make_sprite(still[None]) for thing, still in zip(THINGS, stills, strict=True)}


def place(
    sprite: Sprite,
    centre: tuple[float, float],
    side: float,
    canvas: int,
    degrees: float = 0.0,
    mirrored: bool = False,
    frame: int = 0,
) -> np.ndarray:
    """Returns the sprite on an empty canvas, [H,W,4] uint8, premultiplied.

    Args:
      sprite: the picture.
      centre: where its centre goes, in pixels.
      side: its longest side, in pixels.
      canvas: H and W.
      degrees: clockwise rotation about its centre.
      mirrored: whether left and right are swapped before the rotation.
      frame: which of its frames.
    """
    level = 0
    while level + 1 < len(sprite.sides) and sprite.sides[level + 1] >= side:
        level += 1
    picture = sprite.levels[level][frame]
    # Pillow wants the map from canvas to picture.
    scale = sprite.sides[level] / side
    cos = scale * math.cos(math.radians(degrees))
    sin = scale * math.sin(math.radians(degrees))
    flip = -1.0 if mirrored else 1.0
    a, b, d, e = flip * cos, flip * sin, -sin, cos
    c = picture.width / 2 - a * centre[0] - b * centre[1]
    f = picture.height / 2 - d * centre[0] - e * centre[1]
    placed = picture.transform(
        (canvas, canvas), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    return np.asarray(placed)


def over(layer: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Returns premultiplied `layer` [...,H,W,4] over opaque `background` [H,W,3]: [...,H,W,3]."""
    through = background.astype(np.uint16) * (255 - layer[..., 3:]).astype(np.uint16) + 128
    # Exact division by 255, rounded.
    return layer[..., :3] + ((through + (through >> 8)) >> 8).astype(np.uint8)


@functools.cache
def pixel_centres(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x [1,W] and y [H,1] of the pixel centres, in shares of the side."""
    at = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return at[None, :], at[:, None]


def render_background(background: Background, size: int) -> np.ndarray:
    """Returns the background, [H,W,3] uint8."""
    first = np.array(background.first, np.float32)
    if background.kind == "plain":
        return np.broadcast_to(first.astype(np.uint8), (size, size, 3))
    x, y = pixel_centres(size)
    cos, sin = math.cos(background.angle), math.sin(background.angle)
    along, across = x * cos + y * sin, y * cos - x * sin
    turns = 2 * math.pi * background.periods
    if background.kind == "gradient":
        share = 0.5 + (along - 0.5 * (cos + sin)) / (abs(cos) + sin)
    elif background.kind == "blobs":
        share = np.zeros((size, size), np.float32)
        for at_x, at_y, radius in background.blobs:
            share += np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * radius**2))
    else:
        wave = np.sin(turns * along + background.phase)
        if background.kind == "checks":
            wave = wave * np.sin(turns * across + background.phase)
        # The edge between two stripes is about one pixel wide: antialiased at every size.
        share = 0.5 + wave * (size / (2 * math.pi * background.periods))
    share = np.clip(share, 0.0, 1.0)[..., None]
    second = np.array(background.second, np.float32)
    return (first + (second - first) * share + 0.5).astype(np.uint8)


def render(scene: Scene, artwork: dict[str, Sprite], frames: int = 8, size: int = 32) -> np.ndarray:
    """Returns the clip, [T,H,W,3] uint8 with T = frames and H = W = size.

    The same arguments always give the same pixels.
    """
    sprite = artwork[scene.thing]
    background = render_background(scene.background, size)
    if scene.second:
        x, y = scene.second_place
        second = place(artwork[scene.second], (x * size, y * size), scene.second_size * size, size)
        background = over(second, background)
    step_x, step_y = DIRECTIONS.get(scene.motion, (0, 0))
    placed = []
    for index in range(frames):
        share = index / max(1, frames - 1)
        if scene.motion in ("stays still", "blinks") and placed:
            placed.append(placed[0])
            continue
        # Growth by a constant factor from frame to frame.
        left = 1 - share if scene.motion == "grows" else share
        side = scene.size * (scene.zoom**-left if scene.zoom != 1.0 else 1.0)
        x = (scene.start[0] + step_x * scene.travel * share) * size
        y = (scene.start[1] + step_y * scene.travel * share) * size
        frame = index * len(sprite.levels[0]) // frames
        degrees = scene.degrees * index
        placed.append(place(sprite, (x, y), side * size, size, degrees, scene.mirrored, frame))
    layers = np.stack(placed)
    if scene.motion == "blinks":
        hidden = (np.arange(frames) + scene.phase) % scene.period >= (scene.period + 1) // 2
        layers[hidden] = 0
    return over(layers, background)
