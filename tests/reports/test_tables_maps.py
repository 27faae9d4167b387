"""tiles.parquet and maps.zarr: geometry that maps back, and missing values that stay missing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from reports import read_tiles_parquet, write_maps_zarr, write_tiles_parquet
from reports.maps import STATUS_CODES
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.schema import Box, LabelledBox, Tile, TileVerdict


def test_one_row_a_tile_with_its_values(case, tmp_path):
    table = pq.read_table(write_tiles_parquet(case.tiles, tmp_path / "tiles.parquet"))
    rows = table.to_pylist()
    assert [row["tile_id"] for row in rows] == [v.tile.id for v in case.tiles]
    for row, verdict in zip(rows, case.tiles, strict=True):
        assert (row["x"], row["y"], row["width"], row["height"]) == (
            verdict.tile.x,
            verdict.tile.y,
            verdict.tile.width,
            verdict.tile.height,
        )
        assert row["p_screen"] == verdict.p_screen
        assert row["status"] == verdict.status
        assert row["cellularity"] == verdict.tile.cellularity
    assert table.schema.field("mpp").metadata == {b"unit": b"um/px"}


def test_what_is_missing_is_null_and_not_zero(tmp_path):
    tile = Tile(0, 0, 0, 600, 600, 0, (600, 600), 512, 0.5)
    box = LabelledBox("hsil", Box(0, 0, 9, 9))
    rows = [
        TileVerdict(tile=tile, status="unreadable", error="gone"),
        TileVerdict(tile=tile, status="screened", p_screen=0.0),
        TileVerdict(tile=tile, status="detailed", p_screen=0.5, boxes=(box, box)),
        TileVerdict(tile=tile, status="detailed", p_screen=0.5),
    ]
    table = pq.read_table(write_tiles_parquet(rows, tmp_path / "tiles.parquet")).to_pydict()
    assert table["p_screen"] == [None, 0.0, 0.5, 0.5]
    assert table["n_boxes"] == [None, None, 2, 0]
    assert table["focus"] == [None] * 4
    assert table["cellularity"] == [None] * 4
    assert table["error"] == ["gone", None, None, None]
    assert table["description"] == [None] * 4


def test_no_damaged_byte_of_the_table_changes_a_value(tmp_path):
    """Parquet's own checksums do not cover its headers: without the table's SHA-256 rows and values went missing."""
    path = tmp_path / "tiles.parquet"
    tiles = [Tile(n, n * 600, 0, 600, 600, 0, (600, 600), 512, 0.5) for n in range(40)]
    verdicts = [TileVerdict(tile=tile, status="detailed", p_screen=tile.index / 40, asked=("hsil",)) for tile in tiles]
    write_tiles_parquet(verdicts, path)
    sound, content = read_tiles_parquet(path), path.read_bytes()
    refused = 0
    rng = np.random.default_rng(1)
    for at in rng.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_tiles_parquet(path)
        except OutputError:
            refused += 1
        else:
            assert found == sound
    assert refused > 75


def test_a_table_that_states_no_digest_is_read_as_before(abnormal, tmp_path):
    path = write_tiles_parquet(abnormal.tiles, tmp_path / "tiles.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "older.parquet")
    assert read_tiles_parquet(tmp_path / "older.parquet") == read_tiles_parquet(path)


def test_no_tiles_still_make_a_table_with_its_columns(tmp_path):
    table = pq.read_table(write_tiles_parquet([], tmp_path / "tiles.parquet"))
    assert table.num_rows == 0
    assert {"tile_id", "p_screen", "status"} <= set(table.column_names)


def test_the_transform_maps_a_cell_to_its_level_0_rectangle(abnormal, tmp_path):
    path = write_maps_zarr(abnormal.plan, abnormal.tiles, tmp_path / "maps.zarr", slide=abnormal.report.slide)
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == 3
    transform = group.attrs["transform"]
    index = group["tile_index"][...]
    for verdict in abnormal.tiles:
        row, column = np.argwhere(index == verdict.tile.index)[0]
        x = transform["origin"][0] + column * transform["stride"][0]
        y = transform["origin"][1] + row * transform["stride"][1]
        assert (x, y) == (verdict.tile.x, verdict.tile.y)
        assert (group["x"][column], group["y"][row]) == (verdict.tile.x, verdict.tile.y)
    assert transform["tile_size"] == [600, 600]
    assert group.attrs["mpp"] == 0.5


def test_maps_hold_nan_where_nothing_is_known(case, tmp_path):
    group = zarr.open_group(
        write_maps_zarr(case.plan, case.tiles, tmp_path / "maps.zarr", slide=case.report.slide), mode="r"
    )
    p, status = group["p_screen"][...], group["status"][...]
    assert p.shape == case.plan.grid_shape
    known = {v.tile.index: v for v in case.tiles}
    for index, (value, code) in enumerate(zip(p.ravel(), status.ravel(), strict=True)):
        verdict = known.get(index)
        if verdict is None:
            assert np.isnan(value)
            assert code == STATUS_CODES["not_planned"]
            continue
        assert code == group.attrs["status_codes"][verdict.status]
        assert np.isnan(value) if verdict.p_screen is None else value == np.float32(verdict.p_screen)


def test_edge_tiles_that_a_plan_shifts_inward_keep_their_place(abnormal, tmp_path):
    slide = abnormal.report.slide.model_copy(update={"width": 1000, "height": 600})
    plan = SimpleNamespace(grid_shape=(1, 2), stride=480.0)
    tiles = [
        TileVerdict(tile=Tile(i, x, 0, 600, 600, 0, (600, 600), 512, 0.5), status="screened", p_screen=0.1 * (i + 1))
        for i, x in enumerate((0, 400))
    ]
    for given in (tiles, tiles[:1]):  # with the shifted tile, and with its place only foreseen
        group = zarr.open_group(write_maps_zarr(plan, given, tmp_path / "maps.zarr", slide=slide), mode="r")
        assert group["x"][...].tolist() == [0, 400]
        assert group["y"][...].tolist() == [0]


def test_a_tile_of_another_plan_is_refused_and_the_old_maps_stay(abnormal, tmp_path):
    path = write_maps_zarr(abnormal.plan, abnormal.tiles, tmp_path / "maps.zarr", slide=abnormal.report.slide)
    small = SimpleNamespace(grid_shape=(2, 2), stride=480.0)
    with pytest.raises(SettingError, match="t0000"):
        write_maps_zarr(small, abnormal.tiles, path, slide=abnormal.report.slide)
    twice = [abnormal.tiles[0], abnormal.tiles[0]]
    with pytest.raises(SettingError, match="given twice"):
        write_maps_zarr(abnormal.plan, twice, path, slide=abnormal.report.slide)
    assert zarr.open_group(path, mode="r")["p_screen"].shape == abnormal.plan.grid_shape


def test_maps_are_replaced_as_a_whole(abnormal, tmp_path):
    path = tmp_path / "maps.zarr"
    path.mkdir()
    (path / "leftover").write_text("old")
    write_maps_zarr(abnormal.plan, abnormal.tiles, path, slide=abnormal.report.slide)
    assert not (path / "leftover").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["maps.zarr"]


def test_unwritable_outputs_are_named(abnormal, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match=r"file/tiles\.parquet"):
        write_tiles_parquet(abnormal.tiles, tmp_path / "file" / "tiles.parquet")
    with pytest.raises(OutputError, match=r"file/m\.zarr"):
        write_maps_zarr(abnormal.plan, abnormal.tiles, tmp_path / "file" / "m.zarr", slide=abnormal.report.slide)
