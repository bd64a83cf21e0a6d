"""The command line: overrides, and one clear sentence for each mistake."""

import ast
import dataclasses
import errno
import gc
import importlib
import io
import os
import pathlib
import subprocess
import sys

import pytest

from jepa_jax import flags
from jepa_jax.config import Config, DecoderConfig

CONFIG = flags.load_config("configs/demo.py")


def test_overrides_change_only_what_they_name():
    assignments = [("optim.learning_rate", "1e-4"), ("model.predictor.layers", "3"), ("data.data_dir", "/x")]
    changed = flags.override(CONFIG, assignments)
    before, after = flags.flatten(CONFIG), flags.flatten(changed)
    assert {k for k in before if before[k] != after[k]} == {path for path, _ in assignments}
    assert changed.optim.learning_rate == 1e-4
    assert changed.data.data_dir == "/x"


def test_a_config_survives_json():
    assert flags.config_from_json(flags.config_to_json(CONFIG), "test") == CONFIG


@pytest.mark.parametrize(
    ("text", "value"), [("null", None), ("None", None), ("0.5", 0.5), ("2", 2.0)], ids=str
)
def test_values_are_literals(text, value):
    assert flags.override(CONFIG, [("optim.clip_norm", text)]).optim.clip_norm == value


@pytest.mark.parametrize("text", ["2024", "0x10", "1e5", "true", "[a]", "'2024'"])
@pytest.mark.parametrize("field", ["path", "split"])  # one may be None, the other not
def test_a_field_that_holds_a_text_takes_what_looks_like_something_else(field, text):
    assert getattr(flags.override(CONFIG, [(f"data.{field}", text)]).data, field) == text.strip("'")


def test_a_text_that_may_be_left_out_can_be():
    config = flags.load_config("configs/my_videos.py")
    assert flags.override(config, [("data.path", "null")]).data.path is None


def test_a_section_that_may_be_left_out_can_be():
    config = flags.load_config("configs/pretrain_images.py")
    assert config.model.predictor.rope_scaling is not None
    changed = flags.override(config, [("model.predictor.rope_scaling", "null")])
    assert changed.model.predictor.rope_scaling is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "run/config.json: Invalid JSON: EOF while"),
        ('{"steps": 1}', "run/config.json: name: field required"),
    ],
)
def test_json_that_is_no_config_is_not_repeated_in_the_sentence(text, sentence):
    with pytest.raises(flags.UsageError) as error:
        flags.config_from_json(text, "run/config.json")
    assert str(error.value).startswith(sentence)
    assert text not in str(error.value)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_decoder_where_a_run_is_asked_for_is_named_and_the_other_way_round(swapped):
    decoder = flags.load_config("configs/demo_decoder.py", DecoderConfig)
    given, kind = (CONFIG, DecoderConfig) if swapped else (decoder, Config)
    expected = "run: give the folder of a decoder" if swapped else "decoder: give the folder of a run"
    with pytest.raises(flags.UsageError, match=f"^X/config.json is that of a {expected}$"):
        flags.config_from_json(flags.config_to_json(given), "X/config.json", kind)


