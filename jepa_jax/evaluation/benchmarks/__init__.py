"""The paper's benchmarks by name: each reads the official annotation files and scores S^_Y."""

import dataclasses
import pathlib
from collections.abc import Callable

from jepa_jax.evaluation.benchmark import Benchmark
from jepa_jax.evaluation.benchmarks import (
    activitynet,
    coin,
    crosstask,
    described,
    didemo,
    egoexo4d,
    epic_kitchens,
    gqa,
    hard_negatives,
    kinetics,
    msr_vtt,
    msvd,
    pope,
    ssv2,
    tallyqa,
    world_prediction,
    youcook2,
)


@dataclasses.dataclass(frozen=True)
class Task:
    """How a benchmark is read.

    Attributes:
      read: (folder or file of the annotations, split) -> Benchmark; raises UsageError.
      splits: those there are, the paper's first.
    """

    read: Callable[[pathlib.Path, str], Benchmark]
    splits: tuple[str, ...]


BENCHMARKS: dict[str, Task] = {
    "ssv2": Task(ssv2.read, ssv2.SPLITS),
    "epic_kitchens_100": Task(epic_kitchens.read, epic_kitchens.SPLITS),
    "egoexo4d": Task(egoexo4d.read, egoexo4d.SPLITS),
    "kinetics_400": Task(kinetics.read, kinetics.SPLITS),
    "coin_sr": Task(coin.read_steps, coin.SPLITS),
    "coin_tr": Task(coin.read_tasks, coin.SPLITS),
    "crosstask_sr": Task(crosstask.read_steps, crosstask.SPLITS),
    "crosstask_tr": Task(crosstask.read_tasks, crosstask.SPLITS),
    "msr_vtt": Task(msr_vtt.read, msr_vtt.SPLITS),
    "activitynet": Task(activitynet.read, activitynet.SPLITS),
    "didemo": Task(didemo.read, didemo.SPLITS),
    "msvd": Task(msvd.read, msvd.SPLITS),
    "youcook2": Task(youcook2.read, youcook2.SPLITS),
    "pvd_bench": Task(described.read_pvd_bench, described.SPLITS),
    "dream_1k": Task(described.read_dream_1k, described.SPLITS),
    "vdc_1k": Task(described.read_vdc_1k, described.SPLITS),
    "gqa": Task(gqa.read, gqa.SPLITS),
    "tallyqa": Task(tallyqa.read, tallyqa.SPLITS),
    "pope": Task(pope.read, pope.SPLITS),
    "popev2": Task(pope.read_v2, pope.V2_SPLITS),
    "sugarcrepe_pp": Task(hard_negatives.read_sugarcrepe_pp, hard_negatives.SPLITS),
    "visla": Task(hard_negatives.read_visla, hard_negatives.SPLITS),
    "world_prediction_wm": Task(world_prediction.read, world_prediction.SPLITS),
    "epic_kitchens_100_anticipation": Task(epic_kitchens.read_anticipation, epic_kitchens.SPLITS),
    "coin_next_step": Task(coin.read_next_step, coin.SPLITS),
    "msvd_captions": Task(msvd.read_captioning, msvd.SPLITS),
    "msr_vtt_captions": Task(msr_vtt.read_captioning, msr_vtt.CAPTION_SPLITS),
    "youcook2_captions": Task(youcook2.read_captioning, youcook2.SPLITS),
}
