"""Text from a causal Llama, token by token with a cache: greedy, sampled, beam search.

Pure functions of a model and the input embeddings that stand before the text. All of them give
[B, L] int32, filled up with `end`, the token that ends a text, and no row depends on another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jepa_jax.models.llama import LanguageModel

# Less than any score: of a beam that does not exist.
_NEVER = -1e9


def greedy(model: LanguageModel, prefix: jax.Array, *, length: int, end: int) -> jax.Array:
    """The likeliest token each time.

    Args:
      prefix: [B, P, D] input embeddings before the text.
      length: the most tokens of a text, `end` included.
    """
    return _one_by_one(model, prefix, lambda logits, _: jnp.argmax(logits, axis=-1), length, end)


def sample(
    model: LanguageModel,
    prefix: jax.Array,
    keys: jax.Array,
    *,
    temperature: jax.Array | float,
    top_k: jax.Array | int,
    top_p: jax.Array | float,
    length: int,
    end: int,
) -> jax.Array:
    """Tokens drawn at random; `prefix`, `length` and `end` are `greedy`'s.

    Args:
      keys: [B] one random key for each row.
      temperature: divides the logits.
      top_k: only so many of the likeliest tokens are drawn.
      top_p: of those only the likeliest that together have this probability.
    """

    def draw(logits, key):
        order = jnp.argsort(-logits)
        logits = jnp.where(jnp.arange(len(order)) < top_k, logits[order] / temperature, -jnp.inf)
        odds = jax.nn.softmax(logits)
        likelier = jnp.cumsum(odds) - odds
        return order[jax.random.categorical(key, jnp.where(likelier < top_p, logits, -jnp.inf))]

    def pick(logits, i):
        return jax.vmap(draw)(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, i))

    return _one_by_one(model, prefix, pick, length, end)


def _one_by_one(model, prefix, pick: Callable, length: int, end: int) -> jax.Array:
    """`pick` takes logits [B, V] and the place in the text and gives tokens [B]."""
    batch, before, _ = prefix.shape
    # A program that has set JAX's jax_enable_x64 finds places in int64, and a loop keeps its types.
    picked = lambda logits, i: pick(logits, i).astype(jnp.int32)
    logits, cache = model.extend(prefix, model.empty_cache(batch, before + length - 1), 0)
    tokens = jnp.full((batch, length), end, jnp.int32).at[:, 0].set(picked(logits, 0))

    def unfinished(carry):
        i, _, last, _ = carry
        return (i < length) & jnp.any(last != end)

    def step(carry):
        i, tokens, last, cache = carry
        logits, cache = model.extend(model.embed(last[:, None]), cache, before + i - 1)
        last = jnp.where(last == end, end, picked(logits, i))
        return i + 1, tokens.at[:, i].set(last), last, cache

    return jax.lax.while_loop(unfinished, step, (1, tokens, tokens[:, 0], cache))[1]


def beam_search(
    model: LanguageModel, prefix: jax.Array, *, beams: int, length: int, end: int
) -> tuple[jax.Array, jax.Array]:
    """The texts of the highest mean log-probability per token that a beam of texts finds, and that mean:
    [B, K, L] and [B, K], the likeliest first; what is all `end` and below -1e7 was not found.

    The algorithm is that of `transformers` with its default settings: of twice as many continuations
    as there are beams those that end are set apart, and a row is done when none that runs is better
    than the worst set apart. `prefix`, `length` and `end` are `greedy`'s.
    """
    batch, before, _ = prefix.shape
    logits, cache = model.extend(prefix, model.empty_cache(batch, before + length - 1), 0)
    cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=1), cache)
    logits = jnp.repeat(logits, beams, axis=0)
    take = lambda x, index: jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

    def choose(i, logits, running, finished, is_open):
        """Token i of every beam. Returns what runs and what is set apart, and where each beam that
        runs came from: [B, K]."""
        texts, scores = running
        vocabulary = logits.shape[-1]
        scores = jax.nn.log_softmax(logits).reshape(batch, beams, -1) + scores[..., None]
        scores, flat = jax.lax.top_k(scores.reshape(batch, -1), 2 * beams)
        source, token = flat // vocabulary, flat % vocabulary
        texts = take(texts, source).at[:, :, i].set(token)
        ends = (token == end) | (i + 1 == length)
        next_scores, best = jax.lax.top_k(jnp.where(ends, scores + _NEVER, scores), beams)
        # A text that ends counts if it is among the best that a beam has room for.
        ends &= (jnp.arange(2 * beams) < beams) & is_open[:, None]
        offered = (texts, jnp.where(ends, scores / (i + 1), _NEVER))
        joined = [jnp.concatenate(pair, axis=1) for pair in zip(finished, offered, strict=True)]
        order = jax.lax.top_k(joined[1], beams)[1]
        finished = tuple(take(x, order) for x in joined)
        # A beam without a text yet has a score that everything betters.
        is_open &= next_scores[:, 0] / (i + 1) > finished[1].min(axis=1)
        return (take(texts, best), next_scores), finished, is_open, take(source, best)

    def unfinished(carry):
        i, *_, is_open, _, _ = carry
        return (i < length) & jnp.any(is_open)

    def step(carry):
        i, running, finished, is_open, source, cache = carry
        # The beams of a row stand side by side in the cache.
        rows = (source + beams * jnp.arange(batch)[:, None]).ravel()
        cache = jax.tree.map(lambda x: x[:, rows], cache)
        last = running[0][:, :, i - 1].reshape(-1, 1)
        logits, cache = model.extend(model.embed(last), cache, before + i - 1)
        return i + 1, *choose(i, logits, running, finished, is_open), cache

    texts = jnp.full((batch, beams, length), end, jnp.int32)
    nothing = jnp.full((batch, beams), _NEVER, jnp.float32)
    # All beams start as one.
    running = (texts, nothing.at[:, 0].set(0.0))
    chosen = choose(0, logits, running, (texts, nothing), jnp.ones(batch, bool))
    return jax.lax.while_loop(unfinished, step, (1, *chosen, cache))[2]
