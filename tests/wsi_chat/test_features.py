"""features.zarr: what a run keeps of the model's image features, through kills, damage and changes of mind."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsi_chat
from wsi_chat.analysis.feature_store import FeatureStore, read_features
from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.engines import EngineCrashed, Fault, ScriptedEngine, SupervisedEngine
from wsi_chat.errors import EngineDied, OutputError, SettingError
from wsi_chat.schema import Query, Report

STORE = "features.zarr"
OF = {"fingerprint": "fp", "model": "m@1", "kind": "patch-mean-1"}
WIDTH = 5


def says(query: Query) -> str | dict[str, float]:
    """Darker fields are more abnormal; detailed fields have nothing."""
    if query.task == "screen":
        p = 1 - float(np.asarray(query.images[0]).mean()) / 255
        return {query.choices[0]: 1 - p, query.choices[1]: p}
    return f"No {query.target} is found." if query.task == "ground" else "Cells on a bright field."


def seen_in(image: Any) -> np.ndarray:
    """Features that tell one picture from another."""
    pixels = np.asarray(image, dtype=np.float64)
    moments = [pixels.mean(), pixels.std(), *pixels[::7, ::5].reshape(-1, 3).mean(axis=0)]
    return np.array(moments, dtype=np.float32)


class Seeing(ScriptedEngine):
    """A scripted engine with image features; ``looked`` counts the pictures, ``breaks`` says what goes wrong when."""

    def __init__(self, script: Any = says, *, breaks: dict[int, Exception] | None = None, **more: Any) -> None:
        super().__init__(script, **more)
        self.looked: list[bytes] = []
        self.calls = 0
        self._breaks = breaks or {}

    def image_features(self, images: Any) -> np.ndarray:
        self.calls += 1
        if self.calls - 1 in self._breaks:
            raise self._breaks.pop(self.calls - 1)
        self.looked += [image.tobytes() for image in images]
        return np.stack([seen_in(image) for image in images])


def analyze(slide: Path, out: Path, engine: Any, **more: Any) -> wsi_chat.SlideResult:
    quick = {"top_k": 0, "adequacy_tiles": 0, "pdf": False, "html": False, "gallery": 0}
    return wsi_chat.analyze(slide, out=out, engine=engine, **{**quick, **more})


def stored(result: wsi_chat.SlideResult) -> dict[int, np.ndarray]:
    """Tile index -> its row, for every tile of the run."""
    index = result.tiles["index"].to_pylist()
    rows = read_features(result.files, result.report).read(np.array(index))
    return dict(zip(index, rows, strict=True))


def comparable(report: Report) -> dict[str, Any]:
    """The report but for its timings and the setting that is compared."""
    data = report.model_dump(mode="json", exclude={"timings"})
    data["provenance"]["config"].pop("features")
    return data


# ------------------------------------------------------------------------------------- the store


@settings(deadline=None, max_examples=25)
@given(
    blocks=st.lists(st.lists(st.integers(0, 599), min_size=1, max_size=80, unique=True), max_size=6),
    reopened=st.integers(0, 5),
)
def test_what_is_put_is_read_whatever_the_order_and_the_rest_is_nan(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[int]], reopened: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = FeatureStore(SlideFolder(folder), of=OF, tiles=600, width=WIDTH)
    expected = np.full((600, WIDTH), np.nan, dtype=np.float32)
    rng = np.random.default_rng(0)
    for number, block in enumerate(blocks):
        if number == reopened:
            store.flush()
            store = FeatureStore(SlideFolder(folder), of=OF, tiles=600, width=WIDTH)
        new = [tile for tile in block if tile not in store]
        rows = rng.normal(0, 1e5, (len(new), WIDTH)).astype(np.float32)
        expected[new] = rows
        store.put(new, rows)
    store.flush()
    again = FeatureStore(SlideFolder(folder), of=OF, tiles=600, width=WIDTH)
    np.testing.assert_array_equal(again.read().read(np.arange(600)), expected)
    assert [tile in again for tile in range(600)] == np.isfinite(expected[:, 0]).tolist()


def test_rows_that_are_not_numbers_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(SlideFolder(tmp_path), of=OF, tiles=4, width=2)
    store.put([0, 1, 2], np.array([[1, 2], [np.inf, 0], [3, np.nan]], dtype=np.float32))
    assert [tile in store for tile in range(4)] == [True, False, False, False]
    assert np.isnan(store.read().read(np.array([1, 2, 3]))).all()
    assert "2 tiles are not all numbers" in caplog.text


@pytest.mark.parametrize("harm", ["cut chunk", "flipped chunk", "cut attributes", "no array", "a file"])
def test_a_damaged_store_is_set_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    store = FeatureStore(SlideFolder(tmp_path), of=OF, tiles=400, width=WIDTH)
    store.put(list(range(400)), np.ones((400, WIDTH), dtype=np.float32))
    store.flush()
    chunk = next(path for path in (tmp_path / STORE / "features" / "c").rglob("*") if path.is_file())
    if harm == "cut chunk":
        chunk.write_bytes(chunk.read_bytes()[:-9])
    elif harm == "flipped chunk":
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 0x40
        chunk.write_bytes(bytes(data))
    elif harm == "cut attributes":
        path = tmp_path / STORE / "zarr.json"
        path.write_text(path.read_text()[:50])
    elif harm == "no array":
        (tmp_path / STORE / "features" / "zarr.json").unlink()
    else:
        (tmp_path / STORE).rename(tmp_path / "old")
        (tmp_path / STORE).write_bytes(b"not a folder")
    with caplog.at_level(logging.WARNING):
        again = FeatureStore(SlideFolder(tmp_path), of=OF, tiles=400, width=WIDTH)
    assert f"{STORE} is damaged" in caplog.text
    assert (tmp_path / f"{STORE}.damaged-1").exists()
    assert not any(tile in again for tile in range(400)), "all is computed anew"


def test_features_of_another_model_or_scan_are_moved_aside_and_not_mixed(tmp_path: Path) -> None:
    store = FeatureStore(SlideFolder(tmp_path), of=OF, tiles=10, width=WIDTH)
    store.put([1], np.ones((1, WIDTH), dtype=np.float32))
    store.flush()
    for other, width in (({**OF, "model": "m@2"}, WIDTH), ({**OF, "fingerprint": "x"}, WIDTH), (OF, 3)):
        fresh = FeatureStore(SlideFolder(tmp_path), of=other, tiles=10, width=width)
        assert 1 not in fresh
        assert (tmp_path / "superseded" / STORE).is_dir()


def test_an_unwritable_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(SlideFolder(tmp_path), of=OF, tiles=10, width=WIDTH)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(store._array), "set_orthogonal_selection", full)
    store.put([1], np.ones((1, WIDTH), dtype=np.float32))
    with pytest.raises(OutputError, match=rf"{STORE}: cannot be written \(No space left"):
        store.flush()


WRITER = """
import sys
import numpy as np
from pathlib import Path
from wsi_chat.analysis.feature_store import FeatureStore
from wsi_chat.analysis.run_folder import SlideFolder
import wsi_chat.analysis.feature_store as features
features.BLOCK_BYTES = 4000
of = {"fingerprint": "fp", "model": "m@1", "kind": "k"}
store = FeatureStore(SlideFolder(Path(sys.argv[1])), of=of, tiles=5000, width=50)
print("ready", flush=True)
for start in range(0, 5000, 10):
    tiles = [tile for tile in range(start, start + 10) if tile not in store]
    if tiles:
        store.put(tiles, np.repeat(np.array(tiles, dtype=np.float32)[:, None], 50, axis=1))
