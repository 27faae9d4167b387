"""What the embedded recipe draws, how workers hand it over, how a checkpoint is trained further, what tiles miss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from wsi_chat.datasets.render import render_field  # noqa: E402
from wsi_chat.datasets.render.camera import photograph  # noqa: E402
from wsi_chat.datasets.render.field import ABNORMAL, plan_field  # noqa: E402
from wsi_chat.datasets.render.scene import Scene  # noqa: E402
from wsi_chat.training.embedded import faster, fields  # noqa: E402
from wsi_chat.training.embedded.architecture import build_model  # noqa: E402
from wsi_chat.training.embedded.export import export  # noqa: E402
from wsi_chat.training.embedded.fields import Pool, prerender  # noqa: E402
from wsi_chat.training.embedded.packing import Packer  # noqa: E402
from wsi_chat.training.embedded.pool import drawn, slide_tiles  # noqa: E402
from wsi_chat.training.embedded.questions import ground, plain  # noqa: E402
from wsi_chat.training.embedded.specificity import sensitivity_at, wilson  # noqa: E402
from wsi_chat.training.embedded.stages import Run  # noqa: E402
from wsi_chat.training.embedded.tokenizer import build_tokenizer, token_id  # noqa: E402
from wsi_chat.training.embedded.workers import Recipe, load, prepare  # noqa: E402


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "SHARD", 8)
        prerender(folder, 0, first_seed=930_000_000)
    return folder


def test_a_conventional_field_is_fuller_than_a_liquid_one_and_keeps_its_truth() -> None:
    liquid = [plan_field(seed, recipe="normal") for seed in range(20)]
    smears = [plan_field(seed, recipe="normal", preparation="conventional") for seed in range(20)]
    assert all(plan.smear is None for plan in liquid)
    assert sum(len(plan.items) for plan in smears) > 1.3 * sum(len(plan.items) for plan in liquid)
    field = render_field(3, recipe="abnormal", preparation="conventional", variety=2.0, mpp=0.4)
    assert any(cell.label in ABNORMAL for cell in field.cells)
    assert render_field(3, recipe="abnormal", preparation="conventional", variety=2.0, mpp=0.4).cells == field.cells
    with pytest.raises(ValueError, match="preparation 'cytospin' is unknown"):
        render_field(0, preparation="cytospin")


def test_variety_spreads_the_stains() -> None:
    def spread(variety: float) -> float:
        grounds = [plan_field(seed, recipe="empty", variety=variety).style.white for seed in range(80)]
        return float(np.std(np.array(grounds), axis=0).mean())

    assert spread(2.0) > 1.4 * spread(1.0)


def test_a_camera_changes_the_picture_and_not_its_size() -> None:
    image = render_field(4).image
    pictures = [photograph(image, np.random.default_rng(seed), strength=1.0) for seed in range(6)]
    assert all(picture.shape == image.shape and picture.dtype == np.uint8 for picture in pictures)
    means = np.array([picture.mean(axis=(0, 1)) for picture in pictures])
    assert means.std(axis=0).min() > 4
    again = photograph(image, np.random.default_rng(0), strength=1.0)
    assert np.array_equal(again, pictures[0])


def test_a_window_of_a_slide_knows_what_is_seen_in_it() -> None:
    scene = Scene(5, 2048, 2048, 0.5, "abnormal", 250.0, 60)
    whole, moved = scene.seen(700, 700, 512, 512), scene.seen(764, 700, 512, 512)
    assert any(cell.label in ABNORMAL for cell in whole)
    assert all(0 <= c.box[0] < c.box[2] <= 512 and 0 <= c.box[1] < c.box[3] <= 512 for c in (*whole, *moved))
    inner = {(c.label, round(c.box[0] - 64), round(c.box[1])) for c in whole if c.box[0] > 80 and c.visible == 1}
    assert inner <= {(c.label, round(c.box[0]), round(c.box[1])) for c in moved}


def test_a_conventional_slide_has_its_abnormal_cells_on_it() -> None:
    scene = Scene(6, 1500, 900, 0.5, "abnormal", 50.0, 12, preparation="conventional")
    counts: dict[str, int] = {}
    found = scene.tally(0, 0, 1500, 900, counts)
    assert sum(cell.label in ABNORMAL for cell in found) == 12


def test_tiles_of_a_slide_overlap_by_a_quarter() -> None:
    tiles = list(slide_tiles(910_000_000, np.random.default_rng(1), recipe="abnormal", usual=True))
    assert len(tiles) == 16
    left, right = tiles[0].image[:, 192:].astype(int), tiles[1].image[:, :64].astype(int)
    assert np.abs(left - right).mean() < 3  # the same place twice, but for the compression
    assert any(tile.abnormal for tile in tiles)
    assert all(not t.abnormal for t in slide_tiles(910_000_001, np.random.default_rng(1), recipe="hard_normal"))


def test_the_pool_holds_every_kind_and_is_drawn_with_its_truth(pool: Path) -> None:
    kinds = [kind for (kind, _), _ in zip(drawn(2, 940_000_000), range(24), strict=False)]
    assert set(kinds) == {"plain", "wide", "tile"}
    notes = json.loads((pool / "shard_0000.json").read_text())
    assert len(notes) == 8
    assert all(note["kind"] in kinds for note in notes)
    held, rng = Pool(pool), np.random.default_rng(0)
    for _ in range(12):
        sample = held.draw(rng)
        assert sample.boxes.shape == (len(sample.labels), 4)
        assert sample.image.shape == (256, 256, 3)


def test_what_a_worker_hands_over_is_the_pack(pool: Path) -> None:
    recipe = Recipe(pool, batch=6, asked=3)
    batch = prepare(recipe, recipe.source(3), Packer(build_tokenizer()))
    assert batch.images.shape == (6, 256, 256, 3)
    assert batch.targets.centre.shape == (6, 64)
    pack = batch.questions.pack()
    assert pack.ids.shape[0] == 3
    assert pack.allowed.shape == (3, pack.ids.shape[1], pack.ids.shape[1])
    with_workers = next(load(recipe, workers=1, seed=3))
    assert with_workers.images.shape == batch.images.shape


def test_questions_of_one_image_do_not_see_each_other() -> None:
    packer = Packer(build_tokenizer())
    sample = fields.sample_of(render_field(12))
    pack = packer.pack([[plain("vqa", "What is this?", "cells."), ground(sample, "hsil")]])
    segments = packer.arrange([[plain("vqa", "What is this?", "cells."), ground(sample, "hsil")]]).segments[0]
    allowed = pack.allowed[0]
    first, second = torch.nonzero(segments == 1).flatten(), torch.nonzero(segments == 2).flatten()
    assert not allowed[second][:, first].any()
    assert allowed[second][:, segments == 0].all()
    assert not torch.triu(allowed, 1).any()


def test_a_checkpoint_of_fewer_words_gives_the_rows_that_it_has(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, width=64, layers=3, depth=2, vision=64, seed=1)
    export(model, tokenizer, tmp_path / "old", {})
    path = tmp_path / "old" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["eosinophils-of-old"] = content["model"]["vocab"].pop("eosinophil")
    path.write_text(json.dumps(content))

    class Small(Run):
        def __init__(self, folder: Path) -> None:
            self.folder, self.tokenizer = folder, build_tokenizer()
            folder.mkdir()
            self.model: Any = build_model(self.tokenizer, width=64, layers=3, depth=2, vision=64, seed=2)

    run = Small(tmp_path / "run")
    new = token_id(run.tokenizer, "eosinophil")
    fresh = run.model.model.language_model.embed_tokens.weight[new].clone()
    kept = faster.begin_from(run, tmp_path / "old")
    assert kept == len(run.tokenizer) - 1
    table = run.model.model.language_model.embed_tokens.weight
    assert torch.equal(table[new], fresh)
    known = token_id(run.tokenizer, "neutrophil")
    assert torch.allclose(table[known], model.model.language_model.embed_tokens.weight[known], atol=1e-2)


class Steps:
    """A clock that counts steps instead of seconds, so that a busy machine changes nothing."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.total, self.spent = minutes, spent

    @property
    def progress(self) -> float:
        # read twice a step: before it, and for its rate
        self.spent += 0.5
        return self.spent / self.total


@pytest.mark.slow
def test_training_from_workers_goes_on_where_it_was_stopped(pool: Path, tmp_path: Path) -> None:
    recipe = Recipe(pool, batch=3, asked=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faster, "HEADS_ALONE", 1)
        patch.setattr(faster, "Clock", Steps)
        steps = faster.learn_from_workers(Run(tmp_path), recipe, 3, workers=0)
        more = faster.learn_from_workers(Run(tmp_path), recipe, 6, workers=0)
    assert 0 < steps < more <= 6
    assert f"joint from step {steps}" in (tmp_path / "log.txt").read_text()


def test_sensitivity_is_read_where_so_many_normals_ring() -> None:
    normal = np.linspace(0, 0.99, 100)
    abnormal = np.array([0.97, 0.98, 0.985, 0.995])
    found = sensitivity_at(normal, abnormal, 0.99)
    assert found["threshold"] == pytest.approx(0.98)  # one normal of a hundred lies above
    assert found["sensitivity"] == 0.5
    assert sensitivity_at(normal, abnormal, 0.999)["sensitivity"] == 0.25  # of a hundred none may ring


def test_wilson_of_known_shares() -> None:
    assert wilson(9, 10) == pytest.approx((0.596, 0.982), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)
