"""What the documentation says that can be run or followed."""

import json
import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_modules_are_used_as_the_docs_say():
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/model.md").read_text(), re.DOTALL)
    names = {"__name__": "a_program"}
    exec(program, names)
    assert names["visual"].shape == (2, 8, 256)
    assert names["predicted"].shape == (2, 128)
    # The encoder that was put in learns from the loss that was put in.
    gradients = jax.tree.leaves(names["gradients"]["x_encoder"])
    assert {x.shape for x in gradients} == {(2, 16, 16, 3, 256), (256,)}
    assert all(abs(x).max() > 0 for x in gradients)


def test_a_model_of_captions_alone_is_asked_what_it_was_trained_with():
    """Own clips beside their captions have no queries; under another one the answers are far worse."""
    cells = json.loads((ROOT / "notebooks/colab.ipynb").read_text())["cells"]
    (own,) = ["".join(c["source"]) for c in cells if "## Your own videos" in "".join(c["source"])]
    assert re.findall(r'mine\.answer\(.*\), ("[^"]*"), \[', own) == ['""']
    for page in (ROOT / "README.md", ROOT / "configs/my_videos.py", ROOT / "docs/decoding.md"):
        assert "aptions alone" in page.read_text() or "aptions have no queries" in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_s_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
