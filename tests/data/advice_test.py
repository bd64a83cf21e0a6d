"""Advice is given once, and only where it holds."""

import dataclasses

import pytest
from etils import epath

from jepa_jax.config import DataConfig
from jepa_jax.data.advice import Advisor, why_convert
from jepa_jax.data.records import BadRecordError, Media, Record
from tests.records import Records, example

CLIP = example(1)


def with_media(**fields) -> Record:
    return dataclasses.replace(CLIP, media=Media(**fields))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (CLIP, None),
        (with_media(content=b"film", kind="video"), None),
        (with_media(content=epath.Path("/here/a.mp4")), None),
        (with_media(content=epath.Path("gs://there/a.mp4")), "a remote store"),
        (with_media(content=epath.Path("/here/a.mp4"), start=3.0, end=9.0), "spans of longer videos"),
    ],
)
def test_a_conversion_pays_for_remote_files_and_spans(record, reason, caplog):
    source = Records([BadRecordError("media missing", "a"), record, CLIP])
    assert reason in why_convert(source) if reason else why_convert(source) is None
    Advisor(DataConfig(path="a"), [source])
    Advisor(DataConfig(path="a"), [source], tell=False)
    assert caplog.text.count("converting it once pays") == (reason is not None)


def test_waiting_is_told_once_and_not_of_the_first_steps(caplog):
    advisor = Advisor(DataConfig(), [Records([CLIP])])
    for share in [0.9] * 19 + [0.1]:
        advisor.after({"loss": 1.0, "data_wait": share})
    advisor.after({"loss": 1.0})
    assert not caplog.text
    advisor.after({"loss": 1.0, "data_wait": 0.4})
    advisor.after({"loss": 1.0, "data_wait": 0.5})
    assert [record.message[:40] for record in caplog.records] == ["40% of the time goes into waiting for da"]
