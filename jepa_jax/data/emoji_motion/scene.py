"""What a clip shows, as plain numbers, and how those numbers are drawn.

Lengths are shares of the canvas side, so one scene can be rendered at any size.
x runs to the right, y down.
"""

import colorsys
import dataclasses
import math

import numpy as np

from jepa_jax.data.emoji_motion.things import THINGS

MOTIONS: tuple[str, ...] = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "blinks",
    "spins",
    "stays still",
)
DIRECTIONS: dict[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "stripes", "checks", "blobs")

Range = tuple[float, float]
Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class SceneStyle:
    """The ranges scenes are drawn from, uniformly.

    Attributes:
      size: longest side of the thing.
      zoom_size: the same at the large end of a clip in which it grows or shrinks.
      spin_size: the same for a thing that spins, whose corners sweep a wider circle.
      crowded_size: upper bounds of the three above, in that order, beside a second thing.
      travel: distance moved from the first frame to the last, cut to what the canvas leaves.
      zoom: ratio of the largest to the smallest size.
      degrees: rotation per frame, either way round.
      blink_periods: frames from one appearance to the next; visible for the first half.
      overhang: share of the thing's side that may leave the canvas on each axis.
      second_chance: share of the moving clips that hold a second thing.
      second_size: longest side of the second thing.
      mirror_chance: share of the things shown mirrored.
      saturation, brightness: of background colours (HSV, 0 to 1); moderate, so that things stand
        out.
      contrast: largest difference in brightness inside one background.
      blobs: number of soft blobs, both ends included.
      periods: stripes or checks across the canvas.
    """

    size: Range = (0.58, 0.75)
    zoom_size: Range = (0.75, 0.90)
    spin_size: Range = (0.58, 0.72)
    crowded_size: tuple[float, float, float] = (0.64, 0.75, 0.62)
    travel: Range = (0.35, 0.50)
    zoom: Range = (2.0, 2.6)
    degrees: Range = (40.0, 70.0)
    blink_periods: tuple[int, ...] = (2, 4)
    overhang: float = 0.12
    second_chance: float = 0.25
    second_size: Range = (0.32, 0.42)
    mirror_chance: float = 0.0
    saturation: Range = (0.05, 0.30)
    brightness: Range = (0.45, 0.95)
    contrast: float = 0.15
    blobs: tuple[int, int] = (2, 4)
    periods: Range = (1.0, 2.5)


