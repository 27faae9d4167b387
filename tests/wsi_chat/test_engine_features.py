"""Image features of the transformers engine: what the model itself gives, without a second look, beside screening."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsi_chat
from wsi_chat.analysis.feature_store import read_features
from wsi_chat.engines import EngineCrashed, SupervisedEngine, embedded_checkpoint
from wsi_chat.engines.protocol import FeatureEngine, feature_engine
from wsi_chat.errors import EngineError, SettingError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine() -> Any:
    from wsi_chat.engines.transformers import TransformersEngine

    return TransformersEngine(embedded_checkpoint(), name="embedded", batch_size=4)


def pictures(count: int, *, seed: int = 0, px: int = 256) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (px, px, 3), dtype=np.uint8)) for _ in range(count)]


class Counted:
    """Counts the pictures that pass through the vision tower, filling-up included."""

    def __init__(self, engine: Any, patch: pytest.MonkeyPatch) -> None:
        self.pictures = 0
        tower = engine._model.get_image_features

        def counting(values: Any, grids: Any, **more: Any) -> Any:
            self.pictures += len(grids)
            return tower(values, grids, **more)

        patch.setattr(engine._model, "get_image_features", counting)


def test_features_are_the_mean_of_what_the_vision_tower_gives(engine: Any) -> None:
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = embedded_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    shown = pictures(3)
    found = engine.image_features(shown)
    assert found.dtype == np.float32
    assert isinstance(engine, FeatureEngine)
    for image, row in zip(shown, found, strict=True):
        inputs = processor(images=[image], return_tensors="pt")
        with torch.inference_mode():
            output = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        tokens = output.pooler_output[0]
        assert tokens.shape == (64, found.shape[1]), "8 x 8 merged patches"
        np.testing.assert_allclose(row, tokens.mean(dim=0).numpy(), rtol=1e-4, atol=1e-4)
    assert np.ptp(found, axis=0).max() > 1e-3, "they differ from picture to picture"


def test_the_same_picture_has_the_same_features_whatever_is_beside_it(engine: Any) -> None:
    shown = pictures(7, seed=1)
    together = engine.image_features(shown)
    engine._features.clear()
    alone = np.concatenate([engine.image_features([image]) for image in reversed(shown)])[::-1]
    np.testing.assert_array_equal(alone, together)


def test_a_picture_of_another_size_is_taken(engine: Any) -> None:
    found = engine.image_features([*pictures(1, px=128), *pictures(1, px=200)])
    assert found.shape[0] == 2
    assert np.isfinite(found).all()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "gemma3", "paligemma", "internvl"])
def test_every_family_gives_features_that_tell_pictures_apart(tiny_checkpoint: Any, family: str) -> None:
    from wsi_chat.engines.transformers import TransformersEngine

    engine = TransformersEngine(tiny_checkpoint(family))
    first, second = pictures(2, px=112)
    found = engine.image_features([first, second, first])
    assert found.shape[0] == 3
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_a_run_looks_once_and_its_probabilities_are_the_same_to_the_last_bit(
    engine: Any, small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_chat.analysis.outputs.draw_pictures", lambda *_, **__: None)
    quick = {
        "top_k": 0,
        "adequacy_tiles": 0,
        "pdf": False,
        "html": False,
        "gallery": 0,
        "limit": 14,
        "dialect": "embedded",
    }
    seen = Counted(engine, monkeypatch)
    engine._features.clear()
    plain = wsi_chat.analyze(small_slide, out=tmp_path / "plain", engine=engine, **quick)
    once = seen.pictures
    assert once >= 14
    engine._features.clear()
    seen.pictures = 0
    kept = wsi_chat.analyze(small_slide, out=tmp_path / "kept", engine=engine, features=True, **quick)
    blank = engine._rows
    assert seen.pictures == once + blank, "one blank picture more, to learn the width"
    assert kept.tiles["p_screen"].to_pylist() == plain.tiles["p_screen"].to_pylist()
    # the features are of the picture that was asked about, as computed from it alone
    from wsi_chat.dialects.frame import fit

    index = kept.tiles["index"].to_pylist()
    rows = read_features(kept.files, kept.report).read(np.array(index))
    dialect_px = kept.report.provenance.tile_px
    engine._features.clear()
    from tilers import TileStream, find_foreground, open_slide, plan_tiles

    with open_slide(small_slide) as slide:
        plan = plan_tiles(
            slide, find_foreground(slide), tile_px=dialect_px, mpp=kept.report.provenance.tile_mpp,
            overlap=kept.report.provenance.overlap, limit=14,
        )  # fmt: skip
        with TileStream(slide, plan) as stream:
            shown = {patch.tile.index: fit(Image.fromarray(patch.pixels), (256, 256)) for patch in stream}
    np.testing.assert_array_equal(rows, engine.image_features([shown[i] for i in index]))


def test_what_goes_wrong_in_the_vision_tower_is_an_engine_error_or_a_crash(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for message, kind in (("strange shapes", EngineError), ("CUDA error: device-side assert", EngineCrashed)):

        def broken(*_: Any, said: str = message, **__: Any) -> Any:
            raise RuntimeError(said)

        engine._features.clear()
        with monkeypatch.context() as patch:
            patch.setattr(engine._model, "get_image_features", broken)
            with pytest.raises(kind, match=message.split(":")[0]) as raised:
                engine.image_features(pictures(1, seed=9))
        assert type(raised.value) is kind


def test_a_supervised_engine_gives_what_its_engine_gives_and_restarts_it_once() -> None:
    class One:
        name, model_name, model_id, lookahead = "one", "m", "m@1", 1

        def __init__(self, crash: bool) -> None:
            self.crash = crash

        def answer(self, queries: Any) -> Any:
            yield from ()

        def image_features(self, images: Any) -> np.ndarray:
            if self.crash:
                raise EngineCrashed("for a test")
            return np.full((len(images), 2), 7.0, dtype=np.float32)

        def close(self) -> None: ...

    left = [One(True), One(False)]
    supervised = SupervisedEngine(lambda: left.pop(0))
    assert feature_engine(supervised).image_features(pictures(3)).tolist() == [[7.0, 7.0]] * 3
    from wsi_chat.engines import ScriptedEngine

    plain = SupervisedEngine(lambda: ScriptedEngine({}))
    with pytest.raises(SettingError, match="the scripted engine gives no image features"):
        feature_engine(plain)
    with pytest.raises(SettingError, match="the scripted engine gives no image features"):
        plain.image_features([])
