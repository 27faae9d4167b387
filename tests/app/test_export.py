"""The review as files: what QuPath, a spreadsheet, `wsi-chat train` and `wsi-chat fit` get; the report stays."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from tilers import open_slide
from wsi_chat.analysis.manifest import read_manifest
from wsi_chat.analysis.result import SlideResult
from wsi_chat.app.export import export_review, reviewed_tiles, write_manifest
from wsi_chat.app.review import SLIDE, ReviewStore
from wsi_chat.app.source import find_slides
from wsi_chat.datasets.annotated import Renaming
from wsi_chat.datasets.qupath import read_geojson
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box


@pytest.fixture
def reviewed(folder: Path, result: SlideResult, store: ReviewStore) -> dict[str, str]:
    """One finding accepted, one rejected, one relabelled, a cell drawn, and a tile marked as complete."""
    hsil = [f for f in result.findings if f.label == "hsil"]
    lsil = [f for f in result.findings if f.label == "lsil"]
    tile = hsil[0].tile_ids[0]
    for finding in result.findings:
        if tile in finding.tile_ids and finding is not hsil[0]:
            store.decide("Ann", finding.id, "accept")
    store.decide("Ann", hsil[0].id, "accept")
    store.decide("Ann", hsil[1].id, "reject")
    store.decide("Ann", lsil[1].id, "relabel", label="ascus")
    place = next(r for r in result.tiles.to_pylist() if r["tile_id"] == tile)
    x, y = place["x"] + 20, place["y"] + 180
    drawn = store.draw("Ann", "agc", Box(x, y, x + 40, y + 40))
    store.decide("Ann", tile, "complete")
    return {
        "accepted": hsil[0].id,
        "rejected": hsil[1].id,
        "relabelled": lsil[1].id,
        "drawn": drawn.about,
        "tile": tile,
    }


def test_the_report_stays_as_it_was(folder: Path, result: SlideResult, store: ReviewStore, reviewed: dict) -> None:
    def hashes() -> dict[str, str]:
        names = ("report.json", "findings.geojson", "tiles.parquet")
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}

    before = hashes()
    done = export_review(find_slides(folder).entries[folder.name], result, store)
    assert hashes() == before
    assert not done.notes
    assert {path.name for path in done.files} >= {"findings.geojson", "findings.csv", "reviewed_train.jsonl"}


def test_the_csv_has_the_models_columns_and_the_reviewed_ones(
    folder: Path, result: SlideResult, store: ReviewStore, reviewed: dict[str, str]
) -> None:
    export_review(find_slides(folder).entries[folder.name], result, store)
    with (folder / "review" / "findings.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert rows[reviewed["relabelled"]]["label"] == "lsil"
    assert rows[reviewed["relabelled"]]["reviewed_label"] == "ascus"
    assert rows[reviewed["rejected"]]["reviewed"] == "rejected"
    assert rows[reviewed["rejected"]]["reviewed_label"] == ""
    assert rows[reviewed["drawn"]]["label"] == ""
    assert rows[reviewed["drawn"]]["source"] == "reviewer"
    assert rows[reviewed["accepted"]]["reviewers"] == "Ann: HSIL"
    assert len(rows) == len(result.findings) + 1


def test_qupath_reads_the_reviewed_classes(
    folder: Path, result: SlideResult, store: ReviewStore, reviewed: dict[str, str]
) -> None:
    export_review(find_slides(folder).entries[folder.name], result, store)
    path = folder / "review" / "findings.geojson"
    features = {f["properties"]["name"]: f["properties"] for f in json.loads(path.read_text())["features"]}
    assert features[reviewed["relabelled"]]["classification"]["name"] == "ASC-US"
    assert features[reviewed["relabelled"]]["metadata"]["model class"] == "LSIL"
    assert features[reviewed["rejected"]]["classification"]["name"].endswith("*")
    assert "votes" not in features[reviewed["drawn"]]["measurements"]
    # and so does this program: a rejected cell is no cell
    boxes = read_geojson(path, rename=Renaming({}, lambda name: None)).boxes
    assert len(boxes) == len(result.findings)  # one rejected, one drawn


def test_a_class_is_said_to_be_absent_only_in_a_tile_that_is_complete(
    result: SlideResult, store: ReviewStore, reviewed: dict[str, str], folder: Path
) -> None:
    assert result.slide_path is not None
    with open_slide(result.slide_path) as slide:
        tiles = {picture.name.rsplit("_", 1)[1]: picture for picture in reviewed_tiles("s", result, store, slide)}
    complete = tiles[reviewed["tile"]]
    assert "agc" in {found.label for found in complete.boxes}
    assert {"hsil", "lsil", "scc"} <= complete.known
    assert all(not picture.known for name, picture in tiles.items() if name != reviewed["tile"])
    assert all(0 <= b.box.x0 < b.box.x1 <= 256 and 0 <= b.box.y0 < b.box.y1 <= 256 for b in complete.boxes)


def test_what_is_unreviewed_is_never_taught(result: SlideResult, store: ReviewStore) -> None:
    assert result.slide_path is not None
    first, second = [f for f in result.findings if f.label == "hsil"][:2]
    store.decide("Ann", first.id, "accept")
    store.decide("Ann", second.id, "accept")
    store.decide("Bob", second.id, "reject")  # disputed
    with open_slide(result.slide_path) as slide:
        pictures = reviewed_tiles("s", result, store, slide)
    taught = [found for picture in pictures for found in picture.boxes]
    assert {found.label for found in taught} == {"hsil"}
    assert all("lsil" in picture.unsure for picture in pictures if picture.name.endswith(first.tile_ids[0]))


def test_nothing_reviewed_gives_no_data_and_says_so(folder: Path, result: SlideResult, store: ReviewStore) -> None:
    done = export_review(find_slides(folder).entries[folder.name], result, store)
    assert [path.name for path in done.files] == ["findings.geojson", "findings.csv"]
    assert "no cell in a closely read tile" in done.notes[0]


def test_the_manifest_has_the_slides_whose_readers_agree(folder: Path, store: ReviewStore) -> None:
    collection = find_slides(folder.parent)
    target = folder.parent / "reviewed.csv"
    with pytest.raises(SettingError, match="No slide has a reviewed class"):
        write_manifest(collection, {folder.name: store}, target)
    store.decide("Ann", SLIDE, "label", label="HSIL")
    write_manifest(collection, {folder.name: store}, target)
    (sample,) = read_manifest(target)  # as `wsi-chat fit` reads it
    assert sample.label == "HSIL"
    assert sample.slide_id == folder.name
    store.decide("Bob", SLIDE, "label", label="NILM")
    with pytest.raises(SettingError, match="No slide"):
        write_manifest(collection, {folder.name: store}, target)
