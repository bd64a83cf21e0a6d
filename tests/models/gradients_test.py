"""Loss and gradients of the whole model against the same model assembled in PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is PyTorch's, of the extra `convert`")

from jepa_jax import config as c
from jepa_jax.models.vl_jepa import IMAGENET_MEAN, IMAGENET_STD
from jepa_jax.step import loss_fn
from tests import tiny
from tests.models import reference
from tests.weights_conversion import folders

E, SCALE = 23, 1 / 0.07
ASSEMBLIES = {"gemma": folders.gemma, "bert": folders.bert}


def assembly(kind: str):
    """(our configuration, the references, their projections by our names)."""
    text = tiny.y_encoder(width=54, dense_widths=()) if kind == "gemma" else tiny.bert()
    model = tiny.model(y_encoder=text, predictor=tiny.llama(layers=2))
    config = tiny.run_config(
        model=model,
        optim=c.OptimConfig(factors=c.LearningRateFactors(x_encoder=1.0, token_embedding=1.0, y_encoder=1.0)),
    )
    parts = {
        "x_encoder": folders.vjepa2(),
        "predictor": folders.llama(2).model,
        "y_encoder": ASSEMBLIES[kind](),
    }
    for part in parts.values():
        for module in part.modules():
            if isinstance(module, torch.nn.Embedding):
                module.padding_idx = None  # the reference lets no gradient reach this row
    widths = {"predictor/visual_projection": (66, 54), "predictor/output_projection": (54, E)}
    widths["y_encoder/output_projection"] = (text.width, E)
    heads = {}
    for k, (name, (rows, columns)) in enumerate(widths.items()):
        heads[f"{name}/kernel"] = torch.from_numpy(tiny.normal(rows, columns, seed=k) / np.float32(rows**0.5))
        heads[f"{name}/bias"] = torch.from_numpy(0.3 * tiny.normal(columns, seed=9 + k))
    heads["log_logit_scale"] = torch.tensor(np.log(SCALE), dtype=torch.float32)
    return config, parts, {name: x.requires_grad_() for name, x in heads.items()}


def masked_mean(states, mask):
    weights = torch.from_numpy(mask)[..., None].float()
    return (states * weights).sum(1) / weights.sum(1)


def torch_loss(parts, heads, batch):
    """Bi-directional InfoNCE over the assembled model; equal targets share the label."""
    linear = lambda x, name: x @ heads[f"{name}/kernel"] + heads[f"{name}/bias"]
    frames = torch.from_numpy(batch["frames"]).float() / 255
    frames = (frames - torch.from_numpy(IMAGENET_MEAN)) / torch.from_numpy(IMAGENET_STD)
    video = frames.permute(0, 1, 4, 2, 3).contiguous()
    visual = parts["x_encoder"](video, skip_predictor=True).last_hidden_state
    llama = parts["predictor"]
    query = llama.embed_tokens(torch.from_numpy(batch["query"]).long())
    x = torch.cat([linear(visual, "predictor/visual_projection"), query], dim=1)
    valid = np.concatenate([np.ones(visual.shape[:2], bool), batch["query_mask"]], axis=1)
    hidden = np.where(valid[:, None, None, :], 0.0, np.finfo(np.float32).min).astype(np.float32)
    hidden = np.broadcast_to(hidden, (len(valid), 1, valid.shape[1], valid.shape[1])).copy()
    states = llama(inputs_embeds=x, attention_mask=torch.from_numpy(hidden), use_cache=False)
    predicted = linear(masked_mean(states.last_hidden_state, valid), "predictor/output_projection")
    mask = batch["target_mask"]
    states = parts["y_encoder"](torch.from_numpy(batch["target"]).long(), torch.from_numpy(mask).long())
    target = linear(masked_mean(states.last_hidden_state, mask), "y_encoder/output_projection")
    predicted, target = (torch.nn.functional.normalize(x, dim=-1) for x in (predicted, target))
    logits = heads["log_logit_scale"].exp() * predicted @ target.T
    ids = torch.from_numpy(batch["target_id"])
    labels = (ids[:, None] == ids[None, :]).float()
    labels = labels / labels.sum(dim=1, keepdim=True)
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def by_our_names(parts, heads, of) -> dict[tuple[str, ...], np.ndarray]:
    """`of` each of the assembly's tensors (its value, or its gradient) under our parameters' names."""
    text = reference.bert_weights if hasattr(parts["y_encoder"], "encoder") else reference.gemma_weights
    tables = {
        "x_encoder": reference.x_encoder_weights,
        "predictor": reference.language_model_weights,
        "y_encoder": text,
    }
    found = {(name, *path): x for name, part in parts.items() for path, x in tables[name](part, of).items()}
    return found | {tuple(name.split("/")): of(x).numpy() for name, x in heads.items()}


@pytest.mark.parametrize("kind", ASSEMBLIES)
def test_loss_and_every_gradient_are_the_assembly_s(kind):
    config, parts, heads = assembly(kind)
    batch = tiny.batch(5, config.model)
    # The reference counts positions on the square of its crop.
    batch["frames"] = tiny.pixels(5, 4, 35, 35, 3)
    expected = torch_loss(parts, heads, batch)
    expected.backward()
    weights = by_our_names(parts, heads, lambda x: x.detach())
    gradients = by_our_names(parts, heads, lambda x: torch.zeros_like(x) if x.grad is None else x.grad)

    graphdef, state = tiny.state(config)
    leaves, treedef = jax.tree.flatten(state.trained)
    names = list(tiny.parameters(state.trained))
    assert set(names) == weights.keys(), "every parameter trains"
    assert [x.shape for x in leaves] == [weights[name].shape for name in names]
    trained = jax.tree.unflatten(treedef, [jax.numpy.asarray(weights[name]) for name in names])
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
        if kind == "bert" and (name[0], *name[-2:]) == ("y_encoder", "key", "bias"):
            # Without rotary positions it adds the same to all of a query's logits: no gradient at all.
            size = np.abs(gradients[(*name[:-2], "query", "bias")]).max()
            assert max(np.abs(grad).max(), np.abs(gradients[name]).max()) < 1e-5 * size
            continue
        error = tiny.relative_error(grad, gradients[name])
        assert error <= 1e-4, f"{name}: {error:.1e}"
