"""Products of embeddings are float32's where the platform's default is less."""

import jax
import numpy as np
import pytest

from jepa_jax import config as c
from jepa_jax.losses import objective
from jepa_jax.losses.products import product
from tests import tiny

B, E = 24, 5


def test_it_is_an_einsum_of_any_type_in_float32():
    x, y = tiny.normal(B, E, seed=1), tiny.normal(B, E, seed=2)
    found = product("BE,CE->BC", x.astype(jax.numpy.bfloat16), y.astype(jax.numpy.bfloat16))
    assert found.dtype == np.float32
    tiny.assert_close(product("BE,CE->BC", x, y), x.astype(np.float64) @ y.T.astype(np.float64), 1e-6)


@pytest.mark.parametrize("name", ["info_nce", "sigmoid", "vicreg", "sigreg"])
def test_every_objective_uses_nothing_else(name):
    """A TPU's default rounds the factors to bfloat16, forward and backward, unless each product says
    otherwise."""
    config, ids = c.LossConfig(objective=name, chunk=7), np.arange(B, dtype=np.int32)

    def loss(predicted, target):
        return objective(predicted, target, ids, 4.0, jax.random.key(3), config)[0]

    pair = tiny.normal(B, E, seed=1), tiny.normal(B, E, seed=2)
    with jax.default_matmul_precision("default"):
        program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*pair)
    products = [e for e in tiny.operations(program.jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) >= 3
    assert {e.params["precision"] for e in products} == {(jax.lax.Precision.HIGHEST,) * 2}
