"""No document but run.json says where files are or whose account it was; under pseudonyms none says whose slides."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pypdf
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import wsi_chat
from wsi_chat.analysis.provenance import config_of
from wsi_chat.analysis.pseudonyms import Pseudonyms, names_of
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.run_log import run_log
from wsi_chat.analysis.sample import Sample
from wsi_chat.app.source import find_slides
from wsi_chat.cohort import CohortResult, analyze_slides
from wsi_chat.commands.analyze import run_analyze
from wsi_chat.engines import ScriptedEngine
from wsi_chat.engines.server import Server, _identity
from wsi_chat.errors import SettingError
from wsi_chat.names import Names, hiding, without_folder
from wsi_chat.schema import Query
from wsi_chat.scoring.fitting import read_labelled
from wsi_chat.settings import resolve

from .model_server import FakeServer, reply

USER = "someuser"
PEOPLE = ("Mary_Roe", "ROE^MARY", "PID-77", "19500101", "Elsewhere", "ACC-9", "IMG_0815", "Jane_Doe")
REAL = ("slide_of_Mary_Roe.tiff", "IMG_0815", "Jane_Doe.svs", "boxes_0", "Mary_Roe")
RUN: dict[str, Any] = {
    "specimen": "cervix", "limit": 4, "coverage_floor": 0.0, "top_k": 2, "adequacy_tiles": 0, "gallery": 2,
    "narrative": "template",
}  # fmt: skip


def marks(query: Query) -> str | dict[str, float]:
    if query.choices:
        return {query.choices[0]: 0.3, query.choices[-1]: 0.7}
    if query.task != "ground" or query.target != "hsil":
        return f"No {query.target} is found."
    return "hsil 1 is located at <region>10 10 60 60</region>."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, small_slide: Path, shared_data: Path) -> Path:
    """A home with a slide, a DICOM slide, photographs, a file that is no slide, a missing one, and a manifest."""
    pydicom = pytest.importorskip("pydicom")
    home = tmp_path_factory.mktemp("homes") / USER
    folder = home / "cases"
    (folder / "photos").mkdir(parents=True)
    shutil.copy(small_slide, folder / "slide_of_Mary_Roe.tiff")
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        shutil.copy(shared_data / "slides" / name, folder / name)
        header = pydicom.dcmread(folder / name)
        header.PatientName, header.PatientID, header.PatientBirthDate = "ROE^MARY", "PID-77", "19500101"
        header.InstitutionName, header.AccessionNumber = "St Elsewhere", "ACC-9"
        header.save_as(folder / name)
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(60, 240, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"IMG_0815_{number}.png")
    (folder / "photos" / "IMG_0815_3.png").write_bytes(b"\x89PNG\r\n\x1a\n half a picture")
    (folder / "Jane_Doe.svs").write_bytes(b"II*\0 not a slide")
    rows = [
        "sample_id,image_path,label,patient,note",
        "Mary_Roe 1,slide_of_Mary_Roe.tiff,hsil,Mary_Roe,seen by Dr Elsewhere",
        f"dicom,{folder / 'boxes_0.dcm'},nilm,Mary_Roe,",
        "photos of IMG_0815,photos,nilm,P2,",
        "Jane_Doe,Jane_Doe.svs,nilm,Jane_Doe,",
        "gone,nowhere/Jane_Doe.tiff,nilm,Jane_Doe,",
    ]
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return home


def run(home: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> CohortResult:
    monkeypatch.setenv("HOME", str(home))
    with run_log(out):
        return wsi_chat.analyze_cohort(
            home / "cases" / "manifest.csv", out=out, engine=ScriptedEngine(marks), **RUN, **more
        )


def texts_of(path: Path) -> Iterator[str]:
    """All that a file says: its bytes, and what its compression hides."""
    yield path.name
    yield path.read_bytes().decode("latin-1")
    if path.suffix == ".pdf":
        reader = pypdf.PdfReader(path)
        yield str(reader.metadata)
        yield "\n".join(page.extract_text() for page in reader.pages).replace("\n", "")
    elif path.suffix == ".parquet":
        table = parquet.read_table(path)
        yield f"{table.schema.metadata} {parquet.read_metadata(path).metadata} {table.to_pylist()}"
    elif path.suffix in (".png", ".jpg"):
        with Image.open(path) as picture:
            yield str(picture.info)
    elif path.suffix == ".sqlite":
        database = sqlite3.connect(path)
        yield "\n".join(database.iterdump())
        database.close()


def where_held(out: Path, words: tuple[str, ...]) -> dict[str, list[str]]:
    """Document -> which of the words it holds."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        text = "\n".join(texts_of(path))
        if held := [word for word in words if word in text]:
            found[str(path.relative_to(out))] = held
    return found


