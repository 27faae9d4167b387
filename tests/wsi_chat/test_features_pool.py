"""Image features through several engine processes: each picture where it was shown, and none lost with a process."""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsi_chat
from wsi_chat.analysis.feature_store import read_features
from wsi_chat.engines import Engine
from wsi_chat.engines.engine_pool import EnginePool
from wsi_chat.errors import SettingError

WORKERS = """
    import hashlib, os
    from pathlib import Path
    import numpy as np
    from wsi_chat.engines import EngineCrashed, ScriptedEngine

    class Looking(ScriptedEngine):
        "Writes down each picture that it looks at; dies over the n-th while the file `once` is absent."
        log, dies, once, count = "", -1, "", 0

        def image_features(self, images):
            for image in images:
                if self.count == self.dies and not Path(self.once).exists():
                    Path(self.once).touch()
                    raise EngineCrashed("for a test")
                self.count += 1
                with open(self.log, "a") as file:
                    file.write(f"{os.getpid()} {hashlib.sha256(image.tobytes()).hexdigest()}\\n")
            pixels = [np.asarray(image, dtype=np.float64) for image in images]
            return np.array([[p.mean(), p.std(), p[0, 0, 0]] for p in pixels], dtype=np.float32)

    def start(log, dies=-1, once="", plain=False):
        def say(query):
            p = 1 - float(np.asarray(query.images[0]).mean()) / 255
            return {query.choices[0]: 1 - p, query.choices[1]: p}
        if plain:
            return ScriptedEngine(say, batch=3)
        engine = Looking(say, batch=3)
        engine.log, engine.dies, engine.once = log, dies, once
        return engine
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], Engine]]:
    """Makes start functions that a new process can import."""
    (tmp_path / "features_pool_workers.py").write_text(textwrap.dedent(WORKERS), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import features_pool_workers  # type: ignore[import-not-found]

    return lambda **given: functools.partial(features_pool_workers.start, log=str(tmp_path / "looks"), **given)


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsi_chat.analysis.outputs.draw_pictures", lambda *_, **__: None)
        yield


def analyze(slide: Path, out: Path, engine: Any, **more: Any) -> wsi_chat.SlideResult:
    quick = {"top_k": 0, "adequacy_tiles": 0, "controls": False, "pdf": False, "html": False, "gallery": 0}
    return wsi_chat.analyze(slide, out=out, engine=engine, **{**quick, **more})


def rows_of(result: wsi_chat.SlideResult) -> np.ndarray:
    return read_features(result.files, result.report).read(np.array(result.tiles["index"].to_pylist()))


@pytest.mark.parametrize("dies", [-1, 0, 4])
def test_processes_give_what_one_engine_gives_and_look_once(
    small_slide: Path, tmp_path: Path, start: Any, dies: int
) -> None:
    alone = analyze(small_slide, tmp_path / "alone", start()(), features=True)
    (tmp_path / "looks").unlink()
    once = str(tmp_path / "once")
    pool = EnginePool([start(dies=dies, once=once), start()])
    try:
        shared = analyze(small_slide, tmp_path / "shared", pool, features=True)
        np.testing.assert_array_equal(rows_of(shared), rows_of(alone))
        assert shared.tiles["p_screen"].to_pylist() == alone.tiles["p_screen"].to_pylist()
        looks = [line.split() for line in (tmp_path / "looks").read_text().splitlines()]
        tiles = shared.report.funnel.screened
        if dies < 0:
            assert len(looks) == tiles + 1, "each once, and a blank one to learn the width"
            assert min(Counter(pid for pid, _ in looks).values()) > tiles // 5, "both of them"
        # what is known and not stored is looked at without a question
        before = len(looks)
        for path in (tmp_path / "shared").glob("*/features.zarr"):
            path.rename(tmp_path / "gone")
        again = analyze(small_slide, tmp_path / "shared", pool, features=True)
        assert again.report.timings.answers_new == 0
        np.testing.assert_array_equal(rows_of(again), rows_of(alone))
        assert len((tmp_path / "looks").read_text().splitlines()) == before + tiles + 1
    finally:
        pool.close()


def test_processes_whose_engines_give_none_say_so_before_anything_is_asked(
    small_slide: Path, tmp_path: Path, start: Any
) -> None:
    pool = EnginePool([start(plain=True), start(plain=True)])
    try:
        with pytest.raises(SettingError, match="the scripted engine gives no image features"):
            analyze(small_slide, tmp_path / "out", pool, features=True)
        plain = analyze(small_slide, tmp_path / "out", pool)
        assert plain.report.timings.answers_reused == 0
        assert plain.report.funnel.screened > 0, "the pool still answers"
    finally:
        pool.close()
