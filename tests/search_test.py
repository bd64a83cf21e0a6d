"""`python -m jepa_jax.embed` and `python -m jepa_jax.search` on a collection of colours."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jepa_jax import embed, flags, inference, search
from jepa_jax.embeddings import table
from jepa_jax.embeddings.collection import DatasetCollection, Item, LeftOut
from jepa_jax.places import held
from tests.fake_model import FRAMES, SIZE, ColourModel
from tests.streaming.videos import COLOURS

COUNT, PART_ROWS = 47, 10
BAD = (3, 31)


class Colours:
    """Clips that turn from colour to colour; two cannot be read."""

    identity = "colours"
    skipped = (LeftOut("clip 47", "key not unique"),)

    def __init__(self, *_):
        self.reads = []

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        self.reads.append(index)
        if index in BAD:
            return LeftOut(f"clip {index}", "media truncated")
        colour = list(COLOURS)[index % 3]
        rng = np.random.default_rng(index)
        noise = rng.integers(-20, 20, (FRAMES, SIZE, SIZE, 3))
        frames = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
        return Item(f"clip {index}", frames, {"texts": [f"it is {colour}"]})


@pytest.fixture
def commands(monkeypatch, capsys):
    monkeypatch.setattr(inference, "load", lambda _, **how: ColourModel())
    monkeypatch.setattr(embed, "DatasetCollection", Colours)
    monkeypatch.setattr(search, "DatasetCollection", Colours)

    def run(main, *arguments):
        status = flags.run(main, ["--checkpoint=x", *arguments])
        return status, capsys.readouterr()

    return run


def embedding(out, *more):
    return embed.main, "--dataset=colours", f"--out={out}", f"--part_rows={PART_ROWS}", *more


def test_embeddings_that_are_not_numbers_are_not_written(commands, tmp_path, monkeypatch):
    broken = lambda _, frames, query: np.full((len(frames), 3), np.nan, np.float32)
    monkeypatch.setattr(ColourModel, "embed_video", broken)
    status, printed = commands(*embedding(tmp_path / "out"))
    assert status == 2
    assert "the model's answers are not numbers: its weights are broken" in printed.err
    assert not list((tmp_path / "out").glob("*.parquet"))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_query_that_is_too_long_is_refused_before_anything_is_written(commands, tmp_path):
    status, printed = commands(*embedding(tmp_path / "out", "--query=" + "what is it" * 9))
    assert status == 2
    assert "is too long" in printed.err
    assert not (tmp_path / "out").exists()


def test_a_collection_is_embedded_and_what_it_lacks_is_told(commands, tmp_path):
    status, printed = commands(*embedding(tmp_path))
    assert status == 0
    assert "45 videos embedded in 5 parts" in printed.out
    # One already when the collection was opened, two when they were read.
    assert "3 left out; the first: clip 47: key not unique" in printed.out
    manifest = table.read_manifest(tmp_path)
    rows = table.Rows(tmp_path, manifest)
    assert [rows[i].row for i in range(len(rows))] == [i for i in range(COUNT) if i not in BAD]
    embeddings = np.concatenate(list(table.embeddings_of(tmp_path, manifest)))
    places = np.argmax(embeddings @ ColourModel().embed_text(list(COLOURS)).T, axis=1)
    assert places.tolist() == [i % 3 for i in range(COUNT) if i not in BAD]


def test_texts_that_no_terminal_and_no_table_may_have(commands, tmp_path, monkeypatch, caplog):
    clip = Colours.__getitem__

    def hostile(self, index):
        found = clip(self, index)
        name = f"{found.name} \udcff\x1b]0;owned\x07\n9  0.999"
        if isinstance(found, LeftOut):
            return LeftOut(name, found.cause)
        return Item(name, found.frames, {"texts": ["it is red \ud83d\x1b[2J\nor not"]})

    monkeypatch.setattr(Colours, "__getitem__", hostile)
    status, embedded = commands(*embedding(tmp_path))
    assert status == 0
    shown = (f"--index={tmp_path}", "--top=2", f"--out={tmp_path / 'found.png'}")
    status, searched = commands(search.main, "it is red", *shown)
    assert status == 0
    assert len(searched.out.splitlines()) == 3
    assert (tmp_path / "found.png").exists()  # and the clips were found again
    assert "\x1b" not in embedded.out + embedded.err + searched.out + searched.err + "".join(caplog.messages)


def test_a_file_that_is_called_by_other_bytes_than_utf_8_is_embedded_and_found(
    commands, name_of_other_bytes, tmp_path, monkeypatch
):
    videos, out, picture = tmp_path / "videos", tmp_path / "out", tmp_path / "x.png"
    videos.mkdir()
    called = videos / f"{name_of_other_bytes}.png"
    Image.new("RGB", (SIZE, SIZE), "red").save(called)
    called.with_suffix(".txt").write_text("it is red")
    for module in (embed, search):
        monkeypatch.setattr(module, "DatasetCollection", DatasetCollection)
    assert commands(embed.main, f"--path={videos}", f"--out={out}")[0] == 0
    status, printed = commands(search.main, "red \udce9", f"--index={out}", f"--out={picture}")
    assert status == 0
    assert "caf\\udce9.png  it is red" in printed.out
    assert picture.exists()


def test_killed_anywhere_it_goes_on_and_the_bytes_are_the_same(commands, tmp_path, monkeypatch):
    commands(*embedding(tmp_path / "whole"))
    real, calls = ColourModel.embed_video, []

    def killed_later(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(ColourModel, "embed_video", killed_later)
    status, printed = commands(*embedding(tmp_path / "killed"))
    assert (status, printed.err.splitlines()[-1]) == (130, "stopped")
    assert len(contents(tmp_path / "killed")) == 1 + 2
    status, printed = commands(*embedding(tmp_path / "killed"))
    assert status == 0
    assert len(calls) == 3 + 3  # the finished parts were not made again
    assert "45 videos embedded" in printed.out
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_folder_that_another_embeds_into_is_refused(commands, tmp_path):
    """Half of its part and half of ours would be under one name."""
    with held(tmp_path, "embedding"):
        status, printed = commands(*embedding(tmp_path))
    assert status == 2
    assert f"another embedding is at work in {tmp_path}" in printed.err
    assert not list(tmp_path.glob("*.parquet"))


def test_hosts_take_parts_in_turn(commands, tmp_path, monkeypatch):
    commands(*embedding(tmp_path / "one"))
    model, collection = ColourModel(), Colours()
    manifest = table.read_manifest(tmp_path / "one")
    made = []
    monkeypatch.setattr(embed, "embed_part", lambda *a: made.append(a[3]) or [])
    monkeypatch.setattr(embed.distributed, "main_first", contextlib.nullcontext)
    monkeypatch.setattr(embed.distributed, "check_shared", lambda folder: None)
    monkeypatch.setattr(embed.jax, "process_count", lambda: 2)
    shares = []
    for process in range(2):
        made.clear()
        monkeypatch.setattr(embed.jax, "process_index", lambda process=process: process)
        embed.embed(model, collection, tmp_path / "two", manifest)
        shares.append(list(made))
    assert shares == [[0, 2, 4], [1, 3]]


def test_a_file_is_no_folder_to_write_to(commands, tmp_path):
    (tmp_path / "file").touch()
    status, printed = commands(*embedding(tmp_path / "file"))
    assert status == 2
    assert "File exists" in printed.err


def test_another_query_is_refused_in_the_same_folder(commands, tmp_path):
    commands(*embedding(tmp_path))
    status, printed = commands(*embedding(tmp_path, "--query=what is it?"))
    assert status == 2
    assert "holds other embeddings (query 'describe the clip', and here it is 'what is it?')" in printed.err


def test_a_collection_that_changed_is_refused(commands, tmp_path, monkeypatch):
    """As many clips as before: all parts are there, and what is new would never be found."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (40, 40), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"it is {colour}\n")
    monkeypatch.setattr(embed, "DatasetCollection", DatasetCollection)
    command = embed.main, f"--path={folder}", f"--out={tmp_path / 'of'}"
    for _ in range(2):
        status, printed = commands(*command)
        assert status == 0
        assert "2 videos embedded" in printed.out
    for path in folder.glob("red.*"):
        path.rename(folder / f"blue{path.suffix}")
    status, printed = commands(*command)
    assert status == 2
    assert "is of the collection before it changed: name another --out" in printed.err


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_text_finds_the_clips_it_describes(commands, tmp_path, kind):
    commands(*embedding(tmp_path))
    out = tmp_path / "search.png"
    arguments = [f"--index={tmp_path}", f"--out={out}", "--top=5", f"--kind={kind}"]
    status, printed = commands(search.main, "something green", *arguments)
    assert status == 0
    lines = printed.out.splitlines()
    assert len(lines) == 6
    assert all("it is green" in line for line in lines[:5])
    scores = [float(line.split()[1]) for line in lines[:5]]
    assert scores == sorted(scores, reverse=True)
    assert "45 videos searched in" in lines[5]
    with Image.open(out) as picture:
        assert min(picture.size) > 300


