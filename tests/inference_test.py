"""A model for use: what it takes, what it refuses, and that batching changes nothing."""

import dataclasses
import tracemalloc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from PIL import Image

from jepa_jax import inference, loop, part_models
from jepa_jax.config import DataConfig, EvalConfig
from jepa_jax.data.decode import read_frames
from jepa_jax.data.records import Limits, Media
from jepa_jax.data.tokenizer import identity_of
from jepa_jax.evaluate import untrained_twin
from jepa_jax.evaluation import retrieval
from jepa_jax.flags import UsageError
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.part_models import padded_rows
from tests import tiny
from tests.tiny_config import config as run_config

CLIPS = 7


@pytest.fixture(scope="module")
def parts():
    from jepa_jax.data.tokenizer import load_tokenizers

    config = dataclasses.replace(
        run_config, data=DataConfig(length_buckets=((16, 16),)), eval=EvalConfig(batch_size=3)
    )
    model = tiny.filled(lambda: VLJEPA(config.model, config.loss, rngs=nnx.Rngs(0)))
    return model, config, load_tokenizers(config)


@pytest.fixture(scope="module")
def model(parts):
    return inference.Model(*parts)


@pytest.fixture(scope="module")
def frames():
    return tiny.pixels(CLIPS, 4, 32, 32, 3)


def test_a_file_is_read_as_training_reads_it(model, tmp_path, monkeypatch):
    """A clip of its own, one span of it, and a picture, in the home directory too."""
    clip = [Image.fromarray(x) for x in tiny.pixels(8, 40, 48, 3)]
    options = {"save_all": True, "append_images": clip[1:], "duration": 500, "lossless": True}
    clip[0].save(tmp_path / "clip.webp", **options)
    clip[0].save(tmp_path / "still.png")
    config = model.config
    size = {"resize": config.data.resize, "crop": config.model.x_encoder.image_size}
    for span in ((None, None), (1.0, 3.0)):
        media = Media(content=epath.Path(tmp_path / "clip.webp"), kind="auto", start=span[0], end=span[1])
        trained_on = read_frames(media, config.data.frames, **size, name="", limits=Limits.of(config.data))
        np.testing.assert_array_equal(model.read(tmp_path / "clip.webp", *span), trained_on[None])
    video = model.read(str(tmp_path / "still.png"))
    assert video.shape == (1, 1, 32, 32, 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(model.read("~/still.png"), video)
    assert model.answer(video, "is there a dog?", ["yes", "no"])[0] in ("yes", "no")
    with pytest.raises(OSError, match="gone"):
        model.read("gone.mp4")


@pytest.mark.parametrize(("other", "warnings"), [(False, 0), (True, 1)])
def test_another_tokenizer_than_in_training_is_said(other, warnings, parts, caplog):
    net, config, tokenizers = parts
    known = identity_of(tokenizers)
    model = inference.Model(net, config, learned_with=known[::-1] if other else known)
    assert model.embed_text(["a dog"]).shape == (1, config.model.embedding_size)
    assert len(caplog.messages) == warnings


@pytest.mark.parametrize("only", [None, "", "which thing?"])
def test_what_is_not_said_is_what_the_run_asked(only, parts, frames):
    """Under a query that it has never seen, a model answers far worse."""
    net, config, tokenizers = parts
    model = inference.Model(net, config, tokenizers, only_query=only)
    for one in (model, model.with_weights(net)):
        name, caption = ("what is it?", "describe the clip") if only is None else (only, only)
        found, expected = (one.classify(frames, ["a", "b"], *query) for query in ([], [name]))
        np.testing.assert_array_equal(found, expected)
        found, expected = (one.embed_image(frames[:, 0], *query) for query in ([], [caption]))
        np.testing.assert_array_equal(found, expected)


def test_the_batch_size_changes_nothing(parts, model, frames):
    net, config, tokenizers = parts
    whole = dataclasses.replace(config, eval=EvalConfig(batch_size=CLIPS))
    other = inference.Model(net, whole, tokenizers)
    queries = [f"is there a dog{'?' * (i % 2)}" for i in range(CLIPS)]
    first, second = (m.embed_video(frames, queries) for m in (model, other))
    assert first.shape == (CLIPS, config.model.embedding_size)
    tiny.assert_close(first, second, 1e-5)
    tiny.assert_close(model.embed_text(queries), other.embed_text(queries), 1e-5)


def test_embeddings_are_unit_vectors_of_their_own_input(model, frames):
    embedded = model.embed_video(frames, "what is it?")
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)
    turned = model.embed_video(frames[::-1], "what is it?")
    tiny.assert_close(turned[::-1], embedded, 1e-5)
    assert np.abs(model.embed_video(frames, "what does it do?") - embedded).max() > 1e-3


