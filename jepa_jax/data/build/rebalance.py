"""Records drawn evenly over what their texts say: k-means over embeddings, then a cap on every cluster.

After the semantic resampling of Action100M (https://arxiv.org/abs/2601.10592), which uses k = 1,000.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from jepa_jax.data.build.duplicates import kept_texts, save
from jepa_jax.data.build.layout import BuildError, Split, replacing
from jepa_jax.data.build.prepare import rows_of
from jepa_jax.data.records import Source

# B texts to [B, D] floats.
Embed = Callable[[list[str]], np.ndarray]
# Records that clusters are found from: so many, and no fewer than some for every cluster.
_SAMPLE, _SAMPLE_PER_CLUSTER = 20_000, 50
_BATCH = 1024
_NGRAMS, _DIMENSIONS = 2**14, 64
NO_CLUSTER = -1


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@functools.cache
def _vectorizer() -> HashingVectorizer:
    # Pieces of words need no list of a language's words, or of where they end.
    return HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), n_features=_NGRAMS, alternate_sign=False, norm=None
    )


@dataclasses.dataclass(frozen=True)
class NgramEmbedder:
    """Texts by the pieces of their words, without a model: hashed n-grams of 2 to 4 letters weighted by
    TF-IDF, on the directions in which a sample's vary most. Texts are near that share rare words.

    Attributes:
      directions: [n-grams, D] float32, the weights of n-grams in them.
    """

    directions: np.ndarray

    @classmethod
    def fit(cls, texts: list[str], seed: int) -> "NgramEmbedder":
        """From a sample."""
        counts = _vectorizer().transform(texts)
        weights = TfidfTransformer(norm=None, sublinear_tf=True).fit(counts)
        size = max(min(_DIMENSIONS, len(texts) - 1), 1)
        svd = TruncatedSVD(size, n_iter=2, random_state=seed).fit(weights.transform(counts))
        return cls((svd.components_ * weights.idf_).T.astype(np.float32))

    def __call__(self, texts: list[str]) -> np.ndarray:
        counts = _vectorizer().transform(texts)
        counts.data = 1 + np.log(counts.data)
        return counts @ self.directions


def _text(source: Source, index: int, kept: np.ndarray | None) -> str:
    """All that a record says, less the texts that are removed; "" for nothing."""
    rows = rows_of(source, index)
    marks = np.ones(len(rows), bool) if kept is None else kept
    words = dict.fromkeys(
        word for (query, target), mark in zip(rows, marks) if mark for word in (query, target)
    )
    return "\n".join(word for word in words if word)


def _texts(split: Split, source: Source, shard: int, places) -> list[str]:
    kept, first = kept_texts(split, shard), split.indices(shard).start
    return [_text(source, first + p, None if kept is None else kept[p]) for p in places]


def find_clusters(split: Split, source: Source, clusters: int, seed: int, embed: Embed | None) -> None:
    """Find the clusters' centres from a sample of the records, and write them.

    Args:
      embed: None for an `NgramEmbedder`, which is written with them.

    Raises:
      BuildError: there are fewer different texts than clusters.
    """
    path = _centres(split)
    if path.exists():
        return
    wanted = min(split.records, max(_SAMPLE, _SAMPLE_PER_CLUSTER * clusters))
    sample = np.sort(np.random.default_rng(seed).choice(split.records, wanted, replace=False))
    texts = []
    for shard in range(split.shards):
        indices = split.indices(shard)
        inside = sample[np.searchsorted(sample, indices.start) : np.searchsorted(sample, indices.stop)]
        texts += _texts(split, source, shard, inside - indices.start)
    texts = [text for text in texts if text]
    different = len(set(texts))
    if different < clusters:
        raise BuildError(
            f"--rebalance={clusters}: the split {split.name!r} has only {different} different texts "
            "to make clusters of"
        )
    arrays = {}
    if embed is None:
        embed = NgramEmbedder.fit(texts, seed)
        arrays["directions"] = embed.directions
    embeddings = _embed_all(embed, texts)
    means = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, random_state=seed).fit(embeddings)
    arrays["centres"] = means.cluster_centers_.astype(np.float32)
    with replacing(path, split.folder) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _centres(split: Split) -> pathlib.Path:
    return split.state(0, "centres.npz")


def _embed_all(embed: Embed, texts: list[str]) -> np.ndarray:
    parts = [_unit(embed(texts[i : i + _BATCH])) for i in range(0, len(texts), _BATCH)]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class AssignClusters:
    """Writes the cluster of each of a shard's records: the nearest centre, `NO_CLUSTER` without a text."""

    split: Split
    source: Source
    embed: Embed | None

    def __call__(self, shard: int) -> None:
        path = self.split.state(shard, "clusters.npy")
        if path.exists():
            return
        with np.load(_centres(self.split), allow_pickle=False) as found:
            centres = found["centres"]
            embed = NgramEmbedder(found["directions"]) if self.embed is None else self.embed
        count = len(self.split.indices(shard))
        clusters = np.full(count, NO_CLUSTER, np.int32)
        for first in range(0, count, _BATCH):
            places = range(first, min(first + _BATCH, count))
            texts = _texts(self.split, self.source, shard, places)
            said = np.array([i for i, text in enumerate(texts) if text], int)
            if len(said):
                embedded = _embed_all(embed, [texts[i] for i in said])
                nearest = embedded @ centres.T - 0.5 * (centres**2).sum(1)
                clusters[first + said] = nearest.argmax(1)
        save(path, clusters, self.split)


def _mixed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A hash of each number, the same in every run (SplitMix64): [N] uint64."""
    x = numbers.astype(np.uint64) + np.uint64(seed % 2**32 * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def choose(split: Split, clusters: int, cap: int | None, seed: int) -> dict[str, object]:
    """Write for every record of every shard whether it is kept: of each cluster `cap`, chosen by a hash of
    their places and the seed. Memory is about 30 bytes a record.

    Args:
      cap: None for the mean size of a cluster.

    Returns:
      What the report says of it.
    """
    parts = [np.load(split.state(shard, "clusters.npy")) for shard in range(split.shards)]
    found = np.concatenate(parts)
    sizes = np.bincount(found[found != NO_CLUSTER], minlength=clusters)
    cap = -(-int(sizes.sum()) // clusters) if cap is None else cap
    order = np.lexsort((_mixed(np.arange(len(found)), seed), found))
    ranks = np.empty(len(found), np.int64)
    starts = np.searchsorted(found[order], np.arange(clusters))
    ranks[order] = np.arange(len(found)) - np.where(found[order] >= 0, starts[found[order]], 0)
    # Records without a text are left out with their cause when they are read.
    kept = (found == NO_CLUSTER) | (ranks < cap)
    for shard, mine in enumerate(np.split(kept, np.cumsum([len(part) for part in parts])[:-1])):
        save(split.state(shard, "records.npy"), mine, split)
    after = np.minimum(sizes, cap)
    return {"clusters": clusters, "cap": cap, "sizes": sizes.tolist(), "sizes_after": after.tolist()}
