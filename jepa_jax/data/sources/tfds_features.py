"""What the features of a TFDS dataset are for, and the part of them that is read."""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from jepa_jax.config import FieldMap
from jepa_jax.data.records import Limits
from jepa_jax.data.sources.fields import MEDIA, TARGETS, find, named


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A feature that holds no others, or a sequence of such.

    Attributes:
      feature: without the sequences around it.
      keys: on the way to it; a key of TFDS may have "/" in it.
      depth: sequences around it.
      inner: keys that come after the first of those, as in a sequence of dictionaries.
    """

    feature: tfds.features.FeatureConnector
    keys: tuple[str, ...]
    depth: int
    inner: int

    @property
    def is_text(self) -> bool:
        return isinstance(self.feature, tfds.features.Tensor) and self.np_dtype == np.object_

    @property
    def is_label(self) -> bool:
        return isinstance(self.feature, tfds.features.ClassLabel)

    @property
    def np_dtype(self):
        return self.feature.np_dtype

    @property
    def is_image(self) -> bool:
        """Whether it is an image or a sequence of them; a map of labels is none."""
        is_image = isinstance(self.feature, tfds.features.Image)
        is_map = isinstance(self.feature, tfds.features.LabeledImage)
        return is_image and not is_map and self.depth <= 1 and self.np_dtype == np.uint8

    @property
    def is_frames(self) -> bool:
        """Whether it is an array of one or several frames."""
        shape = self.feature.shape
        if not isinstance(self.feature, tfds.features.Tensor) or self.np_dtype != np.uint8 or self.depth:
            return False
        return len(shape) in (3, 4) and shape[-1] in (1, 3)

    @property
    def is_scalar(self) -> bool:
        return isinstance(self.feature, tfds.features.Tensor) and self.feature.shape == () and not self.depth


def is_sequence(feature: tfds.features.FeatureConnector) -> bool:
    """Whether it is a Sequence; a Dataset, which TFDS has as one, is stored in another way."""
    is_dataset = isinstance(feature, tfds.features.Dataset)
    return isinstance(feature, tfds.features.Sequence) and not is_dataset


def leaves_of(features: tfds.features.FeatureConnector, keys=(), depth=0, inner=0) -> Iterator[Leaf]:
    """All leaves under a feature."""
    if isinstance(features, tfds.features.FeaturesDict):
        # Sorted: a folder's features.json gives them in another order each time.
        for key in sorted(features):
            yield from leaves_of(features[key], (*keys, key), depth, inner + bool(depth))
    elif is_sequence(features):
        yield from leaves_of(features.feature, keys, depth + 1, inner)
    else:
        yield Leaf(features, keys, depth, inner)


class _Unpacked(tfds.features.Tensor):
    """A tensor that TFDS keeps by zlib. TFDS would unpack it whatever size it comes to: a megabyte can be a
    gigabyte.

    Args:
      most: bytes that it may come to.
    """

    def __init__(self, feature: tfds.features.Tensor, most: int):
        super().__init__(shape=feature.shape, dtype=feature.np_dtype, encoding="bytes")
        self._most = most

    def decode_example_np(self, example_data):
        """Raises ValueError where it is damaged or comes to more."""
        if isinstance(example_data, Mapping):  # of more than one unknown length
            value = self._unpacked(example_data["value"])
            return super().decode_example_np({**example_data, "value": value})
        return super().decode_example_np(self._unpacked(example_data))

    def _unpacked(self, packed):
        if not isinstance(packed, bytes):  # of a sequence
            return np.array([self._unpacked(one) for one in packed], object)
        unpacker = zlib.decompressobj()
        try:
            found = unpacker.decompress(packed, self._most)
        except zlib.error as error:
            raise ValueError(f"a tensor cannot be unpacked: {error}") from error
        if not unpacker.eof:
            raise ValueError(f"a tensor that is cut short, or of more than {self._most} bytes")
        return found


def view(features, keep: set[tuple[str, ...]], most: int, keys=()):
    """The features to read some leaves by: images stay encoded, as a text would. None for no leaves.

    Args:
      most: bytes of a leaf, unpacked.
    """
    if isinstance(features, tfds.features.FeaturesDict):
        inner = {key: view(features[key], keep, most, (*keys, key)) for key in features}
        inner = {key: feature for key, feature in inner.items() if feature is not None}
        return tfds.features.FeaturesDict(inner) if inner else None
    if is_sequence(features):
        inner = view(features.feature, keep, most, keys)
        if inner is None:
            return None
        shape = features.get_tensor_info()
        while isinstance(shape, Mapping):
            shape = next(iter(shape.values()))
        return tfds.features.Sequence(inner, length=shape.shape[0])
    if keys not in keep:
        return None
    if type(features) is tfds.features.Tensor and features.to_json_content().encoding == "zlib":
        return _Unpacked(features, most)
    return tfds.features.Text() if isinstance(features, tfds.features.Image) else features


def find_features(fields: FieldMap, leaves: Mapping[str, Leaf], label: str, limits: Limits) -> FieldMap:
    """The map with what is left out found.

    Media is the one image, sequence of images or uint8 [T, H, W, C] array outside of other sequences, or
    of several the one with a name of `MEDIA`. Targets are the one text with a name of `TARGETS`; without
    one, the label (called "label", if there are several); without one, the one text.

    Raises:
      ValueError: as `find`; or a field is of a type that cannot be what it is named for.
    """
    media = [path for path, x in leaves.items() if (x.is_image and not x.inner) or x.is_frames]
    media = named(media, MEDIA) if len(named(media, MEDIA)) == 1 else media
    texts = [path for path, x in leaves.items() if x.is_text]
    labels = [path for path, x in leaves.items() if x.is_label and not x.depth]
    labels = named(labels, ("label",)) or labels
    found = find(fields, list(leaves), media, named(texts, TARGETS) or labels or texts, label, limits)
    for role, path in dataclasses.asdict(found).items():
        if path is None:
            continue
        x = leaves[path]
        if role == "media":
            fits = x.is_image or x.is_frames or (x.is_text and not x.depth)
        elif role in ("targets", "query", "kind"):
            fits = x.is_text or x.is_label
        else:
            fits = x.feature.shape == () and not x.is_text
        if not fits:
            raise ValueError(f"{label}: fields.{role}={path!r} is of the wrong type: {x.feature}")
    return found