def test_a_part_that_is_made_again_of_other_media_is_searched(commands, tmp_path, monkeypatch):
    """As many rows, and nothing in the manifest says that they changed."""
    commands(*embedding(tmp_path))
    asked = (search.main, "red", f"--index={tmp_path}", f"--out={tmp_path / 'search.png'}", "--top=1")
    assert "clip 0 " not in commands(*asked)[1].out

    class Replaced(Colours):
        def __getitem__(self, index):
            frames = np.broadcast_to(np.uint8(COLOURS["red"]), (FRAMES, SIZE, SIZE, 3))
            return Item("clip 1", frames, {}) if index == 1 else super().__getitem__(index)

    monkeypatch.setattr(embed, "DatasetCollection", Replaced)
    table.part_path(tmp_path, 0).unlink()
    commands(*embedding(tmp_path))
    assert "  clip 1\n" in commands(*asked)[1].out


def test_a_text_longer_than_the_model_takes_is_told(commands, tmp_path, caplog):
    commands(*embedding(tmp_path / "index"))
    more = [f"--index={tmp_path / 'index'}", f"--out={tmp_path / 'search.png'}"]
    assert commands(search.main, "something green" * 9, *more)[0] == 0
    assert "the text is longer than the model takes" in caplog.text


def test_where_one_stands_does_not_matter_to_a_collection_on_disk(commands, tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    for folder, path in ((tmp_path, "videos"), (tmp_path / "videos", ".")):
        monkeypatch.chdir(folder)
        assert commands(embed.main, f"--path={path}", f"--out={tmp_path / 'out'}")[0] == 0
    assert table.read_manifest(tmp_path / "out").path == str(tmp_path / "videos")


def test_a_clip_that_is_no_longer_in_its_place_is_not_drawn(commands, tmp_path, monkeypatch, caplog):
    """Two clips before it are gone: another would be drawn under its name."""
    commands(*embedding(tmp_path / "of"))

    class Fewer(Colours):
        def __len__(self):
            return COUNT - 2

        def __getitem__(self, index):
            return super().__getitem__(range(COUNT - 2)[index] + 2)

    drawn = []
    monkeypatch.setattr(search, "DatasetCollection", Fewer)
    monkeypatch.setattr(search, "draw", lambda *arguments: drawn.append(arguments))
    status, printed = commands(search.main, "green", f"--index={tmp_path / 'of'}", "--top=45")
    assert status == 0
    assert "45 videos searched in" in printed.out
    assert not drawn
    assert "clip 46 is not drawn: the collection is not what it was" in caplog.text


@pytest.mark.parametrize(
    ("texts", "shown"), [(5, "5"), ("it is red", "it is red"), ({"en": "red"}, "{'en': 'red'}"), ([], "")]
)
def test_a_column_of_the_collection_s_own_that_is_called_texts(commands, tmp_path, monkeypatch, texts, shown):
    """As beside one called `caption`: which of the two the texts are, nobody can say."""
    titles, clip = [], Colours.__getitem__

    def own(self, index):
        found = clip(self, index)
        return found if isinstance(found, LeftOut) else Item(found.name, found.frames, {"texts": texts})

    monkeypatch.setattr(Colours, "__getitem__", own)
    monkeypatch.setattr(search, "shortened", lambda text, _: titles.append(text) or text)
    commands(*embedding(tmp_path))
    out = tmp_path / "search.png"
    status, printed = commands(search.main, "red", f"--index={tmp_path}", "--top=1", f"--out={out}")
    assert status == 0
    assert out.exists()
    assert printed.out.splitlines()[0].endswith(shown or "{'texts': []}")
    assert titles[0].partition(": ")[2] == shown


def test_where_the_videos_are_not_found_the_table_is_all(commands, tmp_path, monkeypatch, caplog):
    """As from another folder than a relative --path is of."""
    commands(*embedding(tmp_path / "of"))

    def gone(*_):
        raise ValueError("videos: no such folder")

    monkeypatch.setattr(search, "DatasetCollection", gone)
    out = tmp_path / "x.png"
    status, printed = commands(search.main, "green", f"--index={tmp_path / 'of'}", f"--out={out}")
    assert status == 0
    assert "45 videos searched in" in printed.out
    assert "nothing is drawn, for the videos are not where" in caplog.text
    assert not out.exists()


def test_no_more_are_drawn_than_a_picture_holds(commands, tmp_path, monkeypatch):
    commands(*embedding(tmp_path / "of"))
    read = []
    monkeypatch.setattr(search, "_DRAWN", 7)
    monkeypatch.setattr(Colours, "__getitem__", lambda _, index: read.append(index) or LeftOut("x", "gone"))
    status, printed = commands(search.main, "green", f"--index={tmp_path / 'of'}", "--top=20")
    assert status == 0
    assert len(printed.out.splitlines()) == 20 + 1
    assert len(read) == 7


def test_a_picture_that_cannot_be_written_is_one_sentence(commands, tmp_path):
    commands(*embedding(tmp_path / "of"))
    arguments = [f"--index={tmp_path / 'of'}", f"--out={tmp_path}/new/x.png"]
    status, _ = commands(search.main, r"red for $\frac$", *arguments)  # no formula
    assert status == 0
    assert (tmp_path / "new" / "x.png").exists()
    status, printed = commands(search.main, "red", f"--index={tmp_path / 'of'}", f"--out={tmp_path}/x.words")
    assert status == 2
    assert "'words' is not supported" in printed.err


def test_an_unfinished_collection_and_another_model_are_refused(commands, tmp_path, monkeypatch):
    status, printed = commands(search.main, "red", f"--index={tmp_path}")
    assert status == 2
    assert "holds no embeddings" in printed.err
    commands(*embedding(tmp_path))
    monkeypatch.setattr(search, "checksum", lambda _: "another")
    status, printed = commands(search.main, "red", f"--index={tmp_path}")
    assert status == 2
    assert "is not the model that embedded" in printed.err
    table.part_path(tmp_path, 1).unlink()
    status, printed = commands(search.main, "red", f"--index={tmp_path}")
    assert status == 2
    assert "1 of the 5 parts" in printed.err


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("red", ["--top=0"], "--top: at least 1"),
        (" ", [], "nothing to look for: the text is empty"),
        ("", [], "nothing to look for: the text is empty"),
    ],
)
def test_searches_that_make_no_sense_are_refused(commands, text, arguments, message):
    status, printed = commands(search.main, text, "--index=x", *arguments)
    assert status == 2
    assert message in printed.err


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("embed", ("--checkpoint=x", "--path=x", "--out=x")), ("search", ("x", "--index=x", "--checkpoint=x"))],
)
def test_where_the_extra_is_missing_it_is_named(module, arguments):
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        f"from jepa_jax import flags, {module}\n"
        f"sys.exit(flags.run({module}.main, {list(arguments)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("needs pyarrow: pip install 'jepa_jax[search]'")
