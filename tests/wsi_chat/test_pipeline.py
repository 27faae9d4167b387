"""analyze() from a slide file to its documents, with an engine that follows a script, and with runs that are killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

import wsi_chat
from wsi_chat.engines import Fault, ScriptedEngine, SupervisedEngine
from wsi_chat.errors import EngineDied, OutputError, SettingError, SlideNotFound
from wsi_chat.schema import Query, Report

DOCUMENTS = {
    "findings.geojson", "gallery", "heatmap.png", "journal.sqlite", "maps.zarr", "overview.png", "report.json",
    "report.pdf", "tiles.parquet",
}  # fmt: skip


def says(query: Query) -> str | dict[str, float]:
    """Darker fields are more abnormal; each detailed field has one hsil where the script says."""
    if query.task == "screen":
        p = 1 - float(np.asarray(query.images[0]).mean()) / 255
        return {query.choices[0]: 1 - p, query.choices[1]: p}
    if query.task == "ground":
        box = "hsil 1 is located at <region>100 100 140 140</region>."
        return box if query.target == "hsil" else f"No {query.target} is found."
    return "One dark cell on a bright field."


def comparable(report: Report) -> dict[str, object]:
    """The report but for its timings."""
    return report.model_dump(exclude={"timings"})


def test_a_slide_gives_every_document_and_a_second_run_asks_nothing(small_slide: Path, tmp_path: Path) -> None:
    first = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), specimen="cervix", top_k=4)
    assert {path.name for path in first.folder.iterdir()} >= DOCUMENTS
    assert not [path.name for path in first.folder.iterdir() if path.name.startswith(".")]
    engine = ScriptedEngine(says)
    second = wsi_chat.analyze(small_slide, out=tmp_path, engine=engine, specimen="cervix", top_k=4)
    assert engine.asked == []
    assert comparable(second.report) == comparable(first.report)
    funnel = first.report.funnel
    assert funnel.screened == funnel.selected == funnel.read > 0
    assert funnel.detailed == 4
    assert first.report.timings.answers_new == second.report.timings.answers_reused > 0


def test_half_a_character_in_an_answer_stops_no_document(small_slide: Path, tmp_path: Path) -> None:
    """JSON of a server may hold half a pair of surrogates, which is no text that can be written."""

    def half(query: Query) -> str | dict[str, float]:
        return "A dark cell \ud83d." if query.task == "describe" else says(query)

    made = [
        wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(half), specimen="cervix", top_k=2)
        for _ in range(2)
    ]
    assert {path.name for path in made[0].folder.iterdir()} >= DOCUMENTS
    said = pq.read_table(made[0].folder / "tiles.parquet").column("description").to_pylist()
    assert sorted(filter(None, said)) == ["A dark cell \ufffd."] * 2
    assert comparable(made[1].report) == comparable(made[0].report)  # the journal's words are those that were said


def test_the_report_on_disk_is_the_one_returned(small_slide: Path, tmp_path: Path) -> None:
    result = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), specimen="cervix", top_k=2)
    loaded = wsi_chat.load_result(result.folder)
    assert loaded.report == result.report
    assert loaded.slide_path == small_slide
    assert loaded.tiles.num_rows == result.report.funnel.selected
    found = loaded.findings[0]
    assert loaded.zoom(found.id, px=64).size == (64, 64)
    with pytest.raises(SettingError, match="f9999"):
        loaded.zoom("f9999")


def test_boxes_lie_where_the_script_put_them(small_slide: Path, tmp_path: Path) -> None:
    result = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), specimen="cervix", top_k=3)
    detailed = [row for row in result.tiles.to_pylist() if row["status"] == "detailed"]
    assert len(detailed) == 3
    expected = {(row["x"] + 100.0, row["y"] + 100.0) for row in detailed}  # 0.5 um/px at level 0: scale 1
    assert {(f.box.x0, f.box.y0) for f in result.findings} == expected


def test_overwrite_asks_everything_again(small_slide: Path, tmp_path: Path) -> None:
    first, second = ScriptedEngine(says), ScriptedEngine(says)
    wsi_chat.analyze(small_slide, out=tmp_path, engine=first, top_k=1)
    wsi_chat.analyze(small_slide, out=tmp_path, engine=second, top_k=1, overwrite=True)
    assert Counter(q.key for q in second.asked) == Counter(q.key for q in first.asked)


def test_limit_is_said_in_the_report(small_slide: Path, tmp_path: Path) -> None:
    result = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), limit=5, top_k=1)
    funnel = result.report.funnel
    assert (funnel.selected, funnel.screened) == (5, 5)
    assert funnel.foreground > 5
    assert any("5 of" in note and "--limit" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("language", "said"), [("en", "refuses 12 of 12 stored tiles"), ("zh", "12 个存储瓦片中有 12 个被严格解码器拒绝")]
)
def test_tiles_that_only_a_lenient_decoder_shows_are_told_in_the_report(
    tmp_path: Path, language: str, said: str
) -> None:
    """Every stored tile ends with bytes that belong to nothing, which OpenSlide passes over."""
    rgb = np.full((768, 1024, 3), 235, np.uint8)
    rgb = np.ascontiguousarray(rgb + np.random.default_rng(1).integers(0, 9, rgb.shape, np.uint8))
    tiles = []
    for y in range(0, 768, 256):
        for x in range(0, 1024, 256):
            file = io.BytesIO()
            Image.fromarray(rgb[y : y + 256, x : x + 256]).save(file, "JPEG", quality=90, subsampling="4:4:4")
            tiles.append(file.getvalue()[:-2] + bytes([17] * 12) + b"\xff\xd9")
    text = "Aperio Image Library v11.2.1 \n1024x768 [0,0 1024x768] (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(
        tmp_path / "a.svs", iter(tiles), shape=rgb.shape, dtype=np.uint8, tile=(256, 256), compression="jpeg",
        photometric="ycbcr", subsampling=(1, 1), metadata=None, description=text,
    )  # fmt: skip
    result = wsi_chat.analyze(
        tmp_path / "a.svs", out=tmp_path / "out", engine=ScriptedEngine(says), top_k=1, language=language,
        mask="off", format="json,html",
    )  # fmt: skip
    assert result.report.funnel.screened > 0
    assert [note.code for note in result.report.notes].count("slide.strict_refused") == 1
    assert said in (result.folder / "report.html").read_text()


def test_exhaustive_details_every_tile(small_slide: Path, tmp_path: Path) -> None:
    result = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), exhaustive=True, limit=6)
    assert result.report.funnel.detailed == 6


def test_without_a_specimen_the_report_says_so_and_gives_no_category(small_slide: Path, tmp_path: Path) -> None:
    result = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), top_k=1, threshold=0.01)
    assert result.report.specimen.given is False
    assert result.category is None
    assert any("specimen type was not given" in note for note in result.report.notes)


def test_failed_screening_answers_make_the_slide_indeterminate_never_normal(small_slide: Path, tmp_path: Path) -> None:
    faults = [Fault(at=n, kind="fail") for n in range(0, 400, 2)]
    engine = ScriptedEngine(lambda q: {"A": 0.99, "B": 0.01}, faults=faults)
    result = wsi_chat.analyze(small_slide, out=tmp_path, engine=engine, top_k=0)
    assert result.status == "indeterminate"
    assert result.report.funnel.screen_failed > 0
    assert "no usable answer" in result.report.verdict.reason


def test_a_dead_engine_keeps_its_answers_and_the_rerun_asks_only_the_rest(small_slide: Path, tmp_path: Path) -> None:
    engines = [ScriptedEngine(says, faults=[Fault(at=4, kind="die")]) for _ in range(2)]
    left = list(engines)
    with pytest.raises(EngineDied) as raised:
        wsi_chat.analyze(small_slide, out=tmp_path, engine=SupervisedEngine(lambda: left.pop(0)), top_k=1)
    assert raised.value.exit_code == 3
    answered = {query.key for engine in engines for query in engine.asked[:4]}
    assert len(answered) == 8
    fresh = ScriptedEngine(says)
    wsi_chat.analyze(small_slide, out=tmp_path, engine=fresh, top_k=1)
    assert answered.isdisjoint(query.key for query in fresh.asked)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import wsi_chat
from wsi_chat.engines import ScriptedEngine
from test_pipeline import says

def slowly(query):
    with open(sys.argv[3], "a") as log:  # what was asked, written before the answer is given
        log.write(query.key + "\\n")
    time.sleep(0.02)
    return says(query)

wsi_chat.analyze(sys.argv[1], out=sys.argv[2], engine=ScriptedEngine(slowly), specimen="cervix", top_k=3,
                 controls=False)
"""


