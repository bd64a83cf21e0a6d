"""A run that starts from converted parts, a converted model or an earlier run."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jepa_jax import config as c
from jepa_jax import parts
from jepa_jax.checkpoint import Checkpointer
from jepa_jax.flags import UsageError, config_to_json
from jepa_jax.initial import open_initial
from jepa_jax.sharding import make_mesh
from jepa_jax.state import abstract_state, draw_state, to_items
from tests import tiny
from tests.parts_test import weights, write

FROZEN = c.OptimConfig(factors=c.LearningRateFactors(x_encoder=0.0, token_embedding=0.0))


def run(init: c.InitConfig, **changes) -> c.Config:
    return tiny.run_config(optim=FROZEN, init=init, **changes)


@functools.cache
def draw(config: c.Config, fsdp: int):
    """The state that a run draws, whatever it is to start from: compiled once."""
    mesh = make_mesh(fsdp)
    with jax.set_mesh(mesh):
        return draw_state(config, jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh)[1]))


def start(config: c.Config, fsdp: int = 1) -> tuple[dict, dict]:
    """The parameters that a new run draws, and those it begins with."""
    mesh = make_mesh(fsdp)
    initial = open_initial(config, mesh)
    drawn = draw(dataclasses.replace(config, init=c.InitConfig()), fsdp)
    with jax.set_mesh(mesh):
        state = initial.apply(drawn, "these")
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(drawn), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
    return tuple(
        {n: np.asarray(x) for n, x in parts.flatten(to_items(s)["params"]).items()} for s in (drawn, state)
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each part of the tiny model."""
    root, model = tmp_path_factory.mktemp("parts"), tiny.model()
    found = {}
    for name in ("x_encoder", "predictor", "y_encoder"):
        section = getattr(model, name)
        found[name] = (write(root / name, weights(section, name), name, section), weights(section, name))
    return found


@pytest.mark.parametrize("fsdp", [1, 2])
@pytest.mark.parametrize("named", [("x_encoder", "predictor", "y_encoder"), ("predictor",), ("y_encoder",)])
def test_named_parts_are_in_their_places_and_the_rest_is_drawn(named, fsdp, folders):
    drawn, params = start(run(c.InitConfig(**{name: str(folders[name][0]) for name in named})), fsdp)
    taken = {f"{name}/{path}": x for name in named for path, x in folders[name][1].items()}
    for path, x in params.items():
        np.testing.assert_array_equal(x, taken.get(path, drawn[path]), err_msg=path)
    new = {"predictor/visual_projection/kernel", "y_encoder/output_projection/kernel", "log_logit_scale"}
    assert new <= params.keys() - taken.keys()
    assert taken.keys() <= params.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"predictor": tiny.llama(width=60)}, "predictor.width is 54 there and 60 in this run"),
        (
            {"predictor": tiny.llama(rope_theta=7.0)},
            "predictor.rope_theta is 500.0 there and 7.0 in this run",
        ),
        ({"predictor": tiny.llama(rope_scaling=None)}, "predictor.rope_scaling"),
        ({"predictor": tiny.llama(layers=1)}, "predictor.layers is 2 there and 1 in this run"),
    ],
)
def test_another_model_is_refused_with_the_fields_that_differ(changes, words, folders):
    config = run(c.InitConfig(predictor=str(folders["predictor"][0])), model=tiny.model(**changes))
    with pytest.raises(ValueError, match=words):
        open_initial(config, make_mesh(1))


def test_what_no_parameter_depends_on_may_differ(folders):
    model = tiny.model(
        x_encoder=tiny.x_encoder(image_size=70),
        predictor=tiny.llama(causal=True),
        compute_dtype="bfloat16",
        remat="layer",
        scan_layers=True,
    )
    named = {name: str(folders[name][0]) for name in ("x_encoder", "predictor")}
    open_initial(run(c.InitConfig(**named), model=model), make_mesh(1))


def test_dense_heads_that_the_run_switches_off_stay_behind(folders):
    model = tiny.model(y_encoder=tiny.y_encoder(dense_widths=()))
    _, params = start(run(c.InitConfig(y_encoder=str(folders["y_encoder"][0])), model=model))
    assert not [path for path in params if "dense" in path]
    np.testing.assert_array_equal(params["y_encoder/norm/scale"], folders["y_encoder"][1]["norm/scale"])


def test_a_part_in_another_s_place_is_refused(folders):
    config = run(c.InitConfig(x_encoder=str(folders["predictor"][0])))
    with pytest.raises(ValueError, match="holds a predictor: convert with --part=x_encoder"):
        open_initial(config, make_mesh(1))
    config = run(c.InitConfig(model=str(folders["predictor"][0])))
    with pytest.raises(ValueError, match=r"name it as init\.predictor"):
        open_initial(config, make_mesh(1))


def test_a_folder_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no converted weights"):
        open_initial(run(c.InitConfig(x_encoder=str(tmp_path))), make_mesh(1))
    with pytest.raises(UsageError, match="neither a work directory of a run"):
        open_initial(run(c.InitConfig(model=str(tmp_path))), make_mesh(1))


