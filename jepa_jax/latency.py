"""How long an answer takes: its embedding, its embedding and its text, or token by token from the video.

    python -m jepa_jax.latency --checkpoint=DIR [--decoder=DIR] [--rounds=N]

The embedding is one forward pass of the model. Its text is written by the decoder when it is asked for.
The third way is how a generative model answers: the decoder's own Llama reads [visual; query] in place
of an embedding and writes as many tokens. What it writes is noise, for it was not trained to; its time
is not. The last is `Model.decode` as it comes: candidates of a beam search, and the Y-Encoder's choice.
"""

import functools
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax import flags, inference
from jepa_jax.decoder import Decoder
from jepa_jax.inference import Model
from jepa_jax.models import generation

# No token ends a text here: all three write as many.
_NEVER = -1


def ways(model: Model, decoder: Decoder) -> dict[str, Callable]:
    """{way: what answers once} for one clip and a query of full length, compiled at the first call."""
    config = model.config
    side = config.model.x_encoder.image_size
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1, config.data.frames, side, side, 3), np.uint8)
    query = np.ones((1, config.data.length_buckets[-1][0]), np.int32)
    write = functools.partial(generation.greedy, length=decoder.config.max_length, end=_NEVER)
    width = (config.model.x_encoder.width, decoder.config.llama.width)
    projection = rng.normal(size=width).astype(np.float32) * width[0] ** -0.5
    graphdef, state = nnx.split((model.module, decoder.module))

    def embed(state, frames):
        module, _ = nnx.merge(graphdef, state)
        return module.predict(module.encode_frames(frames), query, jnp.ones(query.shape, bool))

    def embed_and_write(state, frames):
        _, decoder = nnx.merge(graphdef, state)
        return write(decoder.language_model, decoder.prefix(embed(state, frames)))

    def generate(state, frames):
        module, decoder = nnx.merge(graphdef, state)
        llama = decoder.language_model
        visual = (module.encode_frames(frames) @ projection).astype(llama.dtype)
        return write(llama, jnp.concatenate([visual, llama.embed(query)], axis=1))

    functions = {"embedding": embed, "embedding and text": embed_and_write, "token by token": generate}
    return {name: functools.partial(jax.jit(f), state, frames) for name, f in functions.items()}


def measure(model: Model, rounds: int) -> dict[str, float]:
    """Median seconds of each way, taken in turns."""
    found = ways(model, model.decoder)
    embed = found["embedding"]
    found["best of candidates"] = lambda: model.decode(np.asarray(embed()))
    for answer in found.values():
        jax.block_until_ready(answer())
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, answer in found.items():
            begin = time.perf_counter()
            jax.block_until_ready(answer())
            seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def format_table(seconds: dict[str, float]) -> str:
    """One row a way: milliseconds, and times the embedding alone."""
    first = next(iter(seconds.values()))
    lines = [f"{'one clip, one question':24}{'ms':>10}{'times':>8}"]
    lines += [f"{name:24}{1000 * s:10.2f}{s / first:8.1f}" for name, s in seconds.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a model with a decoder")
    parser.add_argument(
        "--decoder", metavar="DIR", help="a decoder elsewhere than in the run (default: its own)"
    )
    parser.add_argument("--rounds", type=flags.count, default=50, help="medians are of so many (default: 50)")
    values = flags.parse_without_config(arguments, parser)
    model = inference.load(values.checkpoint, values.decoder)
    if not isinstance(model, Model):
        raise flags.UsageError(f"{values.checkpoint} holds one part: only whole models answer")
    if not model.has_decoder:
        raise flags.UsageError(
            f"{values.checkpoint} has no decoder: python -m jepa_jax.train_decoder trains one, and --decoder "
            "names one elsewhere"
        )
    print(format_table(measure(model, values.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