def test_one_encoding_serves_many_queries(model, frames, tmp_path):
    visual = model.encode_video(frames)
    as_bfloat16 = visual.astype(jnp.bfloat16)
    np.save(tmp_path / "visual.npy", as_bfloat16)  # which forgets what they are
    kept = np.load(tmp_path / "visual.npy")
    np.testing.assert_array_equal(model.predict(kept, "count"), model.predict(as_bfloat16, "count"))
    tiny.assert_close(
        model.predict(visual, ["count the things"] * CLIPS),
        model.embed_video(frames, "count the things"),
        1e-6,
    )


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_visual_tokens_that_are_not_finite_are_refused(model, frames, dtype, value):
    visual = np.array(model.encode_video(frames), dtype)
    visual[-1, 1, 2] = value
    with pytest.raises(ValueError, match="visual tokens must be finite"):
        model.predict(visual, "count")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((4, 32, 32, 3), np.uint8),
        ((1, 4, 32, 32, 1), np.uint8),
        ((1, 4, 32, 32, 3), np.float32),
    ],
)
def test_frames_of_another_form_are_refused(model, shape, dtype):
    with pytest.raises(ValueError, match=r"frames must be \[B, T, H, W, 3\] uint8"):
        model.encode_video(np.zeros(shape, dtype))


def test_empty_and_uneven_input_is_refused(model, frames):
    with pytest.raises(ValueError, match="empty"):
        model.embed_text([])
    with pytest.raises(ValueError, match="empty"):
        model.encode_video(frames[:0])
    with pytest.raises(ValueError, match="7 videos but 1 queries"):
        model.predict(model.encode_video(frames), ["what is it?"])
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\] uint8, got \(7, 4, 32, 32, 3\)"):
        model.embed_image(frames)
    with pytest.raises(ValueError, match="the list of labels is empty"):
        model.classify(frames, [])
    with pytest.raises(ValueError, match=r"embeddings must be \[B, 16\], got \(3,\)"):
        model.decode(np.zeros(3))
    with pytest.raises(ValueError, match=r"the query \['a'\] is no text"):
        next(model.stream(iter(()), 25.0, ["a"], bank=["b"]))
    with pytest.raises(ValueError, match="must be finite"):
        model.decode(np.full((1, 16), np.nan), bank=["a"])


def test_one_text_is_not_taken_for_a_list_of_its_letters(model, frames):
    for of_one in (
        lambda: model.embed_text("a dog"),
        lambda: model.classify(frames, "a dog"),
        lambda: model.classify(frames, ["a dog"], templates="a {}"),
        lambda: model.answer(frames, "is there a dog?", "yes"),
        lambda: list(model.stream(frames[0], 2, bank="a dog")),
    ):
        with pytest.raises(ValueError, match=r"is one text, '.*': put it into a list"):
            of_one()
    with pytest.raises(ValueError, match="the list of texts holds None, which is no text"):
        model.embed_text(["a dog", None])
    with pytest.raises(ValueError, match="the list of queries is 5, which holds no texts"):
        model.predict(frames, 5)


def test_any_list_of_texts_and_any_array_of_frames_will_do(model, frames):
    texts = ["a dog", "a cat"]
    expected = model.embed_text(texts)
    for given in (tuple(texts), np.array(texts), iter(texts)):
        np.testing.assert_array_equal(model.embed_text(given), expected)
    queries = ["what is it?"] * CLIPS
    expected = model.embed_video(frames, queries)
    np.testing.assert_array_equal(model.embed_video(list(frames), np.array(queries)), expected)
    np.testing.assert_array_equal(model.predict(model.encode_video(frames).tolist(), queries), expected)


def test_clips_of_several_lengths_are_refused_in_words(model, frames):
    uneven = [frames[0], frames[0, :2]]
    for ask in (model.encode_video, lambda given: model.classify(given, ["a dog"]), model.embed_image):
        with pytest.raises(ValueError, match=r"the (frames|images) make no array: all need one shape"):
            ask(uneven)
    with pytest.raises(ValueError, match="the embeddings make no array"):
        model.decode([[0.0, 1.0], [1.0]], bank=["a"])


def test_half_a_surrogate_pair_is_a_question_mark(model, frames):
    """As JSON files with emoji cut in two hold it."""
    np.testing.assert_array_equal(model.embed_text(["a dog \ud83d"]), model.embed_text(["a dog ?"]))
    cut = model.embed_video(frames, "what is it\ud83d")
    np.testing.assert_array_equal(cut, model.embed_video(frames, "what is it?"))


