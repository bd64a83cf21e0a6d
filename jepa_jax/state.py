"""The state of a run, on any mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jepa_jax.config import Config
from jepa_jax.models.vl_jepa import VLJEPA, is_trained
from jepa_jax.optim import make_optimizer
from jepa_jax.sharding import parameter_shardings


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "key", "trained", "frozen", "optimizer"],
    meta_fields=[],
)
@dataclasses.dataclass
class TrainState:
    """All that a run is. `optimizer` covers `trained` only: a frozen part has no moments.

    Attributes:
      step: scalar int32, steps done.
      key: for objectives that draw random numbers; the step is folded in, so it never changes.
      trained, frozen: NNX states of the parameters.
      optimizer: the optax state.
    """

    step: jax.Array
    key: jax.Array
    trained: nnx.State
    frozen: nnx.State
    optimizer: Any


def init_state(config: Config) -> tuple[nnx.GraphDef, TrainState]:
    """A new model and its state from the seed. Traceable, so that `jit` can place it on a mesh."""
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    model = VLJEPA(config.model, config.loss, rngs=nnx.Rngs(init_key))
    graphdef, params = nnx.split(model)
    trained, frozen = _split(params, config)
    optimizer = make_optimizer(config.optim, config.steps).init(trained)
    return graphdef, TrainState(jnp.zeros((), jnp.int32), step_key, trained, frozen, optimizer)


def draw_state(config: Config, shardings: TrainState) -> TrainState:
    """`init_state`'s state in its places, to the last bit the same whoever draws it; without an optimizer
    where `shardings` has none."""

    def draw() -> TrainState:
        state = init_state(config)[1]
        return state if shardings.optimizer is not None else dataclasses.replace(state, optimizer=None)

    # On a CPU, code that runs once is not worth LLVM's optimisations: they take longer.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(draw, out_shardings=shardings, compiler_options=quick)()


def _split(params: nnx.State, config: Config) -> tuple[nnx.State, nnx.State]:
    return nnx.split_state(params, is_trained(config.optim.factors, config.loss), ...)


def abstract_state(config: Config, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState]:
    """The model's structure, and the state's shapes with their places on the mesh."""
    graphdef, shapes = jax.eval_shape(functools.partial(init_state, config))
    shardings = parameter_shardings(shapes, mesh)
    return graphdef, jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def to_items(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds: `params`, all of them together, whichever were frozen, so that
    another use can split them otherwise; and `training`, what only going on needs."""
    return {
        "params": nnx.merge_state(state.trained, state.frozen),
        "training": {
            "step": state.step,
            "key": state.key,
            "optimizer": state.optimizer,
        },
    }


def from_items(items: dict[str, Any], config: Config) -> TrainState:
    """The inverse of `to_items`."""
    trained, frozen = _split(items["params"], config)
    training = items["training"]
    return TrainState(training["step"], training["key"], trained, frozen, training["optimizer"])
