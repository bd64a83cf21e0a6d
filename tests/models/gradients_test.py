"""Loss and gradients of the whole model against the same model assembled in PyTorch."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is PyTorch's, of the extra `convert`")

from jepa_jax import config as c
from jepa_jax.step import loss_fn, train_step
from jepa_jax.torch_assembly import Assembly, Step, make_x_encoder, make_y_encoder, to_torch
from tests import tiny
from tests.models import reference
from tests.weights_conversion import folders
from weights_conversion import bert

E = 23
ASSEMBLIES = {"gemma": folders.gemma, "bert": folders.bert, "bert, first token": folders.bert}


def assembly(kind: str) -> tuple[c.Config, Assembly]:
    """Our configuration, and the references put together with random weights."""
    pool = "first" if "first" in kind else "mean"
    text = tiny.y_encoder(width=54, dense_widths=()) if kind == "gemma" else tiny.bert(pool=pool)
    model = tiny.model(y_encoder=text, predictor=tiny.llama(layers=2))
    config = tiny.run_config(
        model=model,
        optim=c.OptimConfig(factors=c.LearningRateFactors(x_encoder=1.0, token_embedding=1.0, y_encoder=1.0)),
    )
    torch.manual_seed(0)
    parts = folders.vjepa2(), folders.llama(2).model, ASSEMBLIES[kind]()
    return config, Assembly(*parts, embedding_size=E, first_token=pool == "first")


def by_our_names(assembly: Assembly, of) -> dict[tuple[str, ...], np.ndarray]:
    """`of` each of the assembly's tensors (its value, or its gradient) under our parameters' names."""
    text = reference.bert_weights if hasattr(assembly.y_encoder, "encoder") else reference.gemma_weights
    tables = {
        "x_encoder": reference.x_encoder_weights,
        "predictor": reference.language_model_weights,
        "y_encoder": text,
    }
    found = {
        (name, *path): x
        for name, table in tables.items()
        for path, x in table(getattr(assembly, name), of).items()
    }
    for name, projection in (
        (("predictor", "visual_projection"), assembly.visual_projection),
        (("predictor", "output_projection"), assembly.output_projection),
        (("y_encoder", "output_projection"), assembly.text_projection),
    ):
        found |= {
            (*name, "kernel"): of(projection.weight).T.numpy(),
            (*name, "bias"): of(projection.bias).numpy(),
        }
    return found | {("log_logit_scale",): of(assembly.log_logit_scale).numpy()}


def with_weights(state, weights: dict[tuple[str, ...], np.ndarray]):
    """An NNX state of these parameters and no others."""
    leaves, treedef = jax.tree.flatten(state)
    names = list(tiny.parameters(state))
    assert set(names) == weights.keys(), "every parameter trains"
    assert [x.shape for x in leaves] == [weights[name].shape for name in names]
    return jax.tree.unflatten(treedef, [jax.numpy.asarray(weights[name]) for name in names])


def batch_for(config: c.Config) -> dict[str, np.ndarray]:
    batch = tiny.batch(5, config.model)
    # The reference counts positions on the square of its crop.
    batch["frames"] = tiny.pixels(5, 4, 35, 35, 3)
    return batch


@pytest.mark.parametrize("kind", ASSEMBLIES)
def test_loss_and_every_gradient_are_the_assembly_s(kind):
    config, reference_model = assembly(kind)
    batch = batch_for(config)
    expected = reference_model(to_torch(batch))
    expected.backward()
    weights = by_our_names(reference_model, lambda x: x.detach())
    gradients = by_our_names(reference_model, lambda x: torch.zeros_like(x) if x.grad is None else x.grad)

    graphdef, state = tiny.state(config)
    trained = with_weights(state.trained, weights)
    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(
            jax.value_and_grad(lambda t, b: loss_fn(t, state.frozen, graphdef, b, state.key, config)[0])
        )
        loss, grads = gradient(trained, batch)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for name, grad in tiny.parameters(grads).items():
        if not np.any(gradients[name]):
            assert np.abs(grad).max() < 1e-7, name
            continue
        if kind != "gemma" and (name[0], *name[-2:]) == ("y_encoder", "key", "bias"):
            # Without rotary positions it adds the same to all of a query's logits: no gradient at all.
            size = np.abs(gradients[(*name[:-2], "query", "bias")]).max()
            assert max(np.abs(grad).max(), np.abs(gradients[name]).max()) < 1e-5 * size
            continue
        error = tiny.relative_error(grad, gradients[name])
        assert error <= 1e-4, f"{name}: {error:.1e}"


def test_three_steps_are_the_assembly_s():
    """What the benchmark compares does the same work: the losses of steps that build on one another."""
    config, reference_model = assembly("gemma")
    factors = c.LearningRateFactors(x_encoder=1.0, token_embedding=1.0, y_encoder=0.5, predictor=0.7)
    # Large steps, a clipped gradient and decay, so that each of them tells.
    optim = c.OptimConfig(
        learning_rate=0.01, eps=1e-3, weight_decay=0.3, clip_norm=0.5, schedule="constant", factors=factors
    )
    config = dataclasses.replace(config, optim=optim)
    batch = batch_for(config)
    weights = copy.deepcopy(by_our_names(reference_model, lambda x: x.detach()))
    step = Step(reference_model, config)
    expected = [step(batch) for _ in range(4)]

    graphdef, state = tiny.state(config)
    state = dataclasses.replace(state, trained=with_weights(state.trained, weights))
    run = jax.jit(train_step, static_argnames=("graphdef", "config"))
    losses = []
    with jax.default_matmul_precision("highest"):
        for _ in range(4):
            state, metrics = run(state, batch, graphdef=graphdef, config=config)
            losses.append(metrics["loss"])
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ASSEMBLIES)
def test_the_assembly_is_built_from_our_configuration(kind):
    config, _ = assembly(kind)
    built = Assembly.from_config(config)
    assert reference.from_vjepa2(built.x_encoder.config) == config.model.x_encoder
    assert reference.from_llama(built.predictor.config) == config.model.predictor
    assert built.first_token == ("first" in kind)
    pool = {} if kind == "gemma" else {"pool": config.model.y_encoder.pool}
    text = reference.from_gemma if kind == "gemma" else bert.config_from
    assert text(built.y_encoder.config, **pool) == config.model.y_encoder
    for part in (built.x_encoder, built.predictor, built.y_encoder):
        assert part.config._attn_implementation == "sdpa"


def test_the_assembly_has_every_width_of_an_mlp():
    """The reference has it from a ratio, rounded down: of 112 and 976 it is 975 by the plain quotient."""
    config = tiny.x_encoder(width=112, heads=2, mlp_width=976)
    (up,) = {layer.mlp.fc1.out_features for layer in make_x_encoder(config).encoder.layer}
    assert up == 976


def test_a_scale_that_the_reference_would_round_is_refused():
    with pytest.raises(ValueError, match=r"query_scalar, not 0\.5"):
        make_y_encoder(tiny.y_encoder(query_scalar=0.5))


def test_what_a_configuration_freezes_the_assembly_freezes():
    config, _ = assembly("gemma")
    config = dataclasses.replace(config, optim=c.OptimConfig())
    built = Assembly.from_config(config)
    built(to_torch(batch_for(config))).backward()
    learned = {name.split(".")[0] for name, x in built.named_parameters() if x.grad is not None}
    assert learned == {
        "predictor",
        "y_encoder",
        "visual_projection",
        "output_projection",
        "text_projection",
        "log_logit_scale",
    }
    assert built.predictor.embed_tokens.weight.grad is None
    assert not built.encode_frames(to_torch(batch_for(config))["frames"]).requires_grad
