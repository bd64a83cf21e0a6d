"""Parquet parts: whole or not there, and of one manifest."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jepa_jax.embeddings import table
from jepa_jax.embeddings.collection import LeftOut
from jepa_jax.embeddings.table import Manifest, Row, Rows
from jepa_jax.flags import UsageError

MANIFEST = Manifest(
    dataset="d",
    path=None,
    split="s",
    source="1",
    query="q",
    model="m",
    frames=4,
    size=3,
    rows=11,
    part_rows=5,
)
EMBEDDINGS = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)


def write(folder, part, manifest=MANIFEST):
    """The part's rows, of which the collection's third is left out."""
    rows = [row for row in manifest.rows_of(part) if row != 2]
    metadata = [json.dumps({"n": row}) for row in rows]
    left_out = [LeftOut("name 2", "no frames")] if 2 in manifest.rows_of(part) else []
    names = [f"name {row}" for row in rows]
    table.write_part(folder, part, manifest, rows, names, EMBEDDINGS[rows], metadata, left_out)


def test_what_is_written_is_read(tmp_path):
    table.open_folder(tmp_path, MANIFEST)
    for part in range(3):
        write(tmp_path, part)
    assert table.read_manifest(tmp_path) == MANIFEST
    assert table.missing_parts(tmp_path, MANIFEST) == []
    kept = [row for row in range(11) if row != 2]
    found = list(table.embeddings_of(tmp_path, MANIFEST))
    assert [len(part) for part in found] == [4, 5, 1]
    np.testing.assert_array_equal(np.concatenate(found), EMBEDDINGS[kept])
    rows = Rows(tmp_path, MANIFEST)
    assert [rows[i] for i in range(len(rows))] == [Row(r, f"name {r}", {"n": r}) for r in kept]
    assert table.left_out_of(tmp_path, 0) == [LeftOut("name 2", "no frames")]
    assert table.left_out_of(tmp_path, 1) == []
    schema = pq.read_schema(table.part_path(tmp_path, 0))
    assert schema.field("embedding").type == pa.list_(pa.float32(), 3)


def test_unfinished_damaged_and_foreign_parts_are_missing(tmp_path):
    table.open_folder(tmp_path, MANIFEST)
    write(tmp_path, 0)
    write(tmp_path, 1)
    path = table.part_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-20])
    write(tmp_path, 2, dataclasses.replace(MANIFEST, query="another"))
    path.with_name("part-000001.parquet.tmp").write_bytes(b"half a part")
    assert table.missing_parts(tmp_path, MANIFEST) == [0, 2]


def test_a_flipped_bit_is_noticed(tmp_path):
    table.open_folder(tmp_path, MANIFEST)
    for part in range(3):
        write(tmp_path, part)
    path = table.part_path(tmp_path, 1)
    content = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(2)
    assert column.path_in_schema.startswith("embedding")
    content[column.data_page_offset + column.total_compressed_size - 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is damaged: delete it"):
        list(table.embeddings_of(tmp_path, MANIFEST))


def test_a_folder_of_other_embeddings_is_refused(tmp_path):
    table.open_folder(tmp_path, MANIFEST)
    table.open_folder(tmp_path, MANIFEST)
    with pytest.raises(UsageError, match=r"holds other embeddings \(query 'q', and here it is 'other'\)"):
        table.open_folder(tmp_path, dataclasses.replace(MANIFEST, query="other"))
    with pytest.raises(UsageError, match="is of the collection before it changed"):
        table.open_folder(tmp_path, dataclasses.replace(MANIFEST, source="2"))


def changed(**fields) -> str:
    return json.dumps(dataclasses.asdict(MANIFEST) | fields)


@pytest.mark.parametrize(
    "content",
    [
        *(None, "{", "{}", "[1]", changed(part_rows=0), changed(rows=None)),
        *(changed(rows=-1), changed(size=1.5), changed(unknown=1)),
    ],
)
def test_what_is_no_folder_of_embeddings_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "embeddings.json").write_text(content)
    with pytest.raises(UsageError, match="holds no embeddings" if content is None else "is damaged"):
        table.read_manifest(tmp_path)