def rows_of(out: Path) -> list[Mapping[str, str]]:
    with (out / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_only_run_json_says_where_files_are_and_whose_account_it_was(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = home / "own"
    own.mkdir()
    (own / "ancillary.yaml").write_text("- HPV 16 positive\n", encoding="utf-8")
    (own / "scope.yaml").write_text("statement: cervical slides\nspecimens: {cervix: any}\n", encoding="utf-8")
    out = home / "out"
    done = run(home, out, monkeypatch, ancillary=(str(own / "ancillary.yaml"),), scope=str(own / "scope.yaml"))
    assert [state.status for state in done.states] == ["done", "done", "done", "failed", "failed"], done.states
    names = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert names >= {".pdf", ".html", ".json", ".csv", ".geojson", ".parquet", ".png", ".dcm", ".sqlite", ".log"}
    assert set(where_held(out, (USER, str(home)))) == {"run.json"}
    rows = rows_of(out)
    assert [row["image_path"] for row in rows] == [
        "slide_of_Mary_Roe.tiff", "boxes_0.dcm", "photos", "Jane_Doe.svs", "nowhere/Jane_Doe.tiff"
    ]  # fmt: skip
    assert "There is no file .../Jane_Doe.tiff" in rows[4]["reason"]
    report = json.loads((out / rows[0]["slide_id"] / "report.json").read_text())
    assert report["provenance"]["config"]["scope"] == "scope.yaml"
    assert report["provenance"]["config"]["ancillary"] == ["ancillary.yaml"]
    # and what needs the files finds them
    given = RunFolder(out).slide(rows[0]["slide_id"]).settings_of(done.result("Mary_Roe 1").report)
    assert given["scope"] == str(own / "scope.yaml")
    again = ScriptedEngine(marks)
    repeated = wsi_chat.analyze_cohort(
        home / "cases" / "manifest.csv", out=out, engine=again, **RUN, ancillary=(str(own / "ancillary.yaml"),),
        scope=str(own / "scope.yaml"),
    )  # fmt: skip
    assert again.asked == []
    assert repeated.rows[:4] == done.rows[:4]


def test_under_pseudonyms_only_the_private_file_says_whose_slides_they_are(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = tmp_path / "out", tmp_path / "elsewhere.json"
    done = run(home, out, monkeypatch, pseudonymize=True, pseudonyms=str(table))
    assert [state.status for state in done.states] == ["done", "done", "done", "failed", "failed"]
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    known = json.loads(table.read_text())
    rows = rows_of(out)
    assert [known["samples"][row["sample_id"]] for row in rows] == [
        "Mary_Roe 1", "dicom", "photos of IMG_0815", "Jane_Doe", "gone"
    ]  # fmt: skip
    assert known["slides"][rows[0]["slide_id"]] == str(home / "cases" / "slide_of_Mary_Roe.tiff")
    assert rows[0]["patient"] == rows[1]["patient"] != rows[3]["patient"]  # still one patient's
    assert known["patients"][rows[0]["patient"]] == "Mary_Roe"
    assert [row["label"] for row in rows] == ["hsil", "nilm", "nilm", "nilm", "nilm"]
    assert "note" not in rows[0]
    assert where_held(out, (USER, *PEOPLE, *REAL)) == {}
    # the page knows the slides by their pseudonyms, and finds them
    page = find_slides(out)
    assert {entry.title for entry in page.entries.values()} == {row["file"] for row in rows}
    result = next(iter(page.entries.values())).load()
    assert result is not None
    assert result.slide_path == home / "cases" / "slide_of_Mary_Roe.tiff"
    # what people see of the photographs are numbers
    fields = json.loads((out / rows[2]["slide_id"] / "report.json").read_text())["slide"]["fields"]
    assert [field["name"] for field in fields] == [f"{rows[2]['slide_id']}-{n:03}.png" for n in (1, 2, 3)]
    # a manifest with the real names, and the summary itself, find their runs for fit
    for manifest in (home / "cases" / "manifest.csv", out / "summary.csv"):
        assert [row.folder is not None for row in read_labelled(manifest, out)] == [True, True, True, False, False]


def test_dicom_objects_under_pseudonyms_name_nobody_and_belong_together(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    out = tmp_path / "out"
    slide = home / "cases" / "boxes_0.dcm"
    result = wsi_chat.analyze(slide, out=out, engine=ScriptedEngine(marks), **RUN, pseudonymize=True)
    made = [pydicom.dcmread(path) for path in sorted(result.folder.glob("*.dcm"))]
    source = pydicom.dcmread(slide, stop_before_pixels=True)
    assert len(made) == 2
    for one in made:
        assert (one.PatientID, one.PatientName.family_name) == (result.report.slide.id,) * 2
        assert not one.get("PatientBirthDate")
        assert not one.get("AccessionNumber")
    assert made[0].StudyInstanceUID == made[1].StudyInstanceUID != source.StudyInstanceUID
    own = {str(source[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    assert not [uid for uid in own if any(uid in str(one) for one in made)]
    again = wsi_chat.analyze(slide, out=out, engine=ScriptedEngine(marks), **RUN, pseudonymize=True)
    assert pydicom.dcmread(again.folder / "report-sr.dcm").SOPInstanceUID in {one.SOPInstanceUID for one in made}


def test_a_pseudonym_needs_the_key_and_stays_with_it(tmp_path: Path, small_slide: Path) -> None:
    slides = [Sample("cells", small_slide), Sample("other", small_slide.with_name("cells.svs"), patient="cells")]
    ids = []
    for table in ("one.json", "one.json", "two.json"):
        pseudonyms = Pseudonyms(tmp_path / table)
        made = pseudonyms.apply(slides)
        pseudonyms.save(made)
        ids.append([(sample.slide_id, sample.file_name, sample.patient) for sample in made])
    assert ids[0] == ids[1]
    assert not {*ids[0]} & {*ids[2]}
    assert ids[0][0][0] != ids[0][1][0]
    assert "cells" not in str(ids)
    assert [name.rpartition(".")[2] for _, name, _ in ids[0]] == ["tiff", "svs"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"key": "short"}', '{"key": "' + "0" * 64 + '", "slides": []}', "{"])
def test_a_damaged_table_of_pseudonyms_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(SettingError, match=r"pseudonyms: .*names\.json"):
        Pseudonyms(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://gateway.example/sk-12345/v1", "https://gateway.example/..."),
        ("/data/models/mine", "mine"),
        ("qwen2.5-vl", "qwen2.5-vl"),
        ("Qwen/Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-3B"),
        ("HPV 16/18 positive", "HPV 16/18 positive"),
    ],
)
def test_a_setting_is_shown_without_folders_and_an_address_without_its_path(value: str, shown: str) -> None:
    assert without_folder(value) == shown


@pytest.mark.parametrize("address", ["gateway.example/sk-12345/v1", "https://gateway.example/v1/sk-12345/"])
def test_the_path_of_a_server_stands_in_no_document_however_its_address_is_given(address: str) -> None:
    """Without ``http://`` it passed for a file, whose last part is shown: the key."""
    given, _ = resolve({"base_url": address})
    assert given.base_url is not None
    assert "/sk-12345" in given.base_url  # where the questions go
    assert config_of(given)["base_url"].endswith("://gateway.example/...")
    names = names_of(Sample("a", Path("a.svs")), RunFolder(Path("out")), given)
    assert "sk-12345" not in names.hide(f"no server answers at {given.base_url}: refused")


def test_a_name_is_hidden_where_it_stands_alone_and_the_longest_first() -> None:
    real = {"Roe": "slide-1", "/data/Roe/Roe.svs": "slide-1.svs", "/data/Roe": "..."}
    names = Names("slide-1.svs", hidden=hiding(real))
    text = "/data/Roe/Roe.svs and /data/Roe/other.svs of Roe, Roebuck and (Roe)."
    assert names.hide(text) == "slide-1.svs and .../other.svs of slide-1, Roebuck and (slide-1)."


def test_what_was_put_in_is_not_replaced_again() -> None:
    """A file called slide.svs turned every pseudonym ``slide-1a2b`` into two."""
    real = {"Roe": "slide-1a2b", "Roe.svs": "slide-1a2b.svs", "slide": "slide-3c4d", "slide.svs": "slide-3c4d.svs"}
    names = Names("", hidden=hiding(real))
    said = names.hide("Roe.svs of Roe, slide.svs and slide-1a2b.svs of slide")
    assert said == "slide-1a2b.svs of slide-1a2b, slide-3c4d.svs and slide-1a2b.svs of slide-3c4d"
    assert names.hide("slide-1a2b and slide-3c4d.svs") == "slide-1a2b and slide-3c4d.svs"


NAME = st.text(alphabet="aB-. ", min_size=2, max_size=6).map(str.strip).filter(lambda text: len(text) > 1)


@settings(deadline=None)
@given(st.dictionaries(NAME, st.sampled_from(["slide-1", "slide-2.svs", "a-B", "aa"]), max_size=5), st.lists(NAME))
def test_no_name_is_left_and_hiding_twice_changes_nothing(real: dict[str, str], parts: list[str]) -> None:
    assume(not set(real) & set(real.values()))  # a pseudonym that is a name too would itself be hidden
    names = Names("", hidden=hiding(real))
    text = names.hide(" | ".join(parts))
    shown = set(real.values())
    for part in text.split(" | "):
        assert part not in real or part in shown
    assert names.hide(text) == text


@pytest.mark.parametrize("name", ["cell", "tile", "slide", "image", "field", "blood", "normal", "100"])
def test_a_slide_whose_name_is_an_ordinary_word_leaves_sentences_as_they_are(
    name: str, tmp_path: Path, small_slide: Path
) -> None:
    """Every "cell" of a message became the pseudonym of cell.svs."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(small_slide, folder / f"{name}.tiff")
    (folder / "Mary_Roe.svs").write_bytes(b"II*\0 not a slide")
    (folder / "zero.svs").write_bytes(b"")
    with run_log(out):
        done = wsi_chat.analyze_cohort(folder, out=out, engine=ScriptedEngine(marks), **RUN, pseudonymize=True)
        logging.getLogger("wsi_chat").warning("a %s, '%s', %s.tiff and /data/%s.tiff: Mary_Roe", *[name] * 4)
    known = json.loads((out / "pseudonyms.json").read_text())["samples"]
    alias = {Path(known[row["sample_id"]]).name.split("-")[0]: row["sample_id"] for row in done.rows}
    reasons = {row["sample_id"]: row["reason"] for row in done.rows}
    mary, zero = (next(a for a, real in known.items() if real.startswith(start)) for start in ("Mary", "zero"))
    assert reasons[mary].startswith(f"{mary}.svs cannot be opened as a slide: it is cut off"), alias
    assert reasons[zero].startswith(f"{zero}.svs is empty (0 bytes).")
    own = next(a for a, real in known.items() if real.startswith(name))
    log = (out / "run.log").read_text()
    assert f"a {name}, '{own}', {own}.tiff and /data/{own}.tiff: {mary}" in log
    assert f"{own}.tiff: 4 of" in log


@pytest.mark.parametrize("status", [200, 404])
def test_the_path_of_a_server_is_in_run_json_alone(
    status: int, tmp_path: Path, small_slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reports named the model by its whole address, and what a server said of its own path was kept."""
    key = "sk-very-secret-key"
    path = f"/{key}/v1/chat/completions"
    server = FakeServer(lambda body, number: reply("A") if status == 200 else (status, {"error": f"nothing at {path}"}))
    out, place = tmp_path / "out", f"127.0.0.1:{server.port}"
    given = {"base_url": f"{place}/{key}/v1", "dialect": "json", "limit": 2, "top_k": 0, "controls": False}
    try:
        with run_log(out):
            code = run_analyze([small_slide], out=out, config=None, environ={}, flags=RUN | given)
    finally:
        server.stop()
    assert code == (0 if status == 200 else 3)
    assert set(server.paths) == {path}
    assert where_held(out, (key,)) == {"run.json": [key]}
    assert key not in "".join(capsys.readouterr())
    (report,) = out.glob("*/report.json")
    assert json.loads(report.read_text())["provenance"]["model"]["revision"].startswith(f"tiny@http://{place}/... ")


def test_two_paths_of_one_server_are_two_models() -> None:
    def identity(path: str) -> str:
        return _identity(Server(None, f"http://h/{path}", key="", timeout=1, retries=0, pause=0))  # type: ignore[arg-type]

    assert identity("v1") == "http://h/v1"
    assert len({identity(path) for path in ("v1", "a/v1", "b/v1")}) == 3
    assert identity("a/v1") == identity("a/v1")


def test_a_key_that_the_server_repeats_is_written_nowhere(tmp_path: Path, small_slide: Path) -> None:
    key, seen = "sk-very-secret-key", []

    class Server(BaseHTTPRequestHandler):
        def _say(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps({"error": f"not with {key}"}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _say  # noqa: N815

        def log_message(self, *given: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        environ = {"WSI_CHAT_API_KEY": key, "OPENAI_API_KEY": key}
        with pytest.MonkeyPatch.context() as patch, run_log(tmp_path / "out"):
            for name, value in environ.items():
                patch.setenv(name, value)
            result = analyze_slides(
                [small_slide], out=tmp_path / "out", base_url=f"http://127.0.0.1:{server.server_port}/v1", model="m",
                dialect="json",
                **RUN | {"limit": 2, "top_k": 0, "format": "json", "controls": False},
            )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert f"Bearer {key}" in seen
    assert where_held(tmp_path / "out", (key,)) == {}
    assert key not in str(result.rows) + str(result.stopped_by)