def test_runs_killed_at_any_instant_end_in_the_same_report_with_no_tile_asked_twice(
    small_slide: Path, tmp_path: Path
) -> None:
    whole = wsi_chat.analyze(
        small_slide, out=tmp_path / "whole", engine=ScriptedEngine(says), specimen="cervix", top_k=3, controls=False
    )
    total = whole.report.timings.answers_new
    log, out = tmp_path / "asked.txt", tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(small_slide), str(out), str(log), str(Path(__file__).parent)]
    kills = 0
    for wanted in (3, total // 3, 2 * total // 3):
        process = subprocess.Popen(command)
        while process.poll() is None and (not log.exists() or len(log.read_text().split()) < wanted):
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3
    subprocess.run(command, check=True)
    asked = Counter(log.read_text().split())
    # a question in flight at the kill was never answered, so it alone may be asked again: one for each kill
    assert sum(asked.values()) <= total + kills
    assert len(asked) == total
    report = json.loads(next(out.glob("*/report.json")).read_text())
    expected = json.loads((whole.folder / "report.json").read_text())
    assert {k: v for k, v in report.items() if k != "timings"} == {k: v for k, v in expected.items() if k != "timings"}


def test_unwritable_output_is_refused_before_the_slide_is_read(tmp_path: Path, small_slide: Path) -> None:
    (tmp_path / "file").write_text("")
    engine = ScriptedEngine(says)
    with pytest.raises(OutputError, match="-o"):
        wsi_chat.analyze(small_slide, out=tmp_path / "file" / "out", engine=engine)
    assert engine.asked == []


def test_an_unknown_pool_is_named_before_anything_is_asked(small_slide: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(says)
    with pytest.raises(SettingError, match="mediam"):
        wsi_chat.analyze(small_slide, out=tmp_path, engine=engine, pool="mediam")
    assert engine.asked == []


def test_an_unknown_setting_and_a_missing_slide_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="topk"):
        wsi_chat.analyze("x.svs", out=tmp_path, topk=3)
    with pytest.raises(SlideNotFound, match=r"absent\.svs"):
        wsi_chat.analyze(tmp_path / "absent.svs", out=tmp_path, engine=ScriptedEngine(says))


def test_the_notebook_picture_is_self_contained_and_escaped(small_slide: Path, tmp_path: Path) -> None:
    result = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), specimen="cervix", top_k=1)
    html = result._repr_html_()
    assert "data:image/png;base64," in html
    assert result.status in html.lower()
    assert 'src="http' not in html


