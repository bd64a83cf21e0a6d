"""Tokenizers as the loader's threads use them."""

import concurrent.futures

from jepa_jax.data.emoji_motion.texts import vocabulary
from jepa_jax.data.tokenizer import Tokenizer


def test_threads_that_cut_to_different_lengths_do_not_disturb_one_another():
    """A fast tokenizer keeps its cut as a state; a batch must not depend on its neighbours'."""
    texts = [f"{a} {b}" for a in vocabulary()[:60] for b in vocabulary()[60:70]]
    jobs = [(text, length) for text in texts for length in (4, 16)]
    alone = Tokenizer("emoji_motion")
    expected = [alone(*job)[0].tolist() for job in jobs]
    shared = Tokenizer("emoji_motion")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [ids.tolist() for ids, _ in pool.map(lambda job: shared(*job), jobs)]
    assert found == expected
