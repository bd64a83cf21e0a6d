"""Text from a causal Llama: with a cache as without, and as `transformers` writes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.models import generation
from jepa_jax.models.llama import LanguageModel
from tests import tiny

BATCH, PREFIX, LENGTH = 3, 5, 13
CONFIG = tiny.llama(causal=True)
# Of the random model below: an ending that comes neither at once nor never.
END = 7


def make(head="tied", scan=False):
    return tiny.filled(lambda: LanguageModel(CONFIG, head, **tiny.options(scan=scan)))


@pytest.fixture(scope="module")
def prefix():
    return tiny.normal(BATCH, PREFIX, CONFIG.width)


@functools.partial(jax.jit, static_argnames=("function", "options"))
def _generate(model, prefix, function, options, *arguments):
    return function(model, prefix, *arguments, **dict(options))


def generate(function, model, prefix, *arguments, **options):
    options = {"length": LENGTH, "end": END} | options
    return np.asarray(_generate(model, prefix, function, tuple(options.items()), *arguments))


def search(model, prefix, **options):
    """`beam_search`: texts [B, K, L] and scores [B, K]."""
    options = {"length": LENGTH, "end": END} | options
    texts, scores = _generate(model, prefix, generation.beam_search, tuple(options.items()))
    return np.asarray(texts), np.asarray(scores)


def without_cache(model, prefix, tokens):
    """Logits of each of the tokens and the one after: [B, L + 1, V]."""

    @jax.jit
    def run(model, prefix, tokens):
        x = jnp.concatenate([prefix, model.embed(tokens)], axis=1)
        return model.logits(model.llama(x, jnp.ones(x.shape[:2], bool)))[:, PREFIX - 1 :]

    return np.asarray(run(model, prefix, tokens))


@pytest.mark.parametrize(("head", "scan"), [("tied", False), ("own", True)])
def test_logits_with_a_cache_are_those_without(head, scan, prefix):
    model = make(head, scan)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (BATCH, LENGTH))
    expected = without_cache(model, prefix, tokens)

    @jax.jit
    def run(model, prefix, tokens):
        logits, cache = model.extend(prefix, model.empty_cache(BATCH, PREFIX + LENGTH), 0)
        found = [logits]
        # Steps of one and of several positions.
        for start, stop in ((0, 1), (1, 4), (4, LENGTH)):
            logits, cache = model.extend(model.embed(tokens[:, start:stop]), cache, PREFIX + start)
            found.append(logits)
        return jnp.stack(found, axis=1)

    tiny.assert_close(run(model, prefix, tokens), expected[:, [0, 1, 4, LENGTH]], 1e-5)


@pytest.fixture(scope="module")
def reference():
    """Our language model with the weights of one of `transformers`, PyTorch, and that one."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from tests.models import reference as theirs
    from weights_conversion import llama

    fields = {k: x for k, x in llama.config_to(CONFIG, "tied").items() if k != "architectures"}
    del fields["model_type"]
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    weights = theirs.language_model_weights(theirs.randomise(net).model)
    ours = tiny.build(lambda: LanguageModel(CONFIG, "tied", **tiny.options(scan=True)), weights)
    return ours, torch, net


def their_tokens(reference, prefix, **options) -> np.ndarray:
    _, torch, net = reference
    options = {
        "max_new_tokens": LENGTH,
        "eos_token_id": END,
        "pad_token_id": END,
        "do_sample": False,
    } | options
    with torch.no_grad():
        found = net.generate(
            inputs_embeds=torch.from_numpy(prefix),
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
            **options,
        ).numpy()
    return np.pad(found, ((0, 0), (0, LENGTH - found.shape[1])), constant_values=END)


@pytest.fixture(scope="module")
def many():
    """Prefixes of texts of many lengths."""
    return tiny.normal(41, PREFIX, CONFIG.width, seed=3)


def lengths(tokens) -> set[int]:
    return set((np.cumsum(tokens == END, axis=1) == 0).sum(axis=1).tolist())


def test_greedy_text_is_the_reference_s(reference, many):
    found = generate(generation.greedy, reference[0], many)
    np.testing.assert_array_equal(found, their_tokens(reference, many))
    # Some texts end, early and late, and some are cut.
    assert len(lengths(found)) > 3
    assert LENGTH in lengths(found)


@pytest.mark.parametrize("beams", [2, 5])
def test_beam_search_is_the_reference_s(reference, many, beams):
    every, scores = search(reference[0], many, beams=beams)
    found = every[:, 0]
    np.testing.assert_array_equal(found, their_tokens(reference, many, num_beams=beams))
    # All that was found, in order; the reference fills up with texts that do not end.
    theirs = their_tokens(reference, many, num_beams=beams, num_return_sequences=beams)
    theirs = theirs.reshape(every.shape)
    is_found = (every != END).any(axis=2)
    np.testing.assert_array_equal(every[is_found], theirs[is_found])
    assert is_found.mean() > 0.9
    assert (scores[is_found] > -1e7).all()
    # Each score is the mean log-probability of its text, the end included.
    logits = jax.nn.log_softmax(
        without_cache(reference[0], np.repeat(many, beams, 0), every.reshape(-1, LENGTH))
    )
    chosen = np.take_along_axis(logits[:, :-1], every.reshape(-1, LENGTH, 1), axis=2).reshape(every.shape)
    counts = np.minimum((every != END).sum(axis=2) + 1, LENGTH)
    means = (chosen * (np.arange(LENGTH) < counts[..., None])).sum(axis=2) / counts
    np.testing.assert_allclose(scores[is_found], means[is_found], atol=1e-5)
    assert (found != generate(generation.greedy, reference[0], many)).any()
    assert len(lengths(found)) > 3