@pytest.mark.parametrize(
    ("learnable", "largest", "expected"),
    [(True, 100.0, 3.0), (True, 15.0, np.log(15)), (False, 100.0, np.log(1 / 0.07))],
)
def test_a_fixed_temperature_is_the_run_s_own_and_a_learned_one_within_its_bound(
    learnable, largest, expected, tmp_path
):
    theirs = earlier_run() | {"log_logit_scale": np.float32(3.0)}
    folder = write(tmp_path / "whole", theirs, "vl_jepa", tiny.run_config())
    loss = c.LossConfig(learnable_temperature=learnable, max_logit_scale=largest)
    config = run(c.InitConfig(model=str(folder)), loss=loss)
    state = open_initial(config, make_mesh(1)).apply(tiny.state(config)[1])
    params = to_items(state)["params"]
    np.testing.assert_allclose(params["log_logit_scale"][...], expected, rtol=1e-6)


def test_a_run_without_the_checkpoint_is_refused_before_anything_is_read(tmp_path):
    """What comes out later finds the new run's work directory taken by a config that cannot start."""
    (tmp_path / "config.json").write_text(config_to_json(tiny.run_config()))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        open_initial(run(c.InitConfig(model=str(tmp_path))), make_mesh(1))
    for step in (3, 20):
        (tmp_path / "checkpoints" / str(step)).mkdir()
    with pytest.raises(UsageError, match="has no checkpoint of step 4: there are 3, 20"):
        open_initial(run(c.InitConfig(model=str(tmp_path / "checkpoints" / "4"))), make_mesh(1))


def test_a_whole_model_and_its_parts_together_are_refused():
    with pytest.raises(ValueError, match="name one or the other"):
        c.InitConfig(model="a", predictor="b")


@functools.cache
def earlier_run() -> dict[str, np.ndarray]:
    state = tiny.state(tiny.run_config())[1]
    return {n: np.asarray(x) for n, x in parts.flatten(to_items(state)["params"]).items()}


def assert_starts_from(params: dict, expected: dict) -> None:
    assert params.keys() == expected.keys()
    for path, x in params.items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)


def test_a_whole_converted_model_gives_everything(tmp_path):
    folder = write(tmp_path / "whole", earlier_run(), "vl_jepa", tiny.run_config())
    assert_starts_from(start(run(c.InitConfig(model=str(folder))))[1], earlier_run())
    with pytest.raises(ValueError, match=r"holds a vl_jepa: name it as init\.model"):
        open_initial(run(c.InitConfig(x_encoder=str(folder))), make_mesh(1))


@pytest.mark.parametrize(
    ("step", "position", "warnings"),
    [(None, {}, 0), (None, {"tokenizers": "these"}, 0), (3, {"tokenizers": "others"}, 1)],
)
def test_an_earlier_run_gives_everything(step, position, warnings, tmp_path, caplog):
    """As the next stage of training takes it: another split into trained and frozen, and perhaps another
    tokenizer in the folder of the same name."""
    before = tiny.run_config()
    (tmp_path / "config.json").write_text(config_to_json(before))
    checkpointer = Checkpointer(tmp_path / "checkpoints", before.checkpoint)
    items = to_items(tiny.state(before)[1])
    checkpointer.save(3, items, position, {"loss": 1.0, "recall_at_1": 0.5})
    checkpointer.close()
    where = tmp_path if step is None else tmp_path / "checkpoints" / str(step)
    assert_starts_from(start(run(c.InitConfig(model=str(where))), 2)[1], earlier_run())
    told = [words for words in caplog.messages if words.startswith("a tokenizer or its library")]
    assert len(told) == warnings
    other = dataclasses.replace(tiny.model(), embedding_size=29)
    with pytest.raises(ValueError, match="embedding_size is 23 there and 29 in this run"):
        open_initial(run(c.InitConfig(model=str(where)), model=other), make_mesh(1))


def test_the_identity_is_another_where_an_array_is(folders, tmp_path):
    """Hosts compare it: each may have files of its own."""
    section = tiny.model().predictor
    other = {path: x + (path == "llama/norm/scale") for path, x in folders["predictor"][1].items()}
    write(tmp_path / "other", other, "predictor", section)
    found = [
        open_initial(run(c.InitConfig(predictor=str(folder))), make_mesh(1)).identity
        for folder in (folders["predictor"][0], tmp_path / "other")
    ]
    assert found[0] != found[1]

    config = tiny.run_config()
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "config.json").write_text(config_to_json(config))
        checkpointer = Checkpointer(folder / "checkpoints", config.checkpoint)
        params = {"scale": jax.numpy.full(3, seed)}
        checkpointer.save(3, {"params": params, "training": params}, {}, {"loss": 1.0})
        checkpointer.close()
    of_run = lambda where: open_initial(run(c.InitConfig(model=str(where))), make_mesh(1)).identity
    assert of_run(tmp_path / "0") == of_run(tmp_path / "0" / "checkpoints" / "3")
    assert of_run(tmp_path / "0") != of_run(tmp_path / "1")
