"""Sources of weights that have nothing wrong, and conversions that are refused."""

import pytest

from jepa_jax import flags
from weights_conversion.__main__ import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Sources with nothing wrong, to be copied and spoilt."""
    # Without PyTorch there are no such tests to collect, and no folders.
    import torch

    from tests.weights_conversion import folders

    root = tmp_path_factory.mktemp("whole")
    folders.save(folders.bert(), root / "bert")
    folders.save(folders.llama(2, tied=False), root / "shards", max_shard_size="20KB")
    folders.embedding_gemma(root / "gemma")
    torch.save(folders.meta_vjepa2(folders.vjepa2()), root / "vitl.pt")
    return root


@pytest.fixture
def refused(tmp_path, capfd):
    """Run a conversion that must be refused; gives what it said."""

    def run(source, *options: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        out = tmp_path / "new" / "part"
        assert flags.run(main, [f"--source={source}", f"--out={out}", *options]) == 2
        said = capfd.readouterr().err.strip().splitlines()
        assert said[0].startswith("error: ")
        assert not out.exists()
        # At most the empty folder that was to hold the part.
        assert [p for p in sorted(tmp_path.rglob("*")) if p not in before] in ([], [out.parent])
        return "\n".join(said)

    return run