def test_one_beam_is_greedy(reference, many):
    one = search(reference[0], many, beams=1)[0][:, 0]
    np.testing.assert_array_equal(one, generate(generation.greedy, reference[0], many))


def keys(count, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(count))


DRAWN = {"temperature": 0.8, "top_k": 11, "top_p": 0.9}


@pytest.mark.parametrize("how", ["greedy", "beams", "sample"])
def test_a_row_does_not_depend_on_the_others(reference, many, how):
    drawn = keys(len(many))

    def run(index):
        rows = many[index]
        if how == "greedy":
            return generate(generation.greedy, reference[0], rows)
        if how == "beams":
            return search(reference[0], rows, beams=2)[0]
        return generate(generation.sample, reference[0], rows, drawn[index], **DRAWN)

    whole = run(slice(None))
    np.testing.assert_array_equal(run(slice(7)), whole[:7])
    np.testing.assert_array_equal(run(slice(None, None, -1)), whole[::-1])


@pytest.mark.parametrize("function", [generation.greedy, generation.beam_search])
def test_after_the_end_there_is_nothing(reference, many, function):
    """And what is written before it does not depend on how much room there is after it."""
    if function is generation.beam_search:
        found = search(reference[0], many, beams=3)[0]
    else:
        found = generate(function, reference[0], many)
    for row in found.reshape(-1, LENGTH):
        end = np.flatnonzero(row == END)
        assert not len(end) or (row[end[0] :] == END).all()
    if function is generation.greedy:
        short = generate(function, reference[0], many, length=5)
        np.testing.assert_array_equal(short, found[:, :5])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.7, 41, 1.0), (1.0, 5, 1.0), (1.0, 41, 0.6), (0.7, 9, 0.8)],
)
def test_tokens_are_drawn_with_the_odds_that_the_reference_gives(reference, temperature, top_k, top_p):
    """Chi-square of 3,000 first tokens against the odds of `transformers`' own filters."""
    from scipy import stats
    from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    model, torch, _ = reference
    draws = 3000
    prefix = tiny.normal(1, PREFIX, CONFIG.width, seed=8)
    logits = torch.from_numpy(without_cache(model, prefix, np.zeros((1, 0), np.int32))[:, 0].copy())
    for filtered in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k),
        TopPLogitsWarper(top_p) if top_p < 1 else None,
    ):
        logits = logits if filtered is None else filtered(None, logits)
    odds = torch.softmax(logits, dim=-1)[0].numpy().astype(np.float64)
    prefixes = np.repeat(prefix, draws, axis=0)
    arguments = tuple(np.float32(x) for x in (temperature, top_k, top_p))
    found = _first_tokens(model, prefixes, keys(draws), *arguments)
    counts = np.bincount(found, minlength=CONFIG.vocab_size)
    assert not counts[odds == 0].any()
    expected = draws * odds[odds > 0] / odds.sum()
    assert len(expected) > 1
    # The seed is fixed, so this either always passes or never.
    assert stats.chisquare(counts[odds > 0], expected).pvalue > 1e-3
    assert stats.chisquare(counts[odds > 0], np.roll(expected, 1)).pvalue < 1e-6


@jax.jit
def _first_tokens(model, prefix, keys, temperature, top_k, top_p):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "length": 1, "end": END}
    return generation.sample(model, prefix, keys, **options)[:, 0]


def test_every_place_draws_anew(reference):
    """With flat odds a text repeats no token more than chance has it."""
    prefix = tiny.normal(1, PREFIX, CONFIG.width, seed=8).repeat(301, axis=0)
    options = {"temperature": 1e6, "top_k": CONFIG.vocab_size, "top_p": 1.0, "end": -1}
    found = generate(generation.sample, reference[0], prefix, keys(301), **options)
    same = (found[:, 1:] == found[:, :-1]).mean()
    assert same < 3 / CONFIG.vocab_size
    assert len(np.unique(found[:, 0])) > CONFIG.vocab_size // 2


def test_a_program_in_64_bits_gets_the_same_texts(prefix):
    """Its types are set for all that it does; the places of the likeliest tokens are int64 there."""
    model = make()
    odds = {"temperature": 0.7, "top_k": 9, "top_p": 0.8}
    functions = {
        "greedy": lambda: generation.greedy(model, prefix, length=LENGTH, end=END),
        "sample": lambda: generation.sample(
            model, prefix, jax.random.split(jax.random.key(0), BATCH), length=LENGTH, end=END, **odds
        ),
        "beams": lambda: generation.beam_search(model, prefix, beams=3, length=LENGTH, end=END)[0],
    }
    for name, function in functions.items():
        expected = jax.jit(function)()
        with jax.enable_x64(True):
            found = jax.jit(lambda function=function: function())()
        assert found.dtype == jnp.int32
        if name != "sample":  # draws of 64 bits are others
            np.testing.assert_array_equal(found, expected)
