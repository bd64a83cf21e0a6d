"""Annotation files that are missing, damaged or of another form: one sentence each."""

import pytest
from pydantic import BaseModel

from jepa_jax.evaluation import annotations
from jepa_jax.evaluation.benchmarks import BENCHMARKS
from jepa_jax.flags import UsageError
from tests.evaluation.fake import FIXTURES


class Row(BaseModel):
    name: str
    count: int


def test_rows_in_every_form(tmp_path):
    forms = {
        "list.json": '[{"name": "a", "count": 1}, {"name": "b", "count": 2}]',
        "lines.json": '{"name": "a", "count": 1}\n\n{"name": "b", "count": 2}\n',
        "object.json": '{"0": {"name": "a", "count": 1}, "1": {"name": "b", "count": 2}}',
        "spread.json": '{\n "0": {\n  "name": "a",\n  "count": 1},\n "1": {"name": "b", "count": 2}\n}',
        "table.csv": 'name,count,other\na,1,x\n"b",2,y\n',
        "table.tsv": "name\tcount\na\t1\nb\t2\n",
    }
    for file, text in forms.items():
        (tmp_path / file).write_text("\N{BOM}" * (file == "table.csv") + text)
        read = annotations.read_table if file.startswith("table") else annotations.read_rows
        assert read(tmp_path / file, Row) == [Row(name="a", count=1), Row(name="b", count=2)], file


def test_a_single_line_is_a_row(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"name": "a", "count": 1}\n')
    assert annotations.read_rows(tmp_path / "one.jsonl", Row) == [Row(name="a", count=1)]


def test_line_separators_inside_of_texts_part_nothing(tmp_path):
    text = "one\N{LINE SEPARATOR}two\x85three"
    (tmp_path / "rows.jsonl").write_text(f'{{"name": "{text}", "count": 1}}\n' * 2)
    assert annotations.read_rows(tmp_path / "rows.jsonl", Row) == [Row(name=text, count=1)] * 2
    (tmp_path / "rows.csv").write_text(f'name,count\n"{text}\nfour",1\n')
    assert annotations.read_table(tmp_path / "rows.csv", Row) == [Row(name=f"{text}\nfour", count=1)]
    (tmp_path / "rows.txt").write_text(f"# {text}\r\n{text}\r\n\n")
    assert annotations.read_text_lines(tmp_path / "rows.txt") == [text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"name": "a"}]', r"at 0.count, field required"),
        ('[{"name": 3, "count": 1}]', r"at 0.name, input should be a valid string"),
        ('[{"name": "a", "count": 1},', r"is not JSON"),
        ('{"name": "a", "count": 1}\n{"name": }\n', r", line 2, is not JSON"),
        ('"text"', r"at the whole, input should be a valid list"),
        ("", r"is not JSON"),
        ("[" * 100_000, r"is not JSON"),
        ('[{"name": "a", "count": ' + "1" * 5000 + "}]", r"is not JSON"),
    ],
)
def test_another_form_is_one_sentence_that_says_where(text, message, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        annotations.read_rows(file, Row)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_what_is_no_text_or_too_large_is_refused(tmp_path, monkeypatch):
    (tmp_path / "binary.json").write_bytes(b"[\xff\xfe]")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 1\)"):
        annotations.read_rows(tmp_path / "binary.json", Row)
    monkeypatch.setattr(annotations, "MAX_BYTES", 3)
    with pytest.raises(UsageError, match="has 4 bytes"):
        annotations.read_rows(tmp_path / "binary.json", Row)


def test_a_table_with_other_columns_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("name,number\na,1\n")
    with pytest.raises(UsageError, match=r"at 0.count, field required"):
        annotations.read_table(tmp_path / "t.csv", Row)


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "test.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UsageError, match="is not a Parquet file"):
        annotations.read_parquet(tmp_path / "test.parquet", Row)


def test_files_are_found_by_their_official_names(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").touch()
    (tmp_path / "b.json").touch()
    assert annotations.locate(tmp_path, "a.json") == tmp_path / "annotations" / "a.json"
    assert annotations.locate(tmp_path / "b.json", "z.json", "a.json").name == "a.json"
    assert annotations.main_file(tmp_path / "b.json", "a.json").name == "b.json"
    with pytest.raises(UsageError, match=r"no x.json or y.json in .*: give --annotations the folder"):
        annotations.locate(tmp_path, "x.json", "y.json")


@pytest.mark.parametrize("task", BENCHMARKS)
def test_every_task_names_a_file_that_is_missing(task, tmp_path):
    with pytest.raises(UsageError, match=r"^no .*\.(json|jsonl|csv|tsv|txt|parquet)( or .*)? in .*: give"):
        BENCHMARKS[task].read(tmp_path, BENCHMARKS[task].splits[0])


# Files whose content the readers check: the first of each task, and others that some also read.
DAMAGED = [
    ("ssv2", "ssv2", "labels.json"),
    ("ssv2", "ssv2", "validation.json"),
    ("kinetics_400", "kinetics", "val.csv"),
    ("epic_kitchens_100", "epic", "EPIC_100_noun_classes_v2.csv"),
    ("epic_kitchens_100", "epic", "EPIC_100_validation.csv"),
    ("egoexo4d", "egoexo4d", "takes.json"),
    ("coin_sr", "coin", "COIN.json"),
    ("crosstask_sr", "crosstask", "tasks_primary.txt"),
    ("crosstask_sr", "crosstask", "videos_val.csv"),
    ("crosstask_sr", "crosstask", "annotations/71001_ctVideo_001.csv"),
    ("msr_vtt", "msr_vtt", "MSRVTT_JSFUSION_test.csv"),
    ("msr_vtt_captions", "msr_vtt", "test_videodatainfo.json"),
    ("activitynet", "activitynet", "val_1.json"),
    ("didemo", "didemo", "test_data.json"),
    ("youcook2", "youcook2", "youcookii_annotations_trainval.json"),
    ("pvd_bench", "pvd", "test.jsonl"),
    ("dream_1k", "dream", "metadata.json"),
    ("vdc_1k", "vdc", "VDC_1k.jsonl"),
    ("gqa", "gqa", "testdev_balanced_questions.json"),
    ("tallyqa", "tallyqa", "test.json"),
    ("pope", "pope", "coco_pope_popular.json"),
    ("sugarcrepe_pp", "sugarcrepe", "replace_rel.json"),
    ("visla", "visla", "VSR_spatial.tsv"),
    ("world_prediction_wm", "world", "worldprediction_wm.jsonl"),
]


@pytest.mark.parametrize(("task", "fixture", "damaged"), DAMAGED, ids=[case[2] for case in DAMAGED])
def test_a_file_of_another_form_is_named(task, fixture, damaged, tmp_path):
    for file in (FIXTURES / fixture).rglob("*.*"):
        copy = tmp_path / file.relative_to(FIXTURES / fixture)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    text = '[{"unexpected": [1]}]' if "json" in damaged.rpartition(".")[2] else "unexpected\n1\n"
    (tmp_path / damaged).write_text(text)
    with pytest.raises(UsageError, match="not of the form expected") as caught:
        BENCHMARKS[task].read(tmp_path, BENCHMARKS[task].splits[0])
    assert damaged in str(caught.value)
    assert "\n" not in str(caught.value)
