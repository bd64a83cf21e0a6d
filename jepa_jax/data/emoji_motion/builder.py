"""Emoji in motion as a TFDS dataset, built and read without TensorFlow.

Importing this module is what makes `tfds.builder("emoji_motion")` known.

    builder = EmojiMotion(config=make_config(ClipConfig(size=32)), data_dir=DIR, file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source(split="train")
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jepa_jax.data.emoji_motion.clips import SPLITS, ClipConfig, make_clips

DESCRIPTION = """Clips of everyday things, each in one of nine motions on a varied still background,
composed from openly licensed emoji artwork, with captions, questions and answers. Pairs of a thing
and a motion that training never sees, the same things drawn by another artist, and real animations
are splits of their own."""


# The registered configs, by name; the first is the default.
NAMED: dict[str, ClipConfig] = {
    "32px": ClipConfig(size=32),
    "48px": ClipConfig(size=48),
    # Every seen pair once: enough to try a program on, built in a few seconds.
    "tiny": ClipConfig(
        clips_per_pair=1,
        validation_clips=64,
        clips_per_unseen_pair=1,
        unseen_art_clips=64,
        clips_per_animation=1,
    ),
}


@dataclasses.dataclass(eq=False, kw_only=True)
class EmojiMotionConfig(tfds.core.BuilderConfig):
    """A TFDS config around a `ClipConfig`, which is what to render."""

    clips: ClipConfig


# Cached because TFDS takes a config for the registered one of its name only if it is the same object.
@functools.cache
def make_config(clips: ClipConfig) -> EmojiMotionConfig:
    """Returns the TFDS config of these clips.

    Its name, and so its folder, is the one in `NAMED`, or the size and a hash of all fields: two
    different data sets never share a folder.
    """
    fields = json.dumps(dataclasses.asdict(clips), sort_keys=True)
    name = f"{clips.size}px_{hashlib.sha256(fields.encode()).hexdigest()[:10]}"
    for known, other in NAMED.items():
        if other == clips:
            name = known
    description = f"{clips.frames} frames of {clips.size} x {clips.size} pixels"
    return EmojiMotionConfig(name=name, description=description, clips=clips)


class EmojiMotion(tfds.core.GeneratorBasedBuilder):
    """Builder of `emoji_motion`.

    A record holds `frames` [T,H,W,3] uint8, `pairs` (equally long lists `kind`, `query`, `target`),
    and `id`, `thing`, `motion` and `second`, the last two "" where there is none.
    """

    VERSION = tfds.core.Version("1.3.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "First version.",
        "1.1.0": "Four frames, larger things on calmer backgrounds, 120 unseen pairs of 1,080.",
        "1.2.0": "40 clips of a seen pair in place of 20.",
        "1.3.0": "60 clips of a seen pair.",
    }
    BUILDER_CONFIGS: ClassVar[list[EmojiMotionConfig]] = [make_config(c) for c in NAMED.values()]

    def _info(self) -> tfds.core.DatasetInfo:
        clips = self.builder_config.clips
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    # Plain bytes: ArrayRecord compresses every record anyway.
                    "frames": tfds.features.Tensor(
                        shape=(clips.frames, clips.size, clips.size, 3),
                        dtype=np.uint8,
                        encoding=tfds.features.Encoding.BYTES,
                    ),
                    "pairs": tfds.features.Sequence({"kind": text, "query": text, "target": text}),
                    "thing": text,
                    "motion": text,
                    "second": text,
                }
            ),
            license="Apache-2.0 AND MIT",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing is downloaded: the artwork is part of the package.
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for clip in make_clips(self.builder_config.clips, split):
            yield clip["id"], clip