def test_importing_the_package_loads_no_model_library() -> None:
    code = (
        "import sys, wsi_chat, wsi_chat.cli; print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(("z", "planes"), [("best", [0, 2]), ("mid", [1]), ("2", [2]), ("fused", [None])])
def test_the_plane_of_a_stack_that_each_tile_shows_is_recorded(
    tmp_path: Path, z: str, planes: list[int | None]
) -> None:
    import tifffile

    planes_px = np.full((3, 256, 512, 3), 236, np.uint8)
    grid = (np.indices((40, 40)).sum(0) // 4 % 2 * 150 + 60).astype(np.uint8)[..., None]
    planes_px[0, 100:140, 100:140] = grid  # sharp in the left half of the first plane
    planes_px[2, 100:140, 360:400] = grid  # and in the right half of the last
    for plane, x in ((1, 100), (2, 100), (0, 360), (1, 360)):
        planes_px[plane, 100:140, x : x + 40] = 135  # out of focus elsewhere
    path = tmp_path / "stack.ome.tiff"
    meta = {"axes": "ZYXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, planes_px, photometric="rgb", metadata=meta, tile=(128, 128), ome=True)
    result = wsi_chat.analyze(
        path, out=tmp_path / "out", engine=ScriptedEngine(says), specimen="cervix", top_k=0, z=z, overlap=0, tile_px=256
    )
    shown = result.tiles.column("z").to_pylist()
    assert sorted(set(shown)) == planes
    assert len(shown) == 2
    assert wsi_chat.load_result(result.folder).tiles.column("z").to_pylist() == shown


def test_a_plane_that_a_stack_does_not_have_is_refused(small_slide: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="z"):
        wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), z="7")
    with pytest.raises(SettingError, match="best, fused, mid"):
        wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(says), z="sharp")