def test_what_is_no_video_is_refused(model, frames):
    with pytest.raises(ValueError, match=r"visual tokens must be \[B, N, 24\].*got \(4, 32, 3\)"):
        model.predict(frames[0, :, :, 0], "what is it?")
    for dtype in (np.int32, bool, complex, str, object):
        with pytest.raises(ValueError, match=r"visual tokens must be \[B, N, 24\] floats.*got .* "):
            model.predict(np.ones((1, 4, 24)).astype(dtype), "what is it?")
    with pytest.raises(ValueError, match=r"frames must be \[B, T, H, W, 3\] uint8, got \(\)"):
        model.embed_video(None, "what is it?")
    with pytest.raises(ValueError, match="empty"):
        model.encode_video(frames[:, :0])
    with pytest.raises(ValueError, match="is no file"):
        model.read("http://localhost/clip.mp4")


def test_embeddings_of_any_length_but_none(model):
    bank = ["a dog spins", "two things", "no"]
    embeddings = model.embed_text(bank[::-1])
    for scale in (1e-30, 0.3, 1e30):
        assert model.decode(embeddings * np.float32(scale), bank=bank) == bank[::-1]
    with pytest.raises(ValueError, match="all zeros"):
        model.decode(embeddings * 0, bank=bank)


@pytest.mark.parametrize(
    "wrong", [{"rate": 0}, {"rate": float("nan")}, {"window": -1}, {"window": float("inf")}]
)
def test_a_rate_and_a_window_are_above_0(model, frames, wrong):
    with pytest.raises(ValueError, match="must be a number above 0"):
        list(model.stream(frames[0], **{"rate": 2, "bank": ["a dog"], **wrong}))


def test_a_query_longer_than_the_model_takes_is_refused_whole_or_cut(model, frames):
    long = "is it " * 16 + "?"
    for ask in (
        lambda: model.embed_video(frames, long),
        lambda: list(model.stream(frames[0], 2, long, bank=["a dog"])),
    ):
        with pytest.raises(ValueError, match=r"the query 'is it.*' has \d+ tokens and the model takes 16"):
            ask()
    visual = model.encode_video(frames)
    longer = model.predict(visual, long + long, cut=True)
    np.testing.assert_array_equal(model.predict(visual, long, cut=True), longer)


def test_an_image_is_a_video_of_one_frame(model, frames):
    tiny.assert_close(
        model.embed_image(frames[:, 0], "what is it?"), model.embed_video(frames[:, :1], "what is it?"), 1e-6
    )


def test_a_class_is_the_label_whose_phrasings_are_nearest(model, frames):
    labels, templates = ["dog", "cat", "cow"], ("a {}", "this is a {}")
    scores = model.classify(frames, labels, "name the thing", templates)
    assert scores.shape == (CLIPS, 3)
    cat = model.embed_text(["a cat", "this is a cat"]).mean(axis=0)
    expected = model.embed_video(frames, "name the thing") @ cat / np.linalg.norm(cat)
    tiny.assert_close(scores[:, 1], expected, 1e-5)
    with pytest.raises(ValueError, match=r"template 'a \{label\}' has no \"\{\}\""):
        model.classify(frames, labels, "name the thing", ("a {}", "a {label}"))


def test_an_answer_is_the_nearest_candidate(model, frames):
    """And what is asked of frames may be asked of their visual tokens."""
    candidates = ["a dog spins", "two things", "no", "it is a cow"]
    near = model.embed_video(frames, "what is it?") @ model.embed_text(candidates).T
    expected = [candidates[i] for i in near.argmax(axis=1)]
    assert model.answer(frames, "what is it?", candidates) == expected
    assert model.answer(model.encode_video(frames), ["what is it?"] * CLIPS, candidates) == expected
    assert model.answer(frames, "what is it?", ["no"]) == ["no"] * CLIPS


