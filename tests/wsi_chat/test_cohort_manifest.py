"""Manifests as people and programs write them, and what is said of those that cannot be used."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_chat.analysis.manifest import read_manifest
from wsi_chat.analysis.sample import Sample
from wsi_chat.cohort import find_slides
from wsi_chat.errors import SettingError


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("sample_id,image_path,mpp,label,patient,specimen", "a,x.svs,0.25,normal,p1,cervix",
         ("a", 0.25, "normal", "p1", "cervix")),
        ("wsi,mpp", "x.svs,0.25", (None, 0.25, "", "", None)),  # TRIDENT
        ("sample_id,image_path,mask_path,spacing_at_level_0", "a,x.svs,m.tif,0.25", ("a", 0.25, "", "", None)),  # hs2p
        ("wsi_path,mask_path", "x.svs,", (None, None, "", "", None)),  # hs2p before
        ("case_id,slide_id,label,path", "p1,a,tumor,x.svs", ("a", None, "tumor", "p1", None)),  # CLAM
        (" Image_Path ; MPP ", "x.svs ; 0,25", (None, 0.25, "", "", None)),  # a spreadsheet in half of Europe
        ("image_path\tmpp", "x.svs\tNaN", (None, None, "", "", None)),
    ],
)  # fmt: skip
def test_headers_of_other_programs(tmp_path: Path, header: str, row: str, expected: tuple[object, ...]) -> None:
    (sample,) = read_manifest(write(tmp_path, f"{header}\n{row}\n"))
    assert sample.path == tmp_path / "x.svs"
    sample_id, mpp, label, patient, specimen = expected
    assert sample.sample_id == (sample_id or sample.slide_id)
    assert (sample.mpp, sample.label, sample.patient, sample.specimen) == (mpp, label, patient, specimen)


def test_an_alias_beside_our_own_name_stays_an_extra_column(tmp_path: Path) -> None:
    (sample,) = read_manifest(write(tmp_path, "image_path,file,site\nx.svs,other.svs,Lyon\n"))
    assert sample.path.name == "x.svs"
    assert sample.extra == {"file": "other.svs", "site": "Lyon"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_names_in_another_script_are_read_in_the_encodings_of_spreadsheets(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "宫颈涂片.svs").write_bytes(b"")
    (sample,) = read_manifest(write(tmp_path, "image_path,label\r\n宫颈涂片.svs,正常\r\n", encoding))
    assert (sample.path.name, sample.label) == ("宫颈涂片.svs", "正常")


@pytest.mark.parametrize(
    ("patient", "encoding"),
    [("Léon", "cp1252"), ("Björn Günther", "latin-1"), ("créée", "latin-1"), ("иванов", "cp1251")],
)
def test_names_that_could_be_in_two_encodings_are_not_guessed(tmp_path: Path, patient: str, encoding: str) -> None:
    """``Léon`` became ``L閛n``, with a warning."""
    (tmp_path / "x.svs").write_bytes(b"")
    path = write(tmp_path, f"image_path,patient\nx.svs,{patient}\n", encoding)
    with pytest.raises(SettingError) as raised:
        read_manifest(path)
    seen = patient.split()[0].encode(encoding)
    western, chinese = seen.decode("cp1252"), seen.decode("gb18030")
    assert raised.value.message.startswith("manifest.csv, line 2: not UTF-8 text")
    assert f"{western!r} if it is cp1252, {chinese!r} if it is gb18030" in raised.value.message
    assert "Save it as UTF-8" in raised.value.hint


@pytest.mark.parametrize("label", ["正常", "未见上皮内病变", "朱镕基", "高级别鳞状上皮内病变（HSIL）"])
def test_text_that_is_clearly_chinese_is_read_beside_plain_names(tmp_path: Path, label: str) -> None:
    (tmp_path / "x.svs").write_bytes(b"")
    (sample,) = read_manifest(write(tmp_path, f"image_path,label\nx.svs,{label}\n", "gb18030"))
    assert sample.label == label


@pytest.mark.parametrize(("name", "encoding"), [("Léon", "cp1252"), ("Mariëlle", "latin-1"), ("珺", "gb18030")])
def test_a_slide_that_is_there_by_its_name_tells_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    for there in (f"{name}.svs", "x.svs"):
        (tmp_path / there).write_bytes(b"")
    text = f"image_path,patient\nx.svs,{name}\n{name}.svs,{name} 2\n"
    samples = read_manifest(write(tmp_path, text, encoding))
    assert [sample.path.name for sample in samples] == ["x.svs", f"{name}.svs"]
    assert [sample.patient for sample in samples] == [name, f"{name} 2"]


def test_text_that_is_in_no_encoding_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"image_path\nfirst.svs\n\xff\x80\xfe.svs\n")
    with pytest.raises(SettingError, match=r"line 3.*UTF-8"):
        read_manifest(path)


def test_windows_separators_absolute_paths_and_blank_lines(tmp_path: Path) -> None:
    text = f"image_path\n\nsub\\x.svs\n{tmp_path / 'y.svs'}\n,\n"
    assert [s.path for s in read_manifest(write(tmp_path, text))] == [tmp_path / "sub" / "x.svs", tmp_path / "y.svs"]


def test_the_home_of_nobody_is_a_folder_like_any_other(tmp_path: Path) -> None:
    (sample,) = read_manifest(write(tmp_path, "image_path\n~nobody-here/x.svs\n"))
    assert sample.path == tmp_path / "~nobody-here/x.svs"


def test_a_missing_slide_file_is_no_error_of_the_manifest(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, "image_path\nnowhere.svs\n"))[0].path == tmp_path / "nowhere.svs"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["empty"]),
        ("\n \n", ["empty"]),
        ("image_path,mpp\n", ["no slide"]),
        ("name,mpp\nx.svs,0.5\n", ["line 1", "image_path", "name, mpp"]),
        ("image_path,image_path\nx,y\n", ["line 1", "'image_path'", "twice"]),
        ("image_path,mpp\nx.svs,0.5\ny.svs,abc\n", ["line 3", "column mpp", "'abc'"]),
        ("image_path,mpp\nx.svs,352.8\n", ["line 2", "column mpp", "'352.8'", "0.05 to 5"]),
        ("image_path,mpp\nx.svs,-0.5\n", ["line 2", "'-0.5'"]),
        ("image_path,mpp\nx.svs,inf\n", ["line 2", "'inf'"]),
        ("image_path,mpp\nx.svs,0.5,surplus\n", ["line 2", "3 values under 2 columns", "'surplus'"]),
        ("image_path,mpp\n,0.5\n", ["line 2", "column image_path"]),
        ("sample_id,image_path\na,x.svs\n\na,y.svs\n", ["line 4", "column sample_id", "'a'", "line 2"]),
        ("image_path\nx.svs\n./sub/../x.svs\n", ["line 3", "column image_path", "line 2"]),
        ("image_path,specimen\nx.svs,moon-rock\n", ["line 2", "column specimen", "'moon-rock'"]),
        ('image_path,label\nx.svs,"open\n', ["line 2"]),
        ("image_path\n\x00x\n", ["not a text file"]),
    ],
)
def test_errors_name_line_column_and_value(tmp_path: Path, text: str, says: list[str]) -> None:
    with pytest.raises(SettingError) as raised:
        read_manifest(write(tmp_path, text))
    shown = str(raised.value)
    assert [fragment for fragment in says if fragment not in shown] == [], shown
    assert raised.value.hint


def test_every_bad_line_is_named_at_once(tmp_path: Path) -> None:
    """Only the first was, so that a manifest was corrected one line a try."""
    lines = [
        "sample_id,image_path,mpp,specimen", "a,x.svs,0.5,", "b,y.svs,abc,", "c,z.svs,0.5,cervix,surplus",
        "d,,0.5,", "a,w.svs,,", "e,x.svs,,", "f,v.svs,,moon-rock",
    ]  # fmt: skip
    with pytest.raises(SettingError) as raised:
        read_manifest(write(tmp_path, "\n".join(lines)))
    head, *faults = raised.value.message.split("\n")
    assert head == "manifest.csv has 6 faults:"
    assert [fault.split(":")[0] for fault in faults] == [
        "  line 3, column mpp", "  line 4", "  line 5, column image_path", "  line 6, column sample_id",
        "  line 7, column image_path", "  line 8, column specimen",
    ]  # fmt: skip
    assert "Give every slide an id of its own. Name every slide once." in raised.value.hint


@pytest.mark.parametrize(("wrong", "more"), [(10, []), (11, ["  and 1 more."]), (25, ["  and 15 more."])])
def test_of_many_bad_lines_ten_are_named_and_the_rest_counted(tmp_path: Path, wrong: int, more: list[str]) -> None:
    rows = [f"{n}.svs,many" for n in range(wrong)]
    with pytest.raises(SettingError) as raised:
        read_manifest(write(tmp_path, "\n".join(["image_path,mpp", "good.svs,0.5", *rows])))
    head, *faults = raised.value.message.split("\n")
    assert head == f"manifest.csv has {wrong} faults:"
    assert faults[:10] == [f"  line {n}, column mpp: 'many' is not a valid resolution." for n in range(3, 13)]
    assert faults[10:] == more


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"absent\.csv"):
        read_manifest(tmp_path / "absent.csv")


# what a cell may hold and come back as: no surrounding blanks, no control characters
CELL = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Zs"), blacklist_characters="\x00"), max_size=12
).map(str.strip)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(CELL, CELL, CELL, st.one_of(st.none(), st.floats(0.05, 5.0))), min_size=1, max_size=6
    ),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str, float | None]],
    separator: str,
    encoding: str,
    newline: str,
) -> None:
    folder = tmp_path_factory.mktemp("m")
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=newline)
    writer.writerow(["sample_id", "image_path", "label", "patient", "site", "mpp"])
    for n, (label, patient, site, mpp) in enumerate(rows):
        writer.writerow([f"s{n}", f"slide {n}.svs", label, patient, site, "" if mpp is None else repr(mpp)])
    samples = read_manifest(write(folder, text.getvalue(), encoding))
    assert [(s.label, s.patient, s.extra["site"], s.mpp) for s in samples] == rows
    assert [s.path for s in samples] == [folder / f"slide {n}.svs" for n in range(len(rows))]


# ------------------------------------------------------------------------------------------ folders


def test_a_folder_is_searched_and_a_dicom_series_is_one_slide(tmp_path: Path, shared_data: Path) -> None:
    slides = shared_data / "slides"
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    for source, place in {
        "small.svs": "b.svs", "boxes.tiff": "deep/deeper/a.TIFF", "boxes_0.dcm": "deep/boxes_0.dcm",
        "boxes_1.dcm": "deep/boxes_1.dcm",
    }.items():  # fmt: skip
        shutil.copy(slides / source, tmp_path / place)
    (tmp_path / "notes.txt").write_text("no slide")
    (tmp_path / "preview.png").write_bytes(b"")
    (tmp_path / "._b.svs").write_bytes(b"")
    (tmp_path / "out" / "x-12345678").mkdir(parents=True)
    shutil.copy(slides / "boxes.tiff", tmp_path / "out" / "x-12345678" / "crop.tiff")
    (tmp_path / "z.ome.zarr" / "0").mkdir(parents=True)
    (tmp_path / "z.ome.zarr" / "zarr.json").write_text("{}")
    (tmp_path / "z.ome.zarr" / "0" / "inner.tiff").write_bytes(b"")
    found = find_slides(tmp_path, skip=tmp_path / "out")
    assert [s.path.relative_to(tmp_path).as_posix() for s in found] == [
        "b.svs", "deep/boxes_0.dcm", "deep/deeper/a.TIFF", "z.ome.zarr",
    ]  # fmt: skip
    assert len({s.sample_id for s in found}) == 4


def test_a_folder_without_slides_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no slide in .*\.svs"):
        find_slides(tmp_path)


def test_same_named_slides_have_ids_of_their_own(tmp_path: Path) -> None:
    first, second = Sample("a", tmp_path / "a" / "x.svs"), Sample("b", tmp_path / "b" / "x.svs")
    assert first.slide_id != second.slide_id


def test_a_manifest_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(SettingError, match="not a regular file"):
            read_manifest(path)
