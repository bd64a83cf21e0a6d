"""What all sources promise, as a fixture: `keeps_promises(source)`."""

import pickle
from concurrent import futures

import pytest

from jepa_jax.data.records import BadRecordError

from .making import cause_of, same


def _keeps_promises(source) -> None:
    names = [source.name(i) for i in range(len(source))]
    assert len(set(names)) == len(names)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity
    assert [str(error) for error in copy.skipped] == [str(error) for error in source.skipped]
    with pytest.raises(IndexError):
        source[len(source)]
    good = [i for i in range(len(source)) if cause_of(source, i) is None]
    with futures.ThreadPoolExecutor(4) as pool:
        records = list(pool.map(source.__getitem__, good * 3))
    for i, record in zip(good * 3, records, strict=True):
        assert same(record, copy[i])
        assert record.name == names[i]
        assert record.pairs == source.pairs(i)
    for i in set(range(len(source))) - set(good):
        with pytest.raises(BadRecordError) as caught:
            copy[i]
        assert pickle.loads(pickle.dumps(caught.value)).cause == caught.value.cause


@pytest.fixture
def keeps_promises():
    return _keeps_promises