def test_the_scores_of_a_large_bank_are_not_all_in_memory(model, monkeypatch):
    """Of 100,000 embeddings and as many texts they are 40 GB."""
    monkeypatch.setattr(retrieval, "_SCORES_AT_ONCE", 2**16)
    bank = [f"text {i}" for i in range(2000)]
    vectors = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr(model, "embed_text", lambda _: vectors)
    tracemalloc.start()
    try:
        assert model.decode(vectors[::-1], bank=bank) == bank[::-1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2000**2 / 2


def test_a_bank_gives_back_its_own_texts(model):
    bank = ["a dog spins", "two things", "no"]
    assert model.decode(model.embed_text(bank[::-1]), bank=bank) == bank[::-1]
    with pytest.raises(ValueError, match="the bank of texts is empty"):
        model.decode(model.embed_text(bank), bank=[])
    with pytest.raises(ValueError, match="beams: settings of the decoder, which a bank of texts replaces"):
        model.decode(model.embed_text(bank), bank=bank, beams=2)


def test_no_text_is_the_nearest_of_a_bank_whose_embeddings_are_not_numbers(model, monkeypatch):
    monkeypatch.setattr(model, "embed_text", lambda texts: np.full((len(texts), 16), np.nan, np.float32))
    with pytest.raises(UsageError, match="not numbers"):
        model.decode(np.eye(1, 16, dtype=np.float32), bank=["yes", "no"])


def test_without_a_decoder_text_is_refused_in_one_sentence(model, frames):
    assert not model.has_decoder
    with pytest.raises(UsageError, match=r"python -m jepa_jax\.train_decoder --checkpoint=RUN"):
        model.caption(frames)


def test_few_programs_are_compiled_however_many_sizes_come(parts, frames):
    """Rows 1, 2, 4 and texts 8 and 16 long: no more shapes than that, and none twice."""
    from jax import monitoring

    net, config, tokenizers = parts
    model = inference.Model(net, dataclasses.replace(config, eval=EvalConfig(batch_size=4)), tokenizers)
    compiled = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        short, long = "what is it?", "do you see one dog beside the small cat?"
        assert tokenizers[0].count(short) <= 8 < tokenizers[0].count(long) <= 16
        for query in (short, long):
            for rows in (1, 2, 3, 5):
                model.embed_video(frames[:rows], query)
                model.embed_text([query] * rows)
        # 3 sizes of frames, 6 of queries, 6 of texts.
        assert len(compiled) <= 15
        compiled.clear()
        for query in (long, "count", short):
            for rows in (6, 4, 1, 7, 3, 2):
                model.answer(frames[:rows], query, candidates=[query, "no", "yes"][:rows])
        assert not compiled
    finally:
        monitoring.clear_event_listeners()


def test_results_of_two_batches_at_most_are_on_the_device(monkeypatch):
    """Tokens of a thousand clips would fill an accelerator's memory, though one batch has room."""
    # An accelerator's arrays are copied for NumPy, a CPU's are only looked at.
    monkeypatch.setattr(part_models, "to_host", np.array)
    made, most = [], []

    def function(_, x, graphdef):
        result = jnp.asarray(x) + 1, jnp.asarray(x) + 2
        made.append(weakref.ref(result[0]))
        most.append(sum(array() is not None for array in made))
        return result

    rows = np.arange(27, dtype=np.float32)
    found = part_models.in_batches(function, None, None, 4, rows)
    assert len(most) == 7
    assert max(most) <= 2
    for result, added in zip(found, (1, 2), strict=True):
        np.testing.assert_array_equal(result, rows + added)


@pytest.mark.parametrize(
    ("rows", "size", "devices", "padded"),
    [
        (1, 64, 1, 1),
        (3, 64, 1, 4),
        (33, 64, 1, 64),
        (5, 7, 1, 7),
        (1, 24, 8, 8),
        (17, 24, 8, 24),
    ],
)
def test_a_batch_is_a_power_of_two_for_each_device(rows, size, devices, padded):
    assert padded_rows(rows, size, devices) == padded


def test_the_untrained_twin_has_other_weights(model, frames):
    twin = untrained_twin(model)
    assert twin.config is model.config
    one, other = (m.embed_video(frames, "what is it?") for m in (model, twin))
    assert np.abs(one - other).max() > 1e-2


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is neither a work directory"):
        inference.load(tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UsageError, match="is neither a work directory"):
        inference.load(tmp_path / "checkpoints" / "5")


def test_a_configuration_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "config.json").write_bytes(b"\xff{}")
    for refused in (
        lambda: inference.load(tmp_path),
        lambda: loop.check_workdir(run_config, epath.Path(tmp_path), set()),
    ):
        with pytest.raises(UsageError, match=r"config.json: Invalid JSON"):
            refused()


def test_a_tokenizer_out_of_reach_is_a_sentence_of_every_command(parts, frames, tmp_path, monkeypatch):
    """Named by a relative path, say, and the command is started somewhere else."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    net, config, _ = parts
    gone = dataclasses.replace(config.data, target_tokenizer=str(tmp_path / "gone"))
    model = inference.Model(net, dataclasses.replace(config, data=gone))
    assert model.encode_video(frames[:1]).ndim == 3
    with pytest.raises(UsageError, match="gone' cannot be loaded"):
        model.embed_text(["a dog"])


def test_a_stream_is_spoken_about_where_it_changes(model):
    """Two scenes: a text at the beginning and one at the change, none between."""
    rng = np.random.default_rng(4)
    scenes = [rng.integers(0, 256, (48, 48, 3), np.uint8) for _ in range(2)]
    frames = (scenes[i // 30] for i in range(60))
    bank = ["one thing", "two things", "a cat grows", "it blinks"]
    spoken = list(model.stream(frames, 10.0, window=1.0, bank=bank, threshold=1e-4))
    assert [round(start) for start, _, _ in spoken] == [0, 3]
    assert all(text in bank and -1 <= score <= 1 for _, text, score in spoken)
