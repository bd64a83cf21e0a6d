"""`python -m jepa_jax.stream`: events and a picture, whatever ends the stream."""

import json
import shutil

import pytest
from PIL import Image

from jepa_jax import flags, stream
from tests.fake_model import ColourModel
from tests.streaming import videos

RATE = 10
SCENES = ("red", 35), ("green", 25), ("blue", 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    videos.write(folder / "three.mp4", videos.frames_of(*SCENES), RATE, movflags="faststart")
    videos.write(folder / "one.mp4", videos.frames_of(("red", 1)), RATE)
    (folder / "empty.mp4").touch()
    (folder / "bank.txt").write_text("it is red\nit is green\nit is blue\n")
    return folder


@pytest.fixture
def watch(monkeypatch, folder, tmp_path, capsys):
    """Runs the command; gives status, events and what was printed on standard error."""
    monkeypatch.setattr(stream.inference, "load", lambda *_: ColourModel())

    def run(video, *more):
        arguments = ["--checkpoint=x", f"--video={video}", f"--out={tmp_path}", "--window=0.8", *more]
        status = flags.run(stream.main, arguments)
        file = tmp_path / "events.jsonl"
        events = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return status, events, capsys.readouterr()

    return run


def check(events):
    assert [event["text"] for event in events] == ["it is red", "it is green", "it is blue"]
    bounds = [0, 3.5, 6, 10]
    for event, start, end in zip(events, bounds[:-1], bounds[1:], strict=True):
        assert abs(event["start"] - start) <= 0.5
        assert abs(event["end"] - end) <= 0.5
        assert start <= event["at"] <= end
        assert event["score"] > 0.9


@pytest.mark.parametrize("more", [(), ("--bank",), ("--batch=5",), ("--offline", "--segments=3")])
def test_three_scenes_are_three_events_and_a_picture(watch, folder, tmp_path, more):
    more = [f"--bank={folder / 'bank.txt'}" if flag == "--bank" else flag for flag in more]
    status, events, printed = watch(folder / "three.mp4", *more)
    assert status == 0
    check(events)
    assert "it is green" in printed.out
    assert "3 events, 3 decodes for" in printed.out
    with Image.open(tmp_path / "timeline.png") as picture:
        assert picture.width > 1000


def test_a_file_that_is_called_by_other_bytes_than_utf_8_is_watched(
    watch, folder, name_of_other_bytes, tmp_path
):
    called = tmp_path / f"{name_of_other_bytes}.mp4"
    shutil.copy(folder / "three.mp4", called)
    status, _, printed = watch(called, f"--bank={folder / 'bank.txt'}")
    assert status == 0, printed.err
    assert (tmp_path / "timeline.png").exists()


def test_a_file_with_a_colon_in_its_name_is_no_url(watch, folder, tmp_path, monkeypatch):
    shutil.copy(folder / "three.mp4", tmp_path / "cam-12:30.mp4")
    monkeypatch.chdir(tmp_path)
    status, _, printed = watch("cam-12:30.mp4", f"--bank={folder / 'bank.txt'}")
    assert status == 0, printed.err


def test_a_url_is_watched_like_a_file(watch, folder):
    with videos.served(folder) as url:
        status, events, _ = watch(f"{url}/three.mp4")
    assert status == 0
    check(events)


@pytest.mark.parametrize("more", [(), ("--batch=5", "--frames=4")])
def test_a_live_source_is_opened_when_all_is_compiled(watch, folder, monkeypatch, more):
    """It goes on while programs are compiled: pieces of a playlist run out, a camera's buffer runs over."""
    shapes, before, real = [], [], stream.open_video

    class Watched(ColourModel):
        def embed_video(self, frames, query):
            shapes.append(frames.shape)
            return super().embed_video(frames, query)

        def decode(self, embeddings):
            shapes.append("text")
            return super().decode(embeddings)

    def opened(source, **_):
        before.extend(shapes)
        yield from real(str(folder / "three.mp4"))

    monkeypatch.setattr(stream, "open_video", opened)
    monkeypatch.setattr(stream.inference, "load", lambda *_: Watched())
    status, events, printed = watch("rtsp://camera/live", *more)
    assert status == 0, printed.err
    check(events)
    assert "before the first" in printed.out
    assert before == [shapes[2], "text"]  # the first window's own


@pytest.mark.parametrize("more", [(), ("--batch=7",), ("--offline", "--segments=2")])
def test_a_source_that_stops_is_said_and_what_was_found_is_kept(watch, folder, monkeypatch, tmp_path, more):
    def unplugged(source, **_):
        for frame in real(source):
            if frame.seconds > 5:
                raise stream.SourceStoppedError(f"{source} stopped after 5.0 s: No such device")
            yield frame

    real = stream.open_video
    monkeypatch.setattr(stream, "open_video", unplugged)
    status, events, printed = watch(folder / "three.mp4", *more)
    assert status == 1
    assert [event["text"] for event in events] == ["it is red", "it is green"]
    assert 4 < events[-1]["end"] <= 5.2
    assert (tmp_path / "timeline.png").exists()
    assert "three.mp4 stopped after 5.0 s: No such device; what was found until then is in" in printed.err


def test_a_model_without_a_decoder_asks_for_a_bank(watch, folder, monkeypatch):
    monkeypatch.setattr(ColourModel, "has_decoder", False)
    status, _, printed = watch(folder / "three.mp4")
    assert status == 2
    assert "has no decoder to write texts: name a --bank of them" in printed.err


def test_an_out_that_takes_no_events_is_one_sentence(watch, folder, tmp_path):
    """As a folder of somebody else's, which may only be read."""
    (tmp_path / "events.jsonl").mkdir()
    arguments = ["--checkpoint=x", f"--video={folder / 'three.mp4'}", f"--out={tmp_path}"]
    assert flags.run(stream.main, arguments) == 2


def test_ctrl_c_ends_a_camera_and_keeps_what_was_found(watch, folder, monkeypatch):
    def camera(source, **_):
        yield from real(source)
        raise KeyboardInterrupt

    real = stream.open_video
    monkeypatch.setattr(stream, "open_video", camera)
    status, events, printed = watch(folder / "three.mp4")
    assert status == 130
    check(events)
    assert "error: stopped by Ctrl-C" in printed.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one.mp4", "too short: it gives 1 frame at 5 a second"),
        ("empty.mp4", "empty.mp4 is an empty file"),
        ("missing.mp4", "cannot be opened as a video"),
    ],
)
def test_what_cannot_be_watched_is_one_sentence(watch, folder, name, message):
    status, events, printed = watch(folder / name)
    assert status == 2
    assert events == []
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_source_that_cannot_be_watched_costs_no_earlier_events(watch, folder):
    check(watch(folder / "three.mp4")[1])
    status, events, _ = watch(folder / "missing.mp4")
    assert status == 2
    check(events)
    # What can be is in its place.
    _, events, _ = watch(folder / "three.mp4", "--offline", "--segments=1")
    assert len(events) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--offline",), "--offline and --segments=N go together"),
        (("--segments=3",), "--offline and --segments=N go together"),
        (("--embedding=mean",), "--embedding is of --offline, which is not given"),
        (("--offline", "--segments=3", "--threshold=0.1"), "--threshold is of watching as it comes"),
        (("--window=0",), "--window=0.0 must be a number above 0"),
        (("--window=1e-9",), "window=1e-09 is too short: 4 frames in it are 4e+09 a second"),
        (("--window=inf",), "--window=inf must be a number above 0"),
        (("--step=-1",), "--step=-1.0 must be a number above 0"),
        (("--query=" + "what is it" * 9,), "is too long"),
        ((f"--out={__file__}",), "File exists"),
        (("--frames=6",), "--frames=6 must be a multiple of the model's tubelet, 4"),
        (("--threshold=2",), "threshold=2.0 must lie between 0 and 1"),
        (("--bank=x", "--decoder=y"), "--bank and --decoder: give one"),
        (("--bank=nowhere.txt",), "--bank=nowhere.txt: No such file"),
        (("--config.seed=1",), "no --config flags here"),
    ],
)
def test_flags_that_make_no_sense_are_refused(watch, folder, more, message):
    status, _, printed = watch(folder / "three.mp4", *more)
    assert status == 2
    assert message in printed.err