store.flush()
"""


def test_a_writer_that_is_killed_leaves_whole_rows_and_the_next_one_goes_on(tmp_path: Path) -> None:
    of = {"fingerprint": "fp", "model": "m@1", "kind": "k"}
    before = 0
    for delay in (0.02, 0.08):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = FeatureStore(SlideFolder(tmp_path), of=of, tiles=5000, width=50)
        kept = [tile for tile in range(5000) if tile in store]
        rows = store.read().read(np.array(kept, dtype=np.intp))
        np.testing.assert_array_equal(rows, np.repeat(np.array(kept)[:, None], 50, axis=1))
        assert len(kept) >= before, "nothing stored is lost"
        before = len(kept)
    assert not list(tmp_path.rglob("*.damaged*"))
    assert not list((tmp_path / STORE).rglob("*.partial"))


# ------------------------------------------------------------------------------------- the run


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """Overviews and heatmaps are not looked at here, and take longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsi_chat.analysis.outputs.draw_pictures", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def whole(small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> wsi_chat.SlideResult:
    """A run with features that nothing disturbed."""
    return analyze(small_slide, tmp_path_factory.mktemp("whole"), Seeing(), features=True)


def test_features_change_nothing_else_of_a_run(small_slide: Path, tmp_path: Path, whole: wsi_chat.SlideResult) -> None:
    plain = analyze(small_slide, tmp_path, ScriptedEngine(says))
    assert whole.tiles["p_screen"].to_pylist() == plain.tiles["p_screen"].to_pylist()
    assert comparable(whole.report) == comparable(plain.report)
    assert {path.name for path in whole.folder.iterdir()} - {path.name for path in plain.folder.iterdir()} == {STORE}


