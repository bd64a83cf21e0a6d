"""Pictures of what a model found."""

import numpy as np
from etils import epath

from jepa_jax.figures import save_figure, shortened

RIGHT = "#2ca02c"


def film_strip(frames: np.ndarray) -> np.ndarray:
    """Frames side by side, white between them: [T, H, W, C] uint8 -> [H, T * (W + gap) - gap, C], the gap a
    48th of W and at least 1."""
    gap = max(frames.shape[2] // 48, 1)
    spaced = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(spaced), axis=1)[:, :-gap]


def plot_retrieval(
    path: epath.Path,
    texts: list[str],
    found: np.ndarray,
    right: np.ndarray,
    frames: np.ndarray,
    *,
    shown_frames: int = 4,
) -> None:
    """One row a text: the five clips it found, best first, as strips of frames; the right one is
    outlined.

    Args:
      texts: R texts.
      found: [R, 5] int, places in `frames` of the clips each text found.
      right: [R] int, the place of the clip that the text describes.
      frames: [B, T, H, W, C] uint8.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    rows, columns = found.shape
    figure = Figure(figsize=(2.75 * columns, 1.08 * rows))
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={"hspace": 0.45, "wspace": 0.06},
    )
    picked = np.linspace(0, frames.shape[1] - 1, min(shown_frames, frames.shape[1])).astype(int)
    for row in range(rows):
        for column in range(columns):
            clip = frames[found[row, column]][picked]
            panel = axes[row, column]
            panel.imshow(film_strip(clip), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            is_right = found[row, column] == right[row]
            for spine in panel.spines.values():
                spine.set(color=RIGHT if is_right else "0.8", linewidth=4 if is_right else 0.8)
        place = np.flatnonzero(found[row] == right[row])
        verdict = f"found at rank {place[0] + 1}" if len(place) else "not among the five"
        # Beside the verdict; and two dollars in a caption are no formula.
        title = f"“{shortened(texts[row], 23 * columns - 15)}”"
        axes[row, 0].set_title(title, loc="left", fontsize=11, pad=5, parse_math=False)
        axes[row, -1].set_title(verdict, loc="right", fontsize=9, color="0.4", pad=5)
    save_figure(figure, path, dpi=110, bbox_inches="tight")