def test_fields_that_depend_on_each_other_change_together():
    changed = flags.override(CONFIG, [("model.x_encoder.width", "96"), ("model.x_encoder.heads", "4")])
    assert changed.model.x_encoder.head_size == 24


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("optim.learning_rat", "1", "optim has no field 'learning_rat'; did you mean learning_rate?"),
        ("optin.learning_rate", "1", "the config has no field 'optin'; did you mean optim?"),
        ("steps", "many", "steps='many': input should be a valid integer"),
        ("steps", "-3", "steps=-3: input should be greater than 0"),
        ("steps", "2.5", "steps=2.5: input should be a valid integer"),
        ("optim.schedule", "linear", "optim.schedule='linear': input should be 'constant' or 'cosine'"),
        ("model.compute_dtype", "float16", "input should be 'float32' or 'bfloat16'"),
        ("optim.learning_rate", "nan", "optim.learning_rate="),
        # In float32 these are 0, 1 and infinite: no update at all, or one that is no number.
        (
            "optim.learning_rate",
            "1e-50",
            "optim.learning_rate=1e-50: input should be greater than or equal to",
        ),
        ("optim.eps", "1e-40", "optim.eps=1e-40: input should be greater than or equal to"),
        ("optim.b2", "0.99999999", "optim.b2=0.99999999: input should be less than or equal to 0.999999"),
        ("optim.weight_decay", "1e300", "optim.weight_decay=1e+300: input should be less than or equal to"),
        ("model.x_encoder.heads", "7", "x_encoder.width=256 is not a multiple of x_encoder.heads=7"),
        ("model.x_encoder.image_size", "33", "image_size=33 is not a multiple of x_encoder.patch_size=16"),
        ("model.predictor.kv_heads", "3", "a Llama's heads=4 is not a multiple of its kv_heads=3"),
        ("data.frames", "3", "data.frames=3 is not a multiple of model.x_encoder.tubelet_size=2"),
        ("fsdp", "5", "batch_size=64 is not a multiple of fsdp=5"),
        ("data.length_buckets", "()", "tuple should have at least 1 item"),
        ("data.length_buckets", "((16,16),(8,8))", "must ascend"),
        ("data.length_buckets", "((8,16),(16,8))", "must ascend"),
        ("data.fields.medium", "x", "data.fields has no field 'medium'; did you mean media?"),
        ("loss.temperature", "0.001", "loss.temperature=0.001 is below 1/max_logit_scale=0.01"),
        ("optim", "3", "optim is a section; set one of its fields: name, learning_rate"),
        ("steps.more", "3", "steps has no fields of its own"),
        ("optim.warmup_steps", "100000", "optim.warmup_steps=100000 exceeds steps"),
        ("data.max_shift", "32", "data.max_shift=32 pixels moves all out of a frame"),
        ("eval.splits", "{'a', 'b'}", "eval.splits=\"{'a', 'b'}\": input should be a list in brackets"),
        ("eval.splits", "test", "eval.splits='test': input should be a list in brackets, texts in it"),
        ("eval.dataset", "{1: b'x'}", "eval.dataset=\"{1: b'x'}\": input should be an object"),
        ("model.predictor", "null", "model.predictor=None: input should be an object"),
        ("seed", "4294967296", "seed=4294967296: input should be less than 4294967296"),
        ("data.path", "/caf\udce9", r"data.path=/caf\udce9: it is not UTF-8"),
        ("eval.splits", "['\udce9']", r"eval.splits=['\udce9']: it is not UTF-8"),
        ("data.path", "", "data.path='': string should have at least 1 character"),
        ("init.model", "", "init.model='': string should have at least 1 character"),
        ("data.features", "cache", "is of frames, and data.features has visual tokens"),
    ],
)
def test_a_bad_override_is_one_sentence(path, value, sentence):
    with pytest.raises(flags.UsageError) as error:
        flags.override(CONFIG, [(path, value)])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("field", "value"), [("split", "train[:10%]"), ("fields.media", "clip")])
def test_what_would_change_nothing_beside_a_mixture_is_refused(field, value):
    mixture = [("data.mixture", "[{'path': 'a'}]"), ("data.pair_weights", "()")]
    sentence = f"data.{field.split('.')[0]} is of one dataset: data.mixture must be empty"
    with pytest.raises(flags.UsageError, match=sentence):
        flags.override(CONFIG, [*mixture, (f"data.{field}", value)])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("config = (", "line 1 does not run: SyntaxError"),
        ("import nothing_of_the_kind", "does not run: ModuleNotFoundError"),
        ("x = 1", "must define `config`"),
        (
            "from jepa_jax.config import OptimConfig\nOptimConfig(learning_rat=1.0)",
            "unexpected keyword argument",
        ),
        ("from jepa_jax.config import XEncoderConfig\nXEncoderConfig(width='8')", "width='8'"),
        ("from jepa_jax.config import EvalConfig\nEvalConfig(splits=['a'])", "input should be a valid tuple"),
    ],
)
def test_a_bad_config_file_is_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(flags.UsageError) as error:
        flags.load_config(str(file))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_config_file_is_named():
    with pytest.raises(flags.UsageError, match=r"no config file 'configs/nowhere\.py'"):
        flags.load_config("configs/nowhere.py")


