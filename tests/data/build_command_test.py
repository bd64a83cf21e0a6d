"""`python -m jepa_jax.data.build` from its command line."""

import csv
import importlib.util
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jepa_jax import flags
from jepa_jax.data import schema
from jepa_jax.data.build.__main__ import main


@pytest.fixture
def pictures(tmp_path):
    """A manifest of 7 pictures, one of them no picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "said"])
        for i in range(7):
            Image.fromarray(rng.integers(0, 256, (11, 13, 3), np.uint8)).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", f"picture {i}"])
    (folder / "3.png").write_text("no picture")
    return folder


def arguments(tmp_path, pictures, *more: str) -> list[str]:
    fields = ("--fields.media=file", "--fields.targets=said")
    return [f"--out={tmp_path / 'out'}", "--name=pictures", f"--path={pictures}", *fields, *more]


def test_a_folder_becomes_a_dataset(tmp_path, pictures, capsys):
    assert flags.run(main, arguments(tmp_path, pictures, "--max_bad_fraction=0.2")) == 0
    assert "train: 6 records, 6 pairs, 0.0 MB in 1 shards; 1 left out" in capsys.readouterr().out
    folder = tmp_path / "out" / "pictures" / "1.0.0"
    builder = tfds.builder_from_directory(folder)
    found = [schema.to_record(example) for example in builder.as_data_source(split="train")]
    assert [record.pairs[0].targets for record in found] == [(f"picture {i}",) for i in range(7) if i != 3]
    assert found[4].media.content == (pictures / "5.png").read_bytes()
    report = json.loads((folder / "report.json").read_text())
    assert report["media_decoded"] == "yes"
    assert report["splits"]["train"]["left_out"] == {"media not decodable": 1}


def test_media_are_believed_with_a_reason(tmp_path, pictures):
    assert flags.run(main, arguments(tmp_path, pictures, "--no_decode=checked yesterday")) == 0
    report = json.loads((tmp_path / "out" / "pictures" / "1.0.0" / "report.json").read_text())
    assert report["media_decoded"] == "no: checked yesterday"
    assert report["splits"]["train"]["records"] == 7


def test_too_many_bad_records_are_status_1(tmp_path, pictures, capsys):
    assert flags.run(main, arguments(tmp_path, pictures)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "1 of 7 records cannot be used" in said
    assert "1 media not decodable (first" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset=mnist"], "the source is either --path=FOLDER or --dataset=TFDS_NAME"),
        (["--name=Cats"], "--name='Cats': TFDS takes small letters"),
        (["--version=1"], "--version='1' is no version like 1.0.0"),
        (["--splits=train,../x"], "'../x' is no name of a split"),
        (["--splits=train,train"], "names a split twice"),
        (["--workers=0"], "argument --workers: invalid whole number of at least 1 value: '0'"),
        (["--rebalance=1"], "invalid whole number of at least 2 value: '1'"),
        (["--max_bad_fraction=2"], "invalid number from 0 to 1 value: '2'"),
        (["--embedder=/x"], "--embedder is of --rebalance=K, which is not given"),
        (["--cluster_size=5"], "--cluster_size is of --rebalance=K, which is not given"),
        (["--seed=3"], "--seed is of --rebalance=K, which is not given"),
        (["--data_dir=x"], "--data_dir is of --dataset=TFDS_NAME, which is not given"),
        (["--no_decode="], "--no_decode= is empty"),
        (["--beam_option=num_worker=3"], "Beam refuses its options: there is no num_worker"),
        (["--runner=DataflowRunner", "--workers=3"], "--workers is of this machine"),
        (["--runner=NoSuchRunner"], "Beam"),
        (["--field.media=x"], "unknown argument '--field.media=x'"),
        (["--config.seed=1"], "a build has no config"),
        (["--fields.media=clip"], "clip"),
        (["--rebalance=20"], "has only 7 different texts"),
        (["--path=/nowhere"], "no such folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(tmp_path, pictures, capsys, more, message):
    """Nothing is written, but for a mistake that the texts have to be read for."""
    assert flags.run(main, arguments(tmp_path, pictures, *more)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said


def test_without_beam_it_explains_itself_and_names_the_extra(tmp_path, pictures, capsys, monkeypatch):
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == "apache_beam" else find(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--rebalance" in capsys.readouterr().out
    assert flags.run(main, arguments(tmp_path, pictures)) == 2
    assert capsys.readouterr().err == "error: a build needs apache_beam: pip install 'jepa_jax[build]'\n"