@dataclasses.dataclass(frozen=True)
class Background:
    """A still background.

    Attributes:
      kind: one of `BACKGROUNDS`.
      first, second: RGB colours, 0 to 255.
      angle: direction of the gradient, the stripes or the checks, in radians.
      periods: stripes or checks across the canvas.
      phase: where they begin, in radians.
      blobs: (x, y, radius) of each blob.
    """

    kind: str
    first: Colour
    second: Colour
    angle: float = 0.0
    periods: float = 2.0
    phase: float = 0.0
    blobs: tuple[tuple[float, float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that decides a clip's pixels, apart from the artwork, the frame count and the size.

    Attributes:
      thing: name of the main thing.
      motion: one of `MOTIONS`, or "" where the artwork itself is animated.
      background: what is behind.
      size: longest side of the main thing, the largest it reaches.
      start: its centre in the first frame.
      travel: distance its centre moves, first frame to last ("moves ..." only).
      zoom: ratio of its largest to its smallest size ("grows" and "shrinks" only).
      degrees: rotation per frame, clockwise positive ("spins" only).
      period, phase: frames of a blink's cycle, and where in it the clip begins ("blinks" only).
      mirrored: whether the main thing is drawn mirrored.
      second: name of the second, still thing behind the main one, or "".
      second_size, second_place: its longest side and its centre.
    """

    thing: str
    motion: str
    background: Background
    size: float
    start: Point
    travel: float = 0.0
    zoom: float = 1.0
    degrees: float = 0.0
    period: int = 1
    phase: int = 0
    mirrored: bool = False
    second: str = ""
    second_size: float = 0.0
    second_place: Point = (0.5, 0.5)


def sample_scene(
    rng: np.random.Generator, thing: str, motion: str, style: SceneStyle = SceneStyle()
) -> Scene:
    """Returns a random scene of the thing in that motion ("" for artwork that moves by itself)."""
    crowded = motion not in ("", "stays still") and rng.random() < style.second_chance
    zooms, spins = motion in ("grows", "shrinks"), motion == "spins"
    ranges = (style.size, style.zoom_size, style.spin_size)
    kind = 1 if zooms else 2 if spins else 0
    low, high = ranges[kind]
    if crowded:
        high = max(low, min(high, style.crowded_size[kind]))
    size = rng.uniform(low, high)
    # Half of a turned square's extra width: its corners are seldom full.
    extent = size * (1.2 if spins else 1.0)
    room = max(0.0, 1.0 - extent + 2 * style.overhang * extent)
    travel = min(rng.uniform(*style.travel), room) if motion in DIRECTIONS else 0.0
    start = []
    for step in DIRECTIONS.get(motion, (0, 0)):
        first = (1 - room) / 2 + rng.random() * (room - travel * abs(step))
        start.append(first + travel if step < 0 else first)
    scene = Scene(
        thing=thing,
        motion=motion,
        background=sample_background(rng, style),
        size=size,
        start=(start[0], start[1]),
        travel=travel,
        zoom=rng.uniform(*style.zoom) if zooms else 1.0,
        degrees=rng.uniform(*style.degrees) * rng.choice((-1, 1)) if spins else 0.0,
        mirrored=bool(rng.random() < style.mirror_chance),
    )
    if motion == "blinks":
        period = int(rng.choice(style.blink_periods))
        scene = dataclasses.replace(scene, period=period, phase=int(rng.integers(period)))
    return add_second(rng, scene, style) if crowded else scene


def add_second(rng: np.random.Generator, scene: Scene, style: SceneStyle) -> Scene:
    """Returns the scene with a still thing of another kind, where the main one covers it least."""
    others = [thing.name for thing in THINGS if thing.name != scene.thing]
    size = rng.uniform(*style.second_size)
    near, far = size / 2, 1 - size / 2
    places = [(x, y) for y in (near, 0.5, far) for x in (near, 0.5, far) if (x, y) != (0.5, 0.5)]
    place = min(places, key=lambda place: covered(scene, place, size))
    # A little off the edge or the corner, never over it.
    place = tuple(min(max(at + rng.uniform(-0.04, 0.04), near), far) for at in place)
    return dataclasses.replace(
        scene, second=others[rng.integers(len(others))], second_size=size, second_place=place
    )


def covered(scene: Scene, place: Point, size: float) -> float:
    """Returns how much of a square at `place` the main thing's box hides: the clip's mean area."""
    step = DIRECTIONS.get(scene.motion, (0, 0))
    reach = (scene.size + size) / 2
    total = 0.0
    for share in (0.0, 0.5, 1.0):
        area = 1.0
        for start, way, at in zip(scene.start, step, place, strict=True):
            area *= max(0.0, reach - abs(start + way * scene.travel * share - at))
        total += area
    return total / 3


def sample_background(rng: np.random.Generator, style: SceneStyle) -> Background:
    """Returns a random background of two related colours."""
    hue, saturation = rng.random(), rng.uniform(*style.saturation)
    low, high = style.brightness
    brightness = rng.uniform(low, high)
    # The second colour may turn a quarter round the colour circle, and is lighter or darker.
    other_hue = (hue + rng.uniform(-0.25, 0.25)) % 1.0
    shift = rng.uniform(0.4, 1.0) * style.contrast * rng.choice((-1, 1))
    other_brightness = min(max(brightness + shift, low), high)
    colours = ((hue, saturation, brightness), (other_hue, saturation, other_brightness))
    first, second = (
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(*colour)) for colour in colours
    )
    least, most = style.blobs
    blobs = rng.random((int(rng.integers(least, most + 1)), 3))
    return Background(
        kind=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        first=first,
        second=second,
        angle=rng.uniform(0, math.pi),
        periods=rng.uniform(*style.periods),
        phase=rng.uniform(0, 2 * math.pi),
        blobs=tuple((float(x), float(y), 0.12 + 0.2 * float(r)) for x, y, r in blobs),
    )