def test_every_tile_is_looked_at_once_and_its_row_is_its_picture(small_slide: Path, tmp_path: Path) -> None:
    engine = Seeing(batch=7)
    result = analyze(small_slide, tmp_path, engine, features=True)
    shown = {query.tile_id: query.images[0] for query in engine.asked}
    rows = stored(result)
    assert len(rows) == len(shown) == result.report.funnel.screened
    for index, row in rows.items():
        np.testing.assert_array_equal(row, seen_in(shown[f"t{index:06d}"]))
    looked = engine.looked[1:]  # the first one is blank, to learn the width
    assert Counter(looked) == Counter(image.tobytes() for image in shown.values())
    data = json.loads((result.folder / STORE / "zarr.json").read_text())["attributes"]
    assert data["model"] == "scripted@0"
    assert len(data["names"]) == WIDTH


def test_a_second_run_neither_asks_nor_looks(small_slide: Path, tmp_path: Path) -> None:
    analyze(small_slide, tmp_path, Seeing(), features=True)
    engine = Seeing()
    again = analyze(small_slide, tmp_path, engine, features=True)
    assert engine.asked == []
    assert len(engine.looked) == 1, "the blank picture that tells the width"
    assert len(stored(again)) == again.report.funnel.screened


def test_features_wanted_later_are_looked_at_without_asking(
    small_slide: Path, tmp_path: Path, whole: wsi_chat.SlideResult
) -> None:
    plain = analyze(small_slide, tmp_path, ScriptedEngine(says))
    with pytest.raises(SettingError, match=r"holds no image features") as raised:
        read_features(plain.files, plain.report)
    assert "--features" in raised.value.hint
    engine = Seeing(batch=4)
    later = analyze(small_slide, tmp_path, engine, features=True)
    assert engine.asked == []
    found, expected = stored(later), stored(whole)
    assert found.keys() == expected.keys()
    for index in found:
        np.testing.assert_array_equal(found[index], expected[index])


