"""The notebook's cells, one after the other in one process, on a small run. It is compiled as users' runs
are, not as plainly as those of other tests."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks/colab.ipynb"


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_every_cell_runs(tmp_path):
    smaller = {
        'WORKDIR = "runs/demo"': f"WORKDIR = {str(tmp_path / 'run')!r}",
        "CHANGES = []": "CHANGES = "
        + repr(
            [
                f"--config={ROOT / 'tests/tiny_config.py'}",
                f"--config.data.data_dir={tmp_path / 'data'}",
                "--config.fsdp=1",
                "--config.steps=6",
                "--config.data.length_buckets=((16,16),)",  # one program to compile
                "--config.eval.splits=('unseen_pairs',)",
                "--config.eval.clips=12",
            ]
        ),
        "DECODER_CHANGES = []": "DECODER_CHANGES = "
        + repr([f"--config={ROOT / 'tests/tiny_decoder.py'}", "--config.steps=4"]),
    }
    program = []
    for source in cells("code"):
        for line in source.splitlines():
            if line.startswith("%"):
                assert line.startswith("%pip install")
                continue
            start = next((start for start in smaller if line.startswith(start)), None)
            program.append(line if start is None else smaller.pop(start))
    assert not smaller, "a line of the notebook is called otherwise now"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout.splitlines()
    assert any("text_to_video_recall_at_1" in line for line in printed)
    assert any(line.split()[1:2] == ["s"] for line in printed), "the stream says something"


def test_it_carries_no_results():
    """Those would be of another machine, and grow with every commit."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in found)
