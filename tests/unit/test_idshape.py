"""Ids as PostgreSQL's tables have them, and which of them can be loaded."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.idshape import CAUSE, IDS_A_PARTITION, SAMPLE, partitions_of, refusal, shape_of

RNG = np.random.default_rng(7)
MANY = 20_000
DENSE = np.arange(5_000_000_000, 5_000_000_000 + MANY, dtype=np.int64)
SNOWFLAKES = 41_943_040 * np.arange(1, MANY + 1, dtype=np.int64) + 2**60
RANDOM = RNG.integers(-(2**63), 2**63 - 1, MANY, dtype=np.int64)

SHAPES: dict[str, tuple[NDArray[np.int64], str]] = {
    "dense": (DENSE, "dense"),
    "negative": (-DENSE, "dense"),
    "around zero": (np.arange(-10_000, 10_000, dtype=np.int64), "dense"),
    "one outlier": (np.append(DENSE, 2**63 - 1), "dense"),
    "two outliers": (np.append(DENSE, [2**63 - 1, -(2**63)]), "dense"),
    "gaps of a thousand": (np.arange(MANY, dtype=np.int64) * 1000, "gaps"),
    "gaps of a million": (np.arange(MANY, dtype=np.int64) * 1_000_000, "scattered"),
    "gaps of fifty": (np.arange(MANY, dtype=np.int64) * 50, "gaps"),
    "sixteen interleaved ranges": (np.arange(MANY, dtype=np.int64) % 16 * 10**12 + np.arange(MANY) // 16, "dense"),
    "snowflakes": (SNOWFLAKES, "scattered"),
    "random": (RANDOM, "scattered"),
    "few snowflakes": (SNOWFLAKES[:100], "gaps"),
    "one": (DENSE[:1], "dense"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_what_becomes_of_them(name: str) -> None:
    ids, word = SHAPES[name]
    shape = shape_of(RNG.permutation(ids))
    assert shape is not None
    assert shape.word == word
    told = refusal("impressions", shape)
    assert bool(told) == (word == "scattered")
    if told:
        assert told.startswith("impressions: ")
        assert CAUSE in told
        assert f"{len(ids):,} rows lie in {len(shape.partitions):,} ranges" in told
    assert shape.first == ids.min()
    assert shape.last == ids.max()


def test_partitions_are_those_of_integer_division_towards_zero() -> None:
    ids = np.array(
        [-(2**63), -IDS_A_PARTITION - 1, -IDS_A_PARTITION, -1, 0, 1, IDS_A_PARTITION, 2**63 - 1], dtype=np.int64
    )
    assert partitions_of(ids).tolist() == [
        int(abs(int(one)) // IDS_A_PARTITION * (-1 if one < 0 else 1)) for one in ids.tolist()
    ]


def test_rows_in_partitions_that_are_there_are_never_refused() -> None:
    # A few rows of each part of a large dense table are updated.
    shape = shape_of(np.arange(2000, dtype=np.int64) * IDS_A_PARTITION)
    assert shape is not None
    assert refusal("clicks", shape)
    assert not refusal("clicks", shape, set(range(2500)), 2500 * IDS_A_PARTITION)


def test_scattered_ids_do_not_creep_in_by_small_windows() -> None:
    loaded: set[int] = set()
    for number in range(MANY // 100):
        shape = shape_of(SNOWFLAKES[number * 100 : number * 100 + 100])
        assert shape is not None
        if refusal("clicks", shape, loaded, len(loaded)):
            break
        loaded |= shape.partitions
    assert 900 <= len(loaded) <= 1000


def test_nothing_has_no_shape() -> None:
    assert shape_of(np.array([], dtype=np.int64)) is None
    assert SAMPLE >= 10_000
