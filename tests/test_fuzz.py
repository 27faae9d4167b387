"""A quick slice of benchmarks.fuzz, the same in every run: damaged slides, files and texts end as they should."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.fuzz import parsers, pool, slides
from benchmarks.fuzz.__main__ import BAD
from benchmarks.fuzz.damage import as_json, damaged_tree
from benchmarks.fuzz.slide_seeds import make_slides

TARGETS = (
    "philips.tiff",
    "leica.scn",
    "hamamatsu.ndpi",
    "jpeg.tiff",
    "big-lzw.tiff",
    "ome-rgb.ome.tiff",
    "webp.tiff",
    "plain.jpg",
    "plain.png",
    "lossless.webp",
)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    make_slides(folder / "slides", None)
    return folder


@pytest.mark.filterwarnings("ignore")  # libraries warn of what is damaged
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_slide_is_refused_or_shown_as_it_is(seeds: Path, tmp_path: Path, name: str) -> None:
    case = slides.prepare(name, seeds)
    rows = [pool.attempt(case, random.Random(f"1/{name}/{n}"), n, tmp_path) for n in range(40)]
    assert [row for row in rows if row["outcome"] in BAD] == []
    assert len({row["outcome"] for row in rows}) > 1


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_a_damaged_text_is_read_or_refused(name: str) -> None:
    parsers.blind(name, 60, seed=1)


def test_a_case_is_the_same_every_time() -> None:
    made = [as_json(damaged_tree({"a": [1, {"b": "c"}]}, random.Random(seed))[0]) for seed in (*range(50), *range(50))]
    assert made[:50] == made[50:]
    assert len(set(made)) > 20


def test_a_crash_a_hang_and_an_error_cost_one_case_each() -> None:
    def case(rng: random.Random, number: int, scratch: Path) -> pool.Row:
        if number == 1:
            pool.os.abort()
        while number == 2:
            pass
        if number == 3:
            raise KeyError("x")
        return {}

    held = (
        bytearray(b"x") * pool.PEAK
    )  # a case answers for its own memory, not for that of the process it is forked from
    rows = list(pool.run(case, range(5), "test", hang=0.2))
    assert len(held) == pool.PEAK
    assert [row["outcome"] for row in rows] == ["ok", "abort", "hang", "untyped", "ok"]
