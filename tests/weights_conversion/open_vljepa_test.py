"""The published VL-JEPA checkpoint's format, against the same model assembled in PyTorch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the sources are written with PyTorch, of the extra `convert`")

import jax
import transformers

import jepa_jax
from jepa_jax import flags, parts
from tests import tiny
from tests.weights_conversion import folders
from tests.weights_conversion.formats_test import convert, tensors, way_back
from weights_conversion.__main__ import main

# What shapes do not tell of so small a model.
SIZES = [
    "--config.model.x_encoder.heads=3",
    "--config.model.x_encoder.image_size=35",
    "--config.model.predictor.head_size=14",
    "--config.model.predictor.heads=6",
    "--config.model.predictor.kv_heads=2",
    "--config.model.predictor.rope_theta=500.0",
    "--config.model.predictor.rope_scaling.factor=8.0",
    "--config.model.predictor.rope_scaling.original_length=31",
    "--config.model.y_encoder.window=4",
    "--config.model.y_encoder.full_every=3",
    "--config.model.y_encoder.rope_theta_sliding=100.0",
    "--config.model.y_encoder.rope_theta_full=1000.0",
    "--config.model.y_encoder.query_scalar=13.0",
]


@pytest.fixture(scope="module")
def references():
    return folders.vjepa2(), folders.llama(8).model, folders.gemma()


@pytest.fixture(scope="module")
def state(references):
    return folders.open_vljepa(*references)


@pytest.fixture(scope="module")
def part(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_vljepa")
    saved = {"data": {"num_frames": 4, "image_size": 35, "max_query_len": 7, "max_caption_len": 11}}
    # Not those of the hub, which the way back would ask for.
    saved |= {"predictor": {"llama_name": "emoji_motion"}, "y_encoder": {"model_name": "emoji_motion"}}
    wrapped = {f"module.{name}": x for name, x in state.items()}
    torch.save({"model_state_dict": wrapped, "config": saved, "epoch": 3}, folder / "best.pt")
    return convert(folder / "best.pt", folder / "part", *SIZES, "--config.model.compute_dtype=float32")


def masked_mean(states, mask):
    weights = torch.from_numpy(mask)[..., None].float()
    return (states * weights).sum(1) / weights.sum(1)


def assembled(references, state, batch) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and target embedding, unit vectors, from the references' modules."""
    x, p, y = references
    linear = lambda value, name: value @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    mean, std = (torch.tensor(v) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    video = (torch.from_numpy(batch["frames"]).float() / 255 - mean) / std
    with torch.no_grad():
        visual = x(video.permute(0, 1, 4, 2, 3).contiguous(), skip_predictor=True).last_hidden_state
        query = p.embed_tokens(torch.from_numpy(batch["query"]).long())
        joined = torch.cat([linear(visual, "predictor.vis_proj"), query], dim=1)
        valid = np.concatenate([np.ones(visual.shape[:2], bool), batch["query_mask"]], axis=1)
        hidden = np.where(valid[:, None, None, :], 0.0, np.finfo(np.float32).min).astype(np.float32)
        hidden = np.broadcast_to(hidden, (len(valid), 1, valid.shape[1], valid.shape[1])).copy()
        states = p(inputs_embeds=joined, attention_mask=torch.from_numpy(hidden), use_cache=False)
        predicted = linear(masked_mean(states.last_hidden_state, valid), "predictor.out_proj")
        mask = batch["target_mask"]
        states = y(torch.from_numpy(batch["target"]).long(), torch.from_numpy(mask).long())
        target = linear(masked_mean(states.last_hidden_state, mask), "y_encoder.projector")
    unit = lambda v: torch.nn.functional.normalize(v, dim=-1).numpy()
    return unit(predicted), unit(target)


def test_predicts_and_embeds_what_the_assembly_does(part, references, state):
    batch = tiny.batch(3)
    # The reference counts positions on the square of its crop.
    batch["frames"] = tiny.pixels(3, 4, 35, 35, 3)
    model = jepa_jax.load(part)
    module = model.module
    visual = model.encode_video(batch["frames"])
    predicted = jax.jit(lambda m, *a: m.predict(*a))(module, visual, batch["query"], batch["query_mask"])
    target = jax.jit(lambda m, *a: m.embed_text(*a))(module, batch["target"], batch["target_mask"])
    expected = assembled(references, state, batch)
    tiny.assert_close(predicted, expected[0], 2e-5)
    tiny.assert_close(target, expected[1], 2e-5)
    np.testing.assert_allclose(np.exp(module.log_logit_scale[...]), 1 / 0.07, rtol=1e-6)


def test_what_the_file_says_of_the_data_is_kept(part):
    config = parts.open_part(part).config
    assert (config.data.frames, config.data.resize, config.data.length_buckets) == (4, 35, ((7, 11),))
    assert not config.loss.learnable_temperature
    assert config.model.y_encoder.dense_widths == ()


def test_every_part_goes_back_to_its_reference(part, references, state, tmp_path):
    back = way_back(part, tmp_path / "back")
    kinds = ("x_encoder", transformers.VJEPA2Model), ("predictor", transformers.LlamaModel)
    for (name, kind), reference in zip((*kinds, ("y_encoder", transformers.Gemma3TextModel)), references):
        model, report = kind.from_pretrained(back / name, output_loading_info=True)
        assert not any(report.values()), report
        found = model.state_dict()
        for key, x in reference.state_dict().items():
            assert torch.equal(found[key], x), f"{name} {key}"
    heads = {n.partition(":")[2]: x for n, x in tensors(back).items() if n.startswith(":")}
    for name in ("predictor.vis_proj", "predictor.out_proj", "y_encoder.projector"):
        for kind in ("weight", "bias"):
            assert torch.equal(heads[f"{name}.{kind}"], state[f"{name}.{kind}"])
    one = way_back(part, tmp_path / "one", "--part=predictor")
    assert torch.equal(tensors(one)[":norm.weight"], references[1].norm.weight)


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_a_state_dict_bare_or_nested_otherwise(nested, state, part, tmp_path):
    """Verified in float32: as it stands, the configuration computes in bfloat16."""
    torch.save(state if nested is None else {nested: state}, tmp_path / "best.pt")
    verify = ["--verify"] if nested is None else []
    again = convert(tmp_path / "best.pt", tmp_path / "part", *SIZES, *verify)
    assert parts.open_part(again).config.model.compute_dtype == "bfloat16"
    assert parts.open_part(again).checksums == parts.open_part(part).checksums


def test_without_its_x_encoder_it_asks_for_one(state, references, part, tmp_path, capsys):
    torch.save({n: x for n, x in state.items() if not n.startswith("x_encoder.")}, tmp_path / "best.pt")
    arguments = [f"--source={tmp_path / 'best.pt'}", f"--out={tmp_path / 'part'}", *SIZES]
    assert flags.run(main, arguments) == 2
    assert "add --x_encoder=facebook/vjepa2-vitl-fpc64-256" in capsys.readouterr().err
    folder = folders.save(references[0], tmp_path / "vjepa2")
    assert flags.run(main, [*arguments, f"--x_encoder={folder}"]) == 0
    assert parts.open_part(tmp_path / "part").checksums == parts.open_part(part).checksums