def test_the_shipped_demo_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flags.load_config("configs/demo.py") == CONFIG


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workdri=x"], "unknown argument '--workdri=x'"),
        (["demo"], "unknown argument 'demo'"),
        (["--workdir"], "expected one argument"),
        (["--config.steps"], "--config.steps needs a value"),
        (["--config.steps", "--workdir=x"], "--config.steps needs a value"),
        (["--workdir="], "--workdir= is empty: is a variable of the shell not set?"),
        (["--workdir", ""], "--workdir= is empty"),
        (["--out="], "argument --out: it is empty"),
        (["--place="], "argument --place: it is empty"),
        ([f"--place={__file__}"], "flags_test.py is a file: name a folder"),
        (["--file=/"], "argument --file: / is a folder: name a file"),
    ],
)
def test_a_bad_command_line_is_one_sentence(arguments, sentence, capsys):
    parser = flags.parser("test")
    parser.add_argument("--workdir")
    parser.add_argument("--out", type=flags.local_path)
    parser.add_argument("--place", type=flags.place)
    parser.add_argument("--file", type=flags.local_file)
    assert flags.run(lambda words: flags.parse(words, parser), arguments) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1


def test_overrides_may_stand_apart_from_their_values():
    parser = flags.parser("test")
    parser.add_argument("--workdir")
    values, overrides = flags.parse(["--config.steps", "3", "--workdir", "w", "--config.seed=1"], parser)
    assert values.workdir == "w"
    assert overrides == [("steps", "3"), ("seed", "1")]


def test_every_section_is_reachable():
    assert all(name in flags.flatten(CONFIG) for name in ("seed", "model.y_encoder.window", "eval.clips"))
    assert {f.name for f in dataclasses.fields(Config)} <= {n.split(".")[0] for n in flags.flatten(CONFIG)}


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("jepa_jax.data.build.__main__", "out"),
        ("jepa_jax.embed", "out"),
        ("jepa_jax.search", "out"),
        ("jepa_jax.stream", "out"),
        ("jepa_jax.preflight", "out"),
        ("jepa_jax.benchmark", "out"),
        ("weights_conversion.__main__", "out"),
        ("weights_conversion.export", "out"),
    ],
)
def test_what_is_written_goes_to_a_file_system(command, flag, tmp_path, monkeypatch, capsys):
    """A path of Python's takes gs://bucket for a folder here, and nobody finds what is in it."""
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(command).main
    assert flags.run(main, [f"--{flag}=gs://bucket/place"]) == 2
    assert f"--{flag}: gs://bucket/place is in an object store" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_calls_every_command_as_it_is_called():
    root = pathlib.Path(__file__).parent.parent
    found = []
    for file in sorted([*root.glob("jepa_jax/**/*.py"), *root.glob("weights_conversion/*.py")]):
        source = file.read_text()
        if "flags.parser(__doc__)" in source:
            name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__main__")
            described = ast.get_docstring(ast.parse(source), clean=False)
            assert flags.parser(described).prog == f"python -m {name}"
            found.append(name)
    assert len(found) > 10


