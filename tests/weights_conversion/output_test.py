"""What is written becomes the output when it is whole, or vanishes."""

import signal

import pytest

from jepa_jax import flags
from weights_conversion import convert


def test_an_output_that_another_conversion_makes_meanwhile_is_kept(tmp_path):
    out = tmp_path / "there"
    with pytest.raises(flags.UsageError, match="exists by now"), convert.atomic_folder(out):
        out.mkdir()
    assert [file.name for file in tmp_path.rglob("*")] == ["there"]
    out.rmdir()
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(flags.UsageError, match="exists: name another"), convert.atomic_folder(out):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(number, tmp_path):
    before = signal.getsignal(number)

    def interrupted():
        with convert.atomic_folder(tmp_path / "part") as folder:
            (folder / "half").write_text("")
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as ended:
        interrupted()
    assert ended.value.code == 128 + number
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) == before
