"""What is told of the records of a shard, or of a dataset."""

import io
import math
from collections import Counter
from typing import Any

import av

from jepa_jax.data.build.prepare import media_size
from jepa_jax.data.build.spans import open_video
from jepa_jax.data.build.statistics import Histogram
from jepa_jax.data.records import Media, Record

HISTOGRAMS = ("duration_seconds", "media_bytes", "query_characters", "target_characters")


class Tally:
    """What is told of the records that were written, and of those that were not."""

    def __init__(self):
        self.written: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        self.spans: Counter[str] = Counter()
        self.histograms = {name: Histogram() for name in HISTOGRAMS}

    def add(self, record: Record, size: int, *, videos: bool) -> None:
        """Count a record that was stored in so many bytes.

        Args:
          videos: whether files may be opened for their duration.
        """
        self.written.update(records=1, pairs=len(record.pairs), bytes=size)
        histograms = self.histograms
        histograms["media_bytes"].add(media_size(record.media))
        whole = videos or record.media.end is not None
        duration = _duration(record.media) if whole else None
        if duration is not None and math.isfinite(duration):
            histograms["duration_seconds"].add(duration)
        for pair in record.pairs:
            histograms["query_characters"].add(len(pair.query))
            for target in pair.targets:
                self.written["targets"] += 1
                histograms["target_characters"].add(len(target))

    def to_json(self) -> dict[str, Any]:
        """All of it, plain for JSON."""
        counters = {name: dict(value) for name, value in vars(self).items() if name != "histograms"}
        return counters | {"histograms": {name: h.to_json() for name, h in self.histograms.items()}}

    def merge(self, value: dict[str, Any]) -> None:
        """Count what another has counted, from its `to_json`."""
        for name in ("written", "left_out", "removed", "spans"):
            getattr(self, name).update(value[name])
        for name, histogram in value["histograms"].items():
            self.histograms[name].merge(Histogram.from_json(histogram))


def _duration(media: Media) -> float | None:
    """Of a video or its span in seconds; None for images and where it does not say."""
    if media.end is not None:
        return media.end - (media.start or 0.0)
    if media.kind in ("image", "frames"):
        return None
    try:
        with open_video(io.BytesIO(media.content)) as container:
            if container.duration is None:
                return None
            return max(container.duration / av.time_base - (media.start or 0.0), 0.0)
    except (av.FFmpegError, ValueError):
        return None