def test_a_damaged_store_is_computed_anew_without_asking(
    small_slide: Path, tmp_path: Path, whole: wsi_chat.SlideResult, caplog: pytest.LogCaptureFixture
) -> None:
    first = analyze(small_slide, tmp_path, Seeing(), features=True)
    chunk = next(path for path in (first.folder / STORE / "features" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(OutputError, match="cannot be read"):
        stored(first)
    engine = Seeing()
    again = analyze(small_slide, tmp_path, engine, features=True)
    assert engine.asked == []
    assert "is damaged" in caplog.text
    assert comparable(again.report) == comparable(first.report)
    expected = stored(whole)
    for index, row in stored(again).items():
        np.testing.assert_array_equal(row, expected[index])


def test_tiles_that_have_no_answer_have_no_features(small_slide: Path, tmp_path: Path) -> None:
    engine = Seeing(faults=[Fault(at=2, kind="fail"), Fault(at=5, kind="refuse")])
    result = analyze(small_slide, tmp_path, engine, features=True)
    lost = {row["index"] for row in result.tiles.to_pylist() if row["status"] == "screen_failed"}
    assert len(lost) == 2
    for index, row in stored(result).items():
        assert np.isnan(row).all() == (index in lost)


def test_a_tile_that_cannot_be_looked_at_is_nan_and_tried_again(
    small_slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from wsi_chat.errors import EngineError

    engine = Seeing(breaks={3: EngineError("for a test")})
    first = analyze(small_slide, tmp_path, engine, features=True)
    lost = [index for index, row in stored(first).items() if np.isnan(row).any()]
    assert len(lost) == 1
    assert "1 screened tiles have no image features" in caplog.text
    again = Seeing()
    second = analyze(small_slide, tmp_path, again, features=True)
    assert again.asked == []
    assert len(again.looked) == 2
    assert np.isfinite(np.stack(list(stored(second).values()))).all()


def test_views_keep_the_features_of_the_whole_tile(
    small_slide: Path, tmp_path: Path, whole: wsi_chat.SlideResult
) -> None:
    engine = Seeing(batch=8)
    result = analyze(small_slide, tmp_path, engine, features=True, views="quadrants", contrast="blank", limit=9)
    assert result.report.funnel.screened == 9
    expected = stored(whole)
    for index, row in stored(result).items():
        np.testing.assert_array_equal(row, expected[index])
    assert len(engine.looked) == 10


def test_features_of_another_tiling_are_not_read_as_this_one(small_slide: Path, tmp_path: Path) -> None:
    analyze(small_slide, tmp_path, Seeing(), features=True)
    other = analyze(small_slide, tmp_path, ScriptedEngine(says), overlap=0.0)
    with pytest.raises(SettingError, match=r"are not those of its report: overlap 0\.25, and not 0\.0"):
        read_features(other.files, other.report)


def test_an_engine_without_features_is_named_before_anything_is_asked(small_slide: Path, tmp_path: Path) -> None:
    for engine in (ScriptedEngine(says), SupervisedEngine(lambda: ScriptedEngine(says))):
        with pytest.raises(SettingError, match="--features: the scripted engine gives no image features"):
            analyze(small_slide, tmp_path, engine, features=True)
    assert not list(tmp_path.glob("*/journal.sqlite"))
    with pytest.raises(SettingError, match="--features: the openai engine gives no image features") as raised:
        analyze(small_slide, tmp_path, None, features=True, base_url="http://127.0.0.1:9/v1", dialect="qwen3-vl")
    assert "--engine transformers" in raised.value.hint


# ------------------------------------------------------------------------------------- crashes and kills


@pytest.mark.parametrize("call", [1, 4, 9])
@pytest.mark.parametrize("known", [False, True])
def test_an_engine_that_dies_over_a_picture_is_restarted_and_nothing_is_lost(
    small_slide: Path, tmp_path: Path, whole: wsi_chat.SlideResult, call: int, known: bool
) -> None:
    """Whether it was asked for the features between two answers or while the next question was being made."""
    if known:
        analyze(small_slide, tmp_path, ScriptedEngine(says, batch=2), limit=20)
    engines = [Seeing(breaks={call: EngineCrashed("for a test")}, batch=2), Seeing(batch=2)]
    left = list(engines)

    class Strict(SupervisedEngine):
        """Notices an engine that is asked after it was closed."""

    supervised = Strict(lambda: left.pop(0))
    for engine in engines:
        engine.answer = _refusing_after_close(engine)  # type: ignore[method-assign]
    result = analyze(small_slide, tmp_path, supervised, features=True)
    assert result.report.funnel.screen_failed == 0
    assert comparable(result.report) == comparable(whole.report)
    expected = stored(whole)
    for index, row in stored(result).items():
        np.testing.assert_array_equal(row, expected[index])


def _refusing_after_close(engine: Seeing) -> Any:
    answer = Seeing.answer

    def guarded(queries: Any) -> Any:
        for said in answer(engine, queries):
            assert not engine.closed, "a closed engine answered"
            yield said

    return guarded


def test_an_engine_that_dies_twice_over_pictures_keeps_what_was_stored(small_slide: Path, tmp_path: Path) -> None:
    engines = [Seeing(breaks={6: EngineCrashed("one")}), Seeing(breaks={0: EngineCrashed("two")})]
    left = list(engines)
    with pytest.raises(EngineDied):
        analyze(small_slide, tmp_path, SupervisedEngine(lambda: left.pop(0)), features=True)
    answered = {query.key for engine in engines for query in engine.asked}
    seen = len(engines[0].looked) - 1
    assert seen > 3
    fresh = Seeing()
    result = analyze(small_slide, tmp_path, fresh, features=True)
    assert len(fresh.looked) - 1 == result.report.funnel.screened - seen
    assert len(answered & {query.key for query in fresh.asked}) <= 1, "only what was in flight"


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[4])
import wsi_chat.analysis.feature_store as features
features.BLOCK_BYTES = 60
from test_features import Seeing, analyze, says

class Slow(Seeing):
    def image_features(self, images):
        with open(sys.argv[3], "a") as log:
            log.writelines("look\\n" for _ in images)
        time.sleep(0.01)
        return super().image_features(images)

def slowly(query):
    with open(sys.argv[3], "a") as log:  # what was asked, written before the answer is given
        log.write(query.key + "\\n")
    return says(query)

analyze(sys.argv[1], sys.argv[2], Slow(slowly), features=True)
"""


def test_runs_killed_at_any_instant_end_with_the_same_features_and_no_tile_asked_twice(
    small_slide: Path, tmp_path: Path, whole: wsi_chat.SlideResult
) -> None:
    total = whole.report.funnel.screened
    log, out = tmp_path / "asked.txt", tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(small_slide), str(out), str(log), str(Path(__file__).parent)]
    kills = 0
    for wanted in (total // 3, total):
        process = subprocess.Popen(command)
        while process.poll() is None and (not log.exists() or len(log.read_text().split()) < wanted):
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    final = analyze(small_slide, out, last := Seeing(), features=True)
    lines = Counter(log.read_text().split())
    lines.pop("look")
    asked = lines + Counter(query.key for query in last.asked)
    assert len(asked) == total
    assert sum(asked.values()) <= total + kills
    assert comparable(final.report) == comparable(whole.report)
    expected = stored(whole)
    for index, row in stored(final).items():
        np.testing.assert_array_equal(row, expected[index])
