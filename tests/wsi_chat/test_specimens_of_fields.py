"""Specimens of several photographs: one report, every finding in its field, what is missing, scales, cohorts, moves."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import wsi_chat
from wsi_chat.analysis.causes import causes_of_failure
from wsi_chat.analysis.manifest import read_manifest
from wsi_chat.analysis.sample import listed
from wsi_chat.cli import app
from wsi_chat.cohort import find_slides
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import SettingError, SlideNotFound
from wsi_chat.schema import Query, Tile, TileVerdict

# where the dark mark lies in each field, px of the field
MARKS = {"2.png": (40, 30, 80, 66), "10.png": (150, 120, 190, 160), "30.png": None}
SIZE = (300, 240)


def finds_the_mark(query: Query) -> str | dict[str, float]:
    """A model with perfect sight: the box of the dark pixels in the picture that it was shown."""
    dark = np.argwhere(np.asarray(query.images[0].convert("L")) < 90)
    if query.choices:
        return {"A": 0.1, "B": 0.9} if len(dark) else {"A": 0.9, "B": 0.1}
    if query.task != "ground" or query.target != "hsil" or not len(dark):
        return f"No {query.target} is found."
    (y0, x0), (y1, x1) = dark.min(axis=0), dark.max(axis=0) + 1
    return f"hsil 1 is located at <region>{x0} {y0} {x1} {y1}</region>."


def draw(
    path: Path, mark: tuple[int, int, int, int] | None, *, seed: int = 0, size: tuple[int, int] = SIZE, shade: int = 20
) -> None:
    pixels = np.random.default_rng(seed).integers(200, 240, (size[1], size[0], 3), np.uint8)
    if mark is not None:
        x0, y0, x1, y1 = mark
        pixels[y0:y1, x0:x1] = shade
    Image.fromarray(pixels).save(path)


@pytest.fixture
def specimen(tmp_path: Path) -> Path:
    """Three fields with two marks, and one that cannot be read."""
    folder = tmp_path / "case 7"
    folder.mkdir()
    for seed, (name, mark) in enumerate(MARKS.items()):
        draw(folder / name, mark, seed=seed)
    (folder / "40.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def analyze(path: Path, out: Path, engine: ScriptedEngine | None = None, **more: Any) -> wsi_chat.SlideResult:
    settings = {"specimen": "cervix", "dialect": "embedded", "format": ["json"], "top_k": 50, **more}
    return wsi_chat.analyze(path, out=out, engine=engine or ScriptedEngine(finds_the_mark), **settings)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_every_finding_names_its_field_and_lies_in_its_pixels(specimen: Path, tmp_path: Path) -> None:
    result = analyze(specimen, tmp_path / "out")
    found = {finding.field: finding for finding in result.findings}
    assert set(found) == {"2.png", "10.png"}
    for name, finding in found.items():
        own = finding.field_box
        assert own is not None
        assert (own.x0, own.y0, own.x1, own.y1) == pytest.approx(MARKS[name], abs=0.51)
        field = result.report.slide.field_at(finding.box)
        assert field is not None
        assert field.name == name
        assert finding.box == own.shifted(field.x, field.y)
    again = wsi_chat.load_result(result.folder)
    assert again.findings == result.findings
    for row in rows(result.folder / "findings.csv"):
        mark = MARKS[row["field"]]
        assert mark is not None
        assert [float(row[name]) for name in ("x0_px", "y0_px", "x1_px", "y1_px")] == pytest.approx(mark, abs=0.51)
        assert row["x_um"] == row["width_um"] == ""  # nobody stated a scale


def test_a_field_that_cannot_be_read_is_missing_and_no_cell_of_it_is_counted(specimen: Path, tmp_path: Path) -> None:
    result = analyze(specimen, tmp_path / "out")
    table = {row["field"]: row for row in rows(result.folder / "fields.csv")}
    assert {name: row["status"] for name, row in table.items()} == {
        "2.png": "read", "10.png": "read", "30.png": "read", "40.jpg": "missing",
    }  # fmt: skip
    assert [table[name]["n_hsil"] for name in ("2.png", "10.png", "30.png", "40.jpg")] == ["1", "1", "0", ""]
    assert table["40.jpg"]["p_highest"] == ""
    assert float(table["2.png"]["p_highest"]) == pytest.approx(0.9)
    funnel = result.report.funnel
    assert funnel.unreadable == int(table["40.jpg"]["tiles"]) == funnel.selected - funnel.screened > 0
    assert any("40.jpg" in str(note) for note in result.report.notes)


def test_a_specimen_with_too_many_missing_fields_is_never_normal(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    draw(folder / "1.png", None)
    for n in (2, 3):
        (folder / f"{n}.png").write_bytes(b"")
    result = analyze(folder, tmp_path / "out")
    assert result.status == "indeterminate"


def test_geojson_is_in_the_pixels_of_each_field(specimen: Path, tmp_path: Path) -> None:
    result = analyze(specimen, tmp_path / "out")
    whole = json.loads((result.folder / "findings.geojson").read_text(encoding="utf-8"))
    cells = [f for f in whole["features"] if f["properties"]["objectType"] == "detection"]
    assert {f["properties"]["field"] for f in cells} == {"2.png", "10.png"}
    for feature in cells:
        mark = MARKS[feature["properties"]["field"]]
        assert mark is not None
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert [*ring.min(axis=0), *ring.max(axis=0)] == pytest.approx(mark, abs=0.51)
        assert "width um" not in feature["properties"]["measurements"]
    own = json.loads((result.folder / "fields" / "10.png.geojson").read_text(encoding="utf-8"))
    assert {f["properties"]["field"] for f in own["features"]} == {"10.png"}
    assert sorted(p.name for p in (result.folder / "fields").iterdir()) == [
        "10.png.geojson", "2.png.geojson", "30.png.geojson",
    ]  # fmt: skip


def test_tiles_geojson_has_every_tile_with_its_p_and_the_missing_without(specimen: Path, tmp_path: Path) -> None:
    result = analyze(specimen, tmp_path / "out")
    features = json.loads((result.folder / "tiles.geojson").read_text(encoding="utf-8"))["features"]
    tiles = result.tiles.to_pylist()
    assert len(features) == len(tiles) == result.report.funnel.selected
    for feature, tile in zip(features, tiles, strict=True):
        assert feature["properties"]["measurements"].get("p_screen") == tile["p_screen"]
        corner = feature["geometry"]["coordinates"][0][0]
        assert corner == [tile["field_x"], tile["field_y"]]
    without = [f for f in features if "p_screen" not in f["properties"]["measurements"]]
    assert {f["properties"]["field"] for f in without} == {"40.jpg"}


def test_findings_in_photographs_of_unlike_scales_lie_in_their_own_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "case 9"
    folder.mkdir()
    marks = {"a.png": ((40, 30, 80, 66), 1), "b.png": ((80, 60, 160, 132), 2)}
    for name, (mark, by) in marks.items():  # the same 20 µm at 0.5 and at 0.25 µm/px
        draw(folder / name, mark, size=(300 * by, 240 * by))
        with Image.open(folder / name) as image:
            image.save(folder / name, dpi=(50800 * by, 50800 * by))
    Image.new("RGB", SIZE, (255, 255, 255)).save(folder / "glass.png", dpi=(50800, 50800))
    result = analyze(folder, tmp_path / "out")
    assert result.report.slide.mpp == pytest.approx(0.25, rel=1e-3)
    assert result.report.slide.scale_known
    for finding in result.findings:
        box, (mark, by) = finding.field_box, marks[finding.field]
        assert box is not None
        assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx(mark, abs=2.5 * by)
        assert finding.box.width * result.report.slide.mpp == pytest.approx(20, abs=2.5)
    assert {finding.field for finding in result.findings} == set(marks)
    codes = {note.code: note for note in result.report.notes}
    assert {"fields.own_scales", "fields.unmasked_but"} <= set(codes)
    assert codes["fields.unmasked_but"].endswith("not asked about: glass.png.")
    table = {row["field"]: row for row in rows(result.folder / "fields.csv")}
    assert (table["b.png"]["width_px"], table["glass.png"]["status"]) == ("600", "not asked")


def test_a_photograph_of_unknown_scale_is_read_pixel_for_pixel_and_says_so(tmp_path: Path) -> None:
    draw(tmp_path / "field.png", MARKS["2.png"])
    result = analyze(tmp_path / "field.png", tmp_path / "out")
    slide = result.report.slide
    assert slide.mpp_source == "assumed"
    assert {tile["width"] for tile in result.tiles.to_pylist()} == {result.report.provenance.tile_px}
    assert any("No resolution is known" in str(note) and "--mpp" in str(note) for note in result.report.notes)
    known = analyze(tmp_path / "field.png", tmp_path / "known", mpp=0.25)
    assert known.report.slide.mpp == 0.25
    assert not any("No resolution is known" in str(note) for note in known.report.notes)
    assert float(rows(known.folder / "findings.csv")[0]["width_um"]) == pytest.approx(10, abs=0.3)


def test_a_coarse_photograph_is_enlarged_and_a_coarse_slide_names_the_flag(tmp_path: Path) -> None:
    from wsi_chat.datasets.mosaic import write_pyramid

    draw(tmp_path / "field.png", MARKS["2.png"])
    result = analyze(tmp_path / "field.png", tmp_path / "out", mpp=1.1)
    assert any("enlarged" in str(note) for note in result.report.notes)
    (finding,) = result.findings
    assert (finding.box.x0, finding.box.y1) == pytest.approx((40, 66), abs=1.5)
    write_pyramid(tmp_path / "slide.tiff", np.full((900, 900, 3), 230, np.uint8), mpp=1.1)
    with pytest.raises(SettingError, match=r"--tile-mpp 1\.1"):
        analyze(tmp_path / "slide.tiff", tmp_path / "out")


def test_the_documents_of_a_field_stay_small(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (480, 640, 3), np.uint8)).save(tmp_path / "noise.png")
    result = analyze(tmp_path / "noise.png", tmp_path / "out", format=["pdf", "html", "json"])
    assert result.files.pdf_path.stat().st_size < 1_500_000
    assert sum(p.stat().st_size for p in result.folder.rglob("*") if p.is_file()) < 6_000_000


def test_pdf_and_page_name_the_field_of_each_cell(specimen: Path, tmp_path: Path) -> None:
    from pypdf import PdfReader

    result = analyze(specimen, tmp_path / "out", format=["pdf", "html", "json"])
    text = " ".join(page.extract_text() for page in PdfReader(result.files.pdf_path).pages)
    assert "field 1 (2.png)" in text
    assert "4 fields" in text
    page = result.files.html_path.read_text(encoding="utf-8")
    assert "field 2 (10.png), 170, 140 px" in page
    assert "µm</th>" not in page.replace("Size (µm unless it says px)", "")


# ---------------------------------------------------------------------------------------------- cohorts


def test_a_search_takes_folders_of_photographs_as_specimens_and_no_run_folder(tmp_path: Path) -> None:
    from wsi_chat.datasets.mosaic import write_pyramid

    for name in ("a", "b/inner", "slides"):
        (tmp_path / name).mkdir(parents=True)
        draw(tmp_path / name / "1.png", None)
        draw(tmp_path / name / "2.jpg", None)
    write_pyramid(tmp_path / "slides" / "s.tiff", np.full((300, 300, 3), 230, np.uint8), mpp=0.5)
    analyze(tmp_path / "a", tmp_path / "some run")
    found = [sample.path.relative_to(tmp_path).as_posix() for sample in find_slides(tmp_path)]
    assert found == ["a", "b/inner", "slides/s.tiff"]
    with pytest.raises(SettingError, match="There is no slide"):
        find_slides(tmp_path / "some run" / next(p.name for p in (tmp_path / "some run").iterdir() if p.is_dir()))


def test_rows_with_one_specimen_id_are_one_specimen(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        draw(tmp_path / f"{n}.png", MARKS["2.png"], seed=n, shade=20 if n == 2 else 120)  # a cell, and harmless ones
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "image_path,specimen_id,label,stain\n1.png,S1,hsil,pap\n2.png,S1,hsil,pap\n3.png,S2,nilm,pap\n",
        encoding="utf-8",
    )
    samples = read_manifest(manifest)
    assert [(s.sample_id, [p.name for p in s.fields], s.label, dict(s.extra)) for s in samples] == [
        ("S1", ["1.png", "2.png"], "hsil", {"stain": "pap"}), ("S2", ["3.png"], "nilm", {"stain": "pap"}),
    ]  # fmt: skip
    assert samples[0].slide_id.startswith("S1-")
    out = tmp_path / "out"
    options: dict[str, Any] = {"specimen": "cervix", "dialect": "embedded", "format": ["json"]}
    first = wsi_chat.analyze_cohort(manifest, out=out, engine=ScriptedEngine(finds_the_mark), **options)
    assert {s.sample_id: len(first.result(s.sample_id).findings) for s in first.samples} == {"S1": 1, "S2": 0}
    assert first.result("S1").findings[0].field == "2.png"
    summary = {row["sample_id"]: row for row in rows(out / "summary.csv")}
    assert (summary["S1"]["n_hsil"], summary["S2"]["n_hsil"]) == ("1", "0")
    assert (summary["S1"]["fields"], summary["S1"]["fields_missing"]) == ("2", "0")
    assert summary["S1"]["adequacy"]
    assert summary["S1"]["adequacy_reason"]
    again = ScriptedEngine(finds_the_mark)
    wsi_chat.analyze_cohort(manifest, out=out, engine=again, **options)
    assert not again.asked  # finished specimens are not done again
    draw(tmp_path / "1.png", MARKS["10.png"], seed=9)
    changed = wsi_chat.analyze_cohort(manifest, out=out, engine=again, **options)
    assert len(changed.result("S1").findings) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_path,specimen_id,label\n1.png,S,hsil\n2.png,S,nilm\n", r"line 3, column label: 'nilm'"),
        ("image_path,specimen_id,mpp\n1.png,S,0.2\n2.png,S,0.3\n", r"line 3, column mpp: 0\.3"),
        ("image_path,specimen_id\n1.png,S\n1.png,S\n", "is named twice"),
    ],
)
def test_fields_of_a_specimen_that_disagree_are_named(tmp_path: Path, text: str, message: str) -> None:
    for n in (1, 2):
        draw(tmp_path / f"{n}.png", None, seed=n)
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=message):
        read_manifest(tmp_path / "m.csv")


def test_every_field_that_disagrees_is_named(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        draw(tmp_path / f"{n}.png", None, seed=n)
    text = "image_path,specimen_id,label,mpp\n1.png,S,hsil,0.2\n2.png,S,nilm,0.2\n3.png,S,hsil,0.3\n1.png,S,hsil,0.2\n"
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SettingError) as raised:
        read_manifest(tmp_path / "m.csv")
    head, *faults = raised.value.message.split("\n")
    assert head == "m.csv has 3 faults:"
    assert [fault.split(":")[0] for fault in faults] == [
        "  line 3, column label", "  line 4, column mpp", "  line 5, column image_path"
    ]  # fmt: skip


def test_slides_with_one_specimen_id_stay_slides(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image_path,specimen_id\na.svs,S\nb.svs,S\n", encoding="utf-8")
    assert [sample.path.name for sample in read_manifest(tmp_path / "m.csv")] == ["a.svs", "b.svs"]


def test_a_listing_is_written_once(tmp_path: Path) -> None:
    draw(tmp_path / "1.png", None)
    (tmp_path / "m.csv").write_text("image_path,specimen_id\n1.png,S\n", encoding="utf-8")
    samples = read_manifest(tmp_path / "m.csv")
    (first,) = listed(samples, tmp_path / "lists")
    time = first.path.stat().st_mtime_ns
    (second,) = listed(samples, tmp_path / "lists")
    assert second == first
    assert second.path.stat().st_mtime_ns == time
    assert first.path.read_text(encoding="utf-8") == f"{tmp_path / '1.png'}\n"


def test_a_moved_specimen_and_a_renamed_photograph_are_asked_nothing_again(specimen: Path, tmp_path: Path) -> None:
    draw(tmp_path / "one.png", MARKS["2.png"])
    out = tmp_path / "out"
    before = {path.name: analyze(path, out) for path in (specimen, tmp_path / "one.png")}
    shutil.move(specimen, tmp_path / "elsewhere")
    (tmp_path / "one.png").rename(tmp_path / "two.png")
    engine = ScriptedEngine(finds_the_mark)
    after = [analyze(tmp_path / name, out, engine) for name in ("elsewhere", "two.png")]
    assert engine.asked == []
    assert [r.report.verdict for r in after] == [r.report.verdict for r in before.values()]
    assert all(r.report.timings.answers_reused > 0 for r in after)
    assert len({r.folder for r in (*before.values(), *after)}) == 4


# ---------------------------------------------------------------------------------------------- Python, terminal


def test_frames_have_numbers_and_a_plot_shows_the_findings(specimen: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    import matplotlib as mpl

    mpl.use("Agg")
    result = analyze(specimen, tmp_path / "out", mpp=0.5)
    frame = result.findings_frame()
    assert list(frame["field"]) == [finding.field for finding in result.findings]
    assert frame["width_um"].tolist() == pytest.approx([f.box.width * 0.5 for f in result.findings], abs=0.01)
    assert frame["abnormal"].tolist() == [True, True]
    assert result.tiles_frame()["p_screen"].isna().sum() == result.report.funnel.unreadable
    axes = result.plot()
    (points,) = axes.collections
    drawn = {tuple(point) for point in points.get_offsets().tolist()}
    assert drawn == {finding.box.center for finding in result.findings}


def test_without_pandas_the_way_out_is_named(specimen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = analyze(specimen, tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    for frame in (result.findings_frame, result.tiles_frame):
        with pytest.raises(SettingError, match="pip install pandas"):
            frame()


def test_json_lists_the_slides_that_failed(tmp_path: Path, specimen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_chat.engines.model.Model.engine", ScriptedEngine(finds_the_mark))
    monkeypatch.setattr("wsi_chat.engines.model.Model.close", lambda self: None)
    absent, out = tmp_path / "absent.svs", tmp_path / "out"
    command = ["analyze", str(absent), str(specimen), "-o", str(out), "--json", "--specimen", "cervix", "--no-pdf"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 3, done.output
    listing = json.loads(done.stdout)
    assert [(row["file"], row["state"]) for row in listing] == [("absent.svs", "failed"), ("case 7", "done")]
    assert listing[0]["error"] == SlideNotFound.__name__
    assert "There is no file" in listing[0]["reason"]


def test_ask_takes_an_array_and_a_pillow_image() -> None:
    pixels = np.full((200, 200, 3), 230, np.uint8)
    pixels[60:100, 50:90] = 20
    for picture in (pixels, Image.fromarray(pixels)):
        options: dict[str, Any] = {
            "specimen": "cervix",
            "dialect": "embedded",
            "engine": ScriptedEngine(finds_the_mark),
        }
        result = wsi_chat.ask(picture, "Locate all hsil.", **options)
        (found,) = result.boxes
        assert (found.box.x0, found.box.y0, found.box.x1, found.box.y1) == pytest.approx((50, 60, 90, 100), abs=1)
        assert result.file_name == "picture in memory"


def test_causes_are_counted_once_each_whatever_numbers_they_hold() -> None:
    tile = Tile(0, 0, 0, 10, 10, 0, (10, 10), 10, 0.5)
    rows = [TileVerdict(tile=tile, status="screen_failed", error=f"HTTP 503 after {n} s") for n in range(7)]
    rows += [TileVerdict(tile=tile, status="unreadable"), TileVerdict(tile=tile, status="detailed")]
    assert causes_of_failure(rows) == ("7 tiles: HTTP 503 after 0 s", "1 tile: could not be read")


def test_the_cause_of_failed_answers_is_in_the_log(
    specimen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(query: Query) -> str:
        raise RuntimeError("no route to the model")

    with caplog.at_level(logging.WARNING):
        result = analyze(specimen, tmp_path / "out", ScriptedEngine(broken))
    assert result.status == "indeterminate"
    lines = [record.getMessage() for record in caplog.records]
    assert any("no route to the model" in line and "tiles" in line for line in lines)
