"""The clips of every split, each a pure function of (config, split, index), made by processes."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from jepa_jax.data.emoji_motion import texts
from jepa_jax.data.emoji_motion.compose import load_artwork, render
from jepa_jax.data.emoji_motion.pack import load_pack
from jepa_jax.data.emoji_motion.scene import SceneStyle, sample_scene
from jepa_jax.data.emoji_motion.splits import Pair, seen_pairs, spread, unseen_pairs
from jepa_jax.data.emoji_motion.things import THINGS

# The order is part of the format: a split's number goes into its clips' seeds.
SPLITS: tuple[str, ...] = ("train", "validation", "unseen_pairs", "unseen_art", "animations")
ARTWORK_OF_SPLIT = {"unseen_art": "fluent_3d", "animations": "animated"}
CHUNK = 64
PIPE_BYTES = 1 << 20
# Below this, starting processes costs more than they save.
ALONE_BELOW = 2048


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """What to render.

    Attributes:
      size: H and W in pixels.
      frames: T.
      clips_per_pair: training clips of every seen (thing, motion) pair.
      validation_clips: fresh scenes of seen pairs.
      clips_per_unseen_pair: clips of every pair kept out of training.
      unseen_art_clips: clips of seen pairs in the other artist's drawings.
      clips_per_animation: clips of every thing that is animated by its artist.
      style: the ranges the scenes are drawn from.
      seed: of all the scenes and texts.
    """

    size: int = 32
    frames: int = 4
    clips_per_pair: int = 60
    validation_clips: int = 512
    clips_per_unseen_pair: int = 6
    unseen_art_clips: int = 540
    clips_per_animation: int = 2
    style: SceneStyle = dataclasses.field(default_factory=SceneStyle)
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del counts["style"], counts["seed"]
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}, expected at least 1.")


def split_pairs(config: ClipConfig, split: str) -> tuple[Pair, ...]:
    """Returns the (thing, motion) of every clip of the split; the motion of an animation is ""."""
    if split == "train":
        return seen_pairs() * config.clips_per_pair
    if split == "validation":
        return spread(seen_pairs(), config.validation_clips)
    if split == "unseen_pairs":
        return unseen_pairs() * config.clips_per_unseen_pair
    if split == "unseen_art":
        return spread(seen_pairs(), config.unseen_art_clips)
    if split == "animations":
        names = (THINGS[index].name for index in load_pack().animated_thing)
        return tuple((name, "") for name in names) * config.clips_per_animation
    raise ValueError(f"There is no split {split!r}, only {SPLITS}.")


def make_clip(config: ClipConfig, split: str, index: int, pair: Pair) -> dict:
    """Returns one record: `frames` [T,H,W,3] uint8, its texts, and what it shows."""
    # Neither neighbours nor the number of workers matter to a clip: only its own three numbers do.
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    scene = sample_scene(rng, *pair, config.style)
    artwork = load_artwork(ARTWORK_OF_SPLIT.get(split, "google"))
    kinds, queries, targets = zip(*texts.pairs(scene, rng), strict=True)
    return {
        "id": f"{split}_{index:06d}",
        "frames": render(scene, artwork, config.frames, config.size),
        "pairs": {"kind": list(kinds), "query": list(queries), "target": list(targets)},
        "thing": scene.thing,
        "motion": scene.motion,
        "second": scene.second,
    }


def chunks(config: ClipConfig, split: str, worker: int, workers: int) -> Iterator[list[dict]]:
    """Yields this worker's lists of clips: every `workers`-th chunk, from its own number on."""
    pairs = split_pairs(config, split)
    for start in range(worker * CHUNK, len(pairs), workers * CHUNK):
        indices = range(start, min(start + CHUNK, len(pairs)))
        yield [make_clip(config, split, index, pairs[index]) for index in indices]


def make_clips(config: ClipConfig, split: str, workers: int | None = None) -> Iterator[dict]:
    """Yields the split's clips in order, rendered by that many processes (default: one per core).

    The result does not depend on `workers`; 0 renders in this process.
    """
    count = len(split_pairs(config, split))
    if workers is None:
        workers = available_cores() if count >= ALONE_BELOW else 0
    workers = min(workers, count // CHUNK)
    if not workers:
        for chunk in chunks(config, split, 0, 1):
            yield from chunk
        return
    processes = [start_worker(config, split, worker, workers) for worker in range(workers)]
    try:
        for number in range(-(-count // CHUNK)):
            process = processes[number % workers]
            try:
                yield from pickle.load(process.stdout)
            except EOFError as error:
                status = process.wait()
                raise RuntimeError(
                    f"A process rendering {split} ended early, with status {status}."
                ) from error
    finally:
        for process in processes:
            process.stdout.close()
            process.terminate()
            process.wait()


def available_cores(quota: pathlib.Path = pathlib.Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: those it is bound to, as far as a container's `quota` goes."""
    # macOS and Windows bind to none.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = map(int, quota.read_text().split())
    except (OSError, ValueError):  # none, or "max"
        return cores
    return max(min(cores, -(-allowed // period)), 1)


def start_worker(config: ClipConfig, split: str, worker: int, workers: int) -> subprocess.Popen:
    """Starts a process that writes its chunks to its standard output.

    Not `multiprocessing`: "fork" is unsafe once JAX runs threads, and the other ways import the
    caller's main module again, JAX and all, in every worker.
    """
    job = {
        "config": dataclasses.asdict(config),
        "split": split,
        "worker": worker,
        "workers": workers,
    }
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # Two threads of a matrix library per worker would only get in each other's way.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "jepa_jax.data.emoji_motion.clips", json.dumps(job)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    # Room for a whole chunk, so that a worker renders the next one while this one waits to be read. Linux
    # lets a user without privileges have some sixty pipes so wide, and macOS none: there it waits.
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process


def config_from_json(fields: dict) -> ClipConfig:
    """Returns the config whose `asdict` went through JSON, which turns tuples into lists."""
    style = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields["style"].items()
    }
    return ClipConfig(**{**fields, "style": SceneStyle(**style)})


def main() -> None:
    job = json.loads(sys.argv[1])
    config = config_from_json(job["config"])
    try:
        for chunk in chunks(config, job["split"], job["worker"], job["workers"]):
            pickle.dump(chunk, sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader stopped early. Without this, flushing at exit would fail and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
