import numpy as np
import pytest

from jepa_jax.data.build.spans import cut_span
from jepa_jax.data.decode import read_frames
from jepa_jax.data.records import Media
from tests.data import clips, interlaced

COUNT = 45
FORMS = [("h264", False)] + [
    (kind, alone) for kind in ("mpegts", "matroska", "mp4") for alone in (False, True)
]


def read(media: Media, count: int) -> np.ndarray:
    return read_frames(media, count, resize=None, crop=interlaced.HEIGHT, name="clip", limits=clips.LIMITS)


@pytest.mark.parametrize(("container", "alone"), FORMS)
@pytest.mark.parametrize(
    ("start", "end", "count"),
    [(None, None, 1), (None, None, 8), (None, None, COUNT), (0.4, 1.2, 5), (1.0, None, 3)],
)
def test_two_fields_are_one_frame(container, alone, start, end, count):
    content = interlaced.video(container, COUNT, alone=alone)
    decoded = [frame.to_ndarray(format="rgb24") for frame in clips.full_decode(content)]
    assert len(decoded) == COUNT
    first, last = (
        default if x is None else round(x * interlaced.RATE) for x, default in ((start, 0), (end, COUNT))
    )
    places = first + ((np.arange(count) + 0.5) * (last - first) / count).astype(int)
    left = (interlaced.WIDTH - interlaced.HEIGHT) // 2
    expected = np.stack(decoded)[places, :, left : left + interlaced.HEIGHT]
    found = read(Media(content=content, start=start, end=end), count)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("container", "alone"), FORMS)
def test_a_cut_has_no_half_of_a_frame(container, alone):
    media = Media(content=interlaced.video(container, COUNT, alone=alone), start=0.5, end=1.1)
    cut = cut_span(media, 2**20)
    assert (cut is None) == (alone or container in ("h264", "mpegts"))
    if cut is not None:
        np.testing.assert_array_equal(read(cut, 9), read(media, 9))
