"""This package against the PyTorch assembly on one machine: two processes that take turns.

Each framework has a process of its own, because thread pools that share one wait for work by spinning
and take the cores from each other. Whoever is not at work sits in a read of its pipe; how much
processor time it used there is measured and reported. Each has the environment in which its user starts
it: ours the allocator's settings that training gives itself, PyTorch those of the command's caller.
"""

import contextlib
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from jepa_jax import flags, huge_pages
from jepa_jax.config import Config
from jepa_jax.data import synthetic

PARTS = ("step", "x_encoder", "predictor", "y_encoder")
SIDES = ("jepa_jax", "pytorch")
# Batches that the runs go round.
_BATCHES = 3
# A turn is a loop, as training is one: its first run finds caches and memory that the other side has
# had, and does not count.
_RUNS = 3
# Threads that still wait for work after a turn give up in far less than this.
_PAUSE_SECONDS = 0.05


def check(config: Config) -> None:
    """Raise UsageError where there is nothing to compare."""
    if importlib.util.find_spec("torch") is None:
        raise flags.UsageError("--compare=pytorch needs PyTorch: pip install torch")
    if config.model.compute_dtype != "float32":
        raise flags.UsageError(
            f"--compare=pytorch compares in float32, not {config.model.compute_dtype}: give "
            "--config.model.compute_dtype=float32"
        )
    if config.optim.name != "adamw":
        raise flags.UsageError("--compare=pytorch steps with AdamW: give --config.optim.name=adamw")
    if config.data.features:
        raise flags.UsageError(
            "--compare=pytorch compares the whole model, from frames: give --config.data.features=null"
        )
    if config.micro_batches != 1:
        raise flags.UsageError(
            f"--compare=pytorch takes a batch at once, not in {config.micro_batches} pieces: give "
            "--config.micro_batches=1"
        )


def _ours(config: Config, part: str) -> Callable[[int], float | None]:
    import jax

    from jepa_jax.sharding import check_batch, make_mesh, shard_global_batch
    from jepa_jax.timing import Step, model_part

    mesh = make_mesh(config.fsdp)
    check_batch(config.batch_size, mesh)
    jax.set_mesh(mesh)
    batches = [synthetic.batch(config, seed) for seed in range(_BATCHES)]
    if part == "step":
        step = Step(config, mesh)

        def run_step(i):
            loss = step(shard_global_batch(batches[i % _BATCHES], mesh))["loss"]
            jax.block_until_ready(step.state)
            return float(loss)

        return run_step
    placed = [shard_global_batch(batch, mesh) for batch in batches]
    visual = [model_part("x_encoder", config, mesh)(placed[0])[0]] if part == "predictor" else []
    function = model_part(part, config, mesh)

    def run_part(i):
        jax.block_until_ready(function(placed[i % _BATCHES], *visual))

    return run_part


def _theirs(config: Config, part: str) -> Callable[[int], float | None]:
    from jepa_jax import torch_assembly

    torch_assembly.prepare(config.seed)
    batches = [synthetic.batch(config, seed) for seed in range(_BATCHES)]
    if part == "step":
        step = torch_assembly.Step(torch_assembly.Assembly.from_config(config), config)
        return lambda i: step(batches[i % _BATCHES])
    run = torch_assembly.part(part, config)
    placed = [torch_assembly.to_torch(batch) for batch in batches]
    return lambda i: run(placed[i % _BATCHES])


def _work(side: str, config: Config, part: str, pipe: Connection) -> None:
    """A worker: says "ready", then a turn for every number it is sent, until it is sent None."""
    try:
        run = (_ours if side == "jepa_jax" else _theirs)(config, part)
    except ValueError as error:
        pipe.send(str(error))
        return
    run(0)  # compiles, and fills caches
    run(1)
    time.sleep(_PAUSE_SECONDS)
    pipe.send("ready")
    idle_since = time.process_time()
    while (turn := pipe.recv()) is not None:
        idle = time.process_time() - idle_since
        run(_RUNS * turn)
        begin = time.perf_counter()
        for i in range(1, _RUNS):
            loss = run(_RUNS * turn + i)
        taken = (time.perf_counter() - begin) / (_RUNS - 1)
        time.sleep(_PAUSE_SECONDS)
        idle_since = time.process_time()
        pipe.send((taken, idle, loss))


def compare(config: Config, part: str, turns: int) -> dict:
    """Alternate turns of both sides, this package first.

    Args:
      part: of `PARTS`; "step" is the whole training step from a batch on the host, the others their
        forward pass and, where something in them trains, the backward pass.
      turns: of each side, `_RUNS` runs each, of which the first does not count.

    Returns:
      Per side, a run's `seconds` (median over the turns), `all_seconds` turn by turn, `losses` of each
      turn's last run (None for a part) and `idle`, the share of the other's time in which it used a
      core; `speedup`, the median over the turns of PyTorch's time over ours, and `speedups`.

    Raises:
      UsageError: there is nothing to compare, or a side could not be set up.
    """
    check(config)
    context = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    try:
        for side in SIDES:
            pipes[side], theirs = context.Pipe()
            worker = context.Process(target=_work, args=(side, config, part, theirs), daemon=True)
            with huge_pages.left_out() if side == "pytorch" else contextlib.nullcontext():
                worker.start()
            workers.append(worker)
            theirs.close()  # so that a worker's death ends our read
            # One after the other: whoever compiles has the machine to itself.
            answer = _receive(pipes[side], side)
            if answer != "ready":
                raise flags.UsageError(f"--compare=pytorch: {answer}")
        results = {side: [] for side in SIDES}
        for turn in range(turns):
            for side in SIDES:
                pipes[side].send(turn)
                results[side].append(_receive(pipes[side], side))
        for pipe in pipes.values():
            pipe.send(None)
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.kill()
    return _summary(results)


def _receive(pipe: Connection, side: str):
    try:
        return pipe.recv()
    except EOFError as error:
        raise flags.UsageError(f"the process of {side} died; its own message is above") from error


def _summary(results: dict[str, list[tuple]]) -> dict:
    found = {}
    for side, other in (SIDES, SIDES[::-1]):
        all_seconds = [taken for taken, _, _ in results[side]]
        others = [taken for taken, _, _ in results[other]]
        found[side] = {
            "seconds": statistics.median(all_seconds),
            "all_seconds": all_seconds,
            "losses": [loss for _, _, loss in results[side]],
            "idle": sum(idle for _, idle, _ in results[side]) / (_RUNS * sum(others)),
        }
    ours, theirs = (found[side]["all_seconds"] for side in SIDES)
    speedups = [b / a for a, b in zip(ours, theirs, strict=True)]
    return found | {"speedup": statistics.median(speedups), "speedups": speedups}
