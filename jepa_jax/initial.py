"""Where a new run's parameters come from: converted parts, a converted model, or an earlier run."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jepa_jax import parts
from jepa_jax.checkpoint import saved_identity
from jepa_jax.config import Config, InitConfig
from jepa_jax.flags import flatten
from jepa_jax.places import place
from jepa_jax.runs import compare_tokenizers, find_run, restore_run, run_config, saved_steps
from jepa_jax.state import TrainState, abstract_state, to_items

_PARTS = ("x_encoder", "predictor", "y_encoder")
# What a run may choose otherwise than the weights it starts from: no parameter depends on it.
_FREE = {
    "x_encoder.image_size",
    "predictor.causal",
    "compute_dtype",
    "remat",
    "scan_layers",
}


def check_same(where: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise ValueError, with what differs, unless the configuration found at `where` is a run's own."""
    differing = [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} in this run"
        for name in sorted(theirs.keys() | ours.keys())
        if name not in _FREE and theirs.get(name) != ours.get(name)
    ]
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise ValueError(f"{where} is another model: {'; '.join(differing[:3])}{more}")


@dataclasses.dataclass(frozen=True)
class Initial:
    """What `config.init` names, opened and found to fit; nothing is read before `apply`."""

    config: Config
    opened: Mapping[str, parts.Part]

    @property
    def identity(self) -> str:
        """A text that is another where any array that is read may be. Each host may have files of its own:
        with others on one, each would train a model of its own."""
        known = {field: part.identity for field, part in self.opened.items()}
        if self.config.init.model and not self.opened:
            workdir, step = find_run(place(self.config.init.model))
            steps = saved_steps(workdir) if step is None else [step]
            known = {str(step): saved_identity(workdir / "checkpoints", step) for step in steps}
        return str(known)

    def apply(self, state: TrainState, tokenizers: str | None = None) -> TrainState:
        """The state of a new run with the parameters that `config.init` names in their places, a learned
        temperature within the run's own bound.

        Args:
          tokenizers: `identity_of` the new run's, where it has texts. An earlier run that had others is told
            of, not refused.

        Raises:
          DamagedCheckpointError, UsageError: the arrays cannot be read or were changed.
        """
        params = parts.flatten(to_items(state)["params"])
        places = {name: x.sharding for name, x in params.items()}
        new: dict[str, jax.Array] = {}
        for field, part in self.opened.items():
            prefix = "" if field == "model" else f"{field}/"
            # Dense heads that the run switches off are not read into it.
            wanted = {name for name in part.shapes if prefix + name in places}
            found = part.select(wanted).read({name: places[prefix + name] for name in wanted})
            new |= {prefix + name: x for name, x in found.items()}
        if self.config.init.model and not self.opened:
            workdir, step = find_run(place(self.config.init.model))
            template = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                to_items(state)["params"],
            )
            _, params, known = restore_run(workdir, step, run_config(workdir), template)
            if tokenizers is not None:
                compare_tokenizers(known.get("tokenizers"), tokenizers, workdir)
            new = parts.flatten(params)
        if not self.config.loss.learnable_temperature:
            # A fixed one is the configuration's, not where an earlier stage's ended.
            new.pop("log_logit_scale", None)
        if (scale := new.get("log_logit_scale")) is not None:
            new["log_logit_scale"] = jnp.minimum(scale, math.log(self.config.loss.max_logit_scale))

        def replaced(tree):
            names = list(parts.flatten(tree))
            leaves, treedef = jax.tree.flatten(tree)
            leaves = [
                new[name].astype(x.dtype) if name in new else x for name, x in zip(names, leaves, strict=True)
            ]
            return jax.tree.unflatten(treedef, leaves)

        return dataclasses.replace(state, trained=replaced(state.trained), frozen=replaced(state.frozen))


def open_initial(config: Config, mesh: jax.sharding.Mesh) -> Initial:
    """Open what `config.init` names and check that it is this run's model.

    Raises:
      ValueError: it is not there, of another kind, or of another shape; says which fields differ.
    """
    opened: dict[str, parts.Part] = {}
    init, model = config.init, config.model
    if init == InitConfig():
        return Initial(config, opened)  # nothing to compare: the shapes need not be traced
    params = parts.flatten(to_items(abstract_state(config, mesh)[1])["params"])
    for field in _PARTS:
        directory = getattr(init, field)
        if directory is None:
            continue
        part = parts.open_part(directory)
        if part.name != field:
            hint = "name it as init.model" if part.name == "vl_jepa" else f"convert with --part={field}"
            raise ValueError(f"init.{field}={directory!r} holds a {part.name}: {hint}")
        theirs, ours = (
            {f"{field}.{name}": value for name, value in flatten(config).items()}
            for config in (part.config, getattr(model, field))
        )
        if not ours.get("y_encoder.dense_widths", True):
            theirs["y_encoder.dense_widths"] = ()  # the run switches the Dense heads off
        check_same(f"init.{field}={directory!r}", theirs, ours)
        inside = [n.removeprefix(f"{field}/") for n in params if n.startswith(f"{field}/")]
        missing = [n for n in inside if n not in part.shapes and "_projection/" not in n]
        if missing:
            raise ValueError(f"init.{field}={directory!r} lacks {missing[0]}: convert it again")
        opened[field] = part
    if init.model is not None:
        if parts.is_part(init.model):
            part = parts.open_part(init.model)
            if part.name != "vl_jepa":
                raise ValueError(
                    f"init.model={init.model!r} holds a {part.name}: name it as init.{part.name}"
                )
            opened["model"] = part
            theirs = part.config.model
        else:
            theirs = run_config(find_run(place(init.model))[0]).model
        check_same(f"init.model={init.model!r}", flatten(theirs), flatten(model))
    return Initial(config, opened)