def test_a_command_runs_where_python_keeps_no_docstrings():
    command = [sys.executable, "-OO", "-m", "jepa_jax.search", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--checkpoint" in done.stdout


def test_what_data_call_their_parts_does_not_reach_the_terminal_raw(capsys):
    def main(arguments):
        raise flags.UsageError("it has caf\u00e9, \x1b]0;x\x07")

    assert flags.run(main, []) == 2
    assert capsys.readouterr().err == "error: it has caf\u00e9, \\x1b]0;x\\x07\n"


def test_ctrl_c_is_one_line_and_its_status(capsys):
    def main(arguments):
        raise KeyboardInterrupt

    assert flags.run(main, []) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_imports_are_frozen_while_a_command_runs():
    before, frozen = gc.get_freeze_count(), []
    assert flags.run(lambda _: frozen.append(gc.get_freeze_count()) or 0, []) == 0
    assert frozen[0] > before + 10_000
    assert gc.get_freeze_count() == before


def test_the_tilde_that_a_shell_leaves_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for of_flag in (flags.place, flags.local_path):
        assert os.fspath(of_flag("~/runs/one")) == "/home/someone/runs/one"
        assert not os.fspath(of_flag("~nobody-of-this-name/runs")).startswith("/home/someone")
    parser = flags.parser("test")
    parser.add_argument("--path")
    parser.add_argument("--query")
    words = ["--path=~/videos", "--query=", "--config.data.path=~/more", "--config.init.model", "~/run"]
    values, overrides = flags.parse(words, parser)
    assert (values.path, values.query) == ("/home/someone/videos", "")
    assert overrides == [("data.path", "/home/someone/more"), ("init.model", "/home/someone/run")]
    assert flags.parse(["--query=a ~/b", "--path=~x/y"], parser)[0].path == "~x/y"


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("letters", [1, 99_999])  # the latter are more than wait for the end
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_is_gone_changes_no_status(name, letters, flush):
    """In a process of its own: Python's last flush, at its end, makes a status too."""
    program = (
        "import sys; from jepa_jax import flags\n"
        f"def main(_): print('x' * {letters}, file=sys.{name}, flush={flush}); return 3\n"
        "sys.exit(flags.run(main, []))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, name: writer}
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", program], **streams, env=environ, timeout=120, check=False)
    os.close(writer)
    assert done.returncode == 3


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "utf-8"])
def test_a_letter_that_cannot_be_printed_ends_no_command(encoding, monkeypatch):
    """A laptop's terminal may have few letters; UTF-8 itself has none for the bytes of some files' names."""
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding))
    assert flags.run(lambda _: print("B\xe4r \U0001f642 \udce9") or 0, []) == 0
    assert b"\\udce9" in written.getvalue()


def test_results_that_a_full_disk_swallows_are_an_error(capfd, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert flags.run(lambda _: print("a table", file=full) or 0, []) == 1
    assert "error: standard output: " in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/demo/loss.png"),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        # As ArrayRecord and Orbax say it.
        RuntimeError(f"write() of {'x' * 999} failed: No space left on device\nmore"),
    ],
    ids=["full", "only to be read", "in a library's words"],
)
def test_a_disk_that_takes_nothing_more_is_one_sentence(error, capsys):
    def main(_):
        raise error

    assert flags.run(main, []) == 1
    told, reason = capsys.readouterr().err, getattr(error, "strerror", "No space left on device")
    assert told.startswith(f"error: writing failed ({reason}): ")
    assert told.count("\n") == 1
    assert str(error)[:9] in told


def test_any_other_error_is_not_hidden():
    with pytest.raises(FileNotFoundError):
        flags.run(lambda _: pathlib.Path("/no/such/file").read_text(), [])


@pytest.mark.parametrize(
    ("error", "sentence"), [(ValueError("one\ntwo"), "one"), (TimeoutError(), "TimeoutError")]
)
def test_an_error_is_told_by_its_first_line_or_where_it_has_none_its_name(error, sentence):
    with pytest.raises(flags.UsageError, match=f"^{sentence}$"), flags.as_usage_errors(ValueError, OSError):
        raise error
