"""Instruction data: true to the annotations, readable by the dialect that wrote it, never leaking between splits."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_chat.datasets.annotated import Annotated
from wsi_chat.datasets.build import Built, build_dataset
from wsi_chat.datasets.check import check_file
from wsi_chat.datasets.collect import Sources, collect
from wsi_chat.datasets.mosaic import write_pyramid
from wsi_chat.datasets.questions import KINDS, Interviewer
from wsi_chat.datasets.splits import Member, assign, bind, leaks, parse_fractions
from wsi_chat.datasets.wordings import Names, place
from wsi_chat.dialects import Dialect, DialectSpec, get_dialect
from wsi_chat.errors import OutputError, SettingError, SlideError, SlideNotFound
from wsi_chat.schema import Answer, Box, LabelledBox
from wsi_chat.terminology import load_system

CYTO = get_dialect("cytochat")
CERVIX = Names(load_system("cervix"))
KNOWN = frozenset((*CERVIX.abnormal_codes, "candida", "intermediate", "neutrophil"))


def json_dialect() -> Dialect:
    """A family that writes JSON boxes on 0-1000."""
    data = json.loads(CYTO.spec.model_dump_json())
    data |= {"name": "json-style", "coordinates": "norm1000", "decimals": 0, "boxes": "json"}
    return Dialect(DialectSpec.model_validate(data))


def picture(
    name: str, boxes: list[tuple[str, tuple[float, ...]]], *, shade: int | None = None, **more: Any
) -> Annotated:
    seed = sum(map(ord, name)) if shade is None else shade
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    found = tuple(LabelledBox(label, Box(*corners)) for label, corners in boxes)
    given: dict[str, Any] = {"known": KNOWN, "group": name, **more}
    return Annotated(name, (128, 64), lambda: Image.fromarray(pixels), boxes=found, **given)


def several(n: int = 12) -> list[Annotated]:
    made = []
    for i in range(n):
        boxes = [("hsil", (10 + i, 8, 40 + i, 30))] if i % 2 else []
        made.append(picture(f"p{i}", [*boxes, ("intermediate", (60, 20, 110.5, 60.25))], group=f"g{i // 2}"))
    return made


def lines_of(built: Built, name: str = "cytology") -> list[dict[str, Any]]:
    texts = [(built.out / f"{name}_{s}.jsonl").read_text(encoding="utf-8").splitlines() for s in built.lines]
    return [json.loads(line) for text in texts for line in text]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes_and_another_seed_other_questions(tmp_path: Path) -> None:
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        build_dataset(several(), tmp_path / name, dialect=CYTO, names=CERVIX, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_the_format_is_the_one_that_trainers_read(tmp_path: Path) -> None:
    built = build_dataset(several(), tmp_path / "o", dialect=CYTO, names=CERVIX)
    info = json.loads((tmp_path / "o" / "dataset_info.json").read_text())
    assert info["cytology_val"] == {
        "file_name": "cytology_val.jsonl", "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }  # fmt: skip
    for record in lines_of(built):
        assert set(record) == {"messages", "images"}
        assert record["messages"][0]["content"].startswith("<image>")
        assert [turn["role"] for turn in record["messages"]] == ["user", "assistant"] * (len(record["messages"]) // 2)
        with Image.open(tmp_path / "o" / record["images"][0]) as image:
            assert image.size == (512, 256)  # as the dialect sends it: nothing is resized later
    assert set(built.kinds) == set(KINDS)
    for split in built.lines:
        assert check_file(tmp_path / "o" / f"cytology_{split}.jsonl").problems == ()


@pytest.mark.parametrize("dialect", [CYTO, get_dialect("embedded"), json_dialect()], ids=lambda d: d.name)
def test_every_grounding_answer_reads_back_as_the_annotations(dialect: Dialect) -> None:
    shown = picture("x", [("hsil", (10, 8, 40, 30)), ("hsil", (70, 5, 99.5, 61)), ("lsil", (0, 0, 20, 20))])
    asked = Interviewer(shown, dialect, CERVIX, np.random.default_rng(0))
    frame = dialect.frame((128, 64))
    for label, count in (("hsil", 2), ("lsil", 1), ("scc", 0)):
        text = asked.ground(label).answer
        reading = dialect.read_boxes(Answer(key="k", task="ground", text=text), frame, label)
        assert reading.dropped == 0
        assert [b.label for b in reading.boxes] == [label] * count
        want = [b.box for b in shown.boxes if b.label == label]
        assert all(max(w.iou(r.box) for r in reading.boxes) > 0.93 for w in want)
    assert asked.ground("scc").answer == ("[]" if dialect.name == "json-style" else "No scc is found.")


def test_cytochat_words_and_numbers_are_its_own() -> None:
    shown = picture("x", [("hsil", (10, 8, 40, 30.125))])
    asked = Interviewer(shown, CYTO, CERVIX, np.random.default_rng(0))
    assert asked.ground("hsil").answer == "hsil 1 is located at <region>40.0 32.0 160.0 120.5</region>."
    wordings = {asked.refer(shown.boxes[0]).question for _ in range(60)}
    assert "Give a brief description of region.<region>40.0 32.0 160.0 120.5</region>" in wordings
    assert len(wordings) >= 3
    assert len({asked.ground("hsil").question for _ in range(60)}) >= 3
    assert asked.refer(shown.boxes[0]).answer == "hsil"


def test_option_orders_are_shuffled_and_the_letter_follows_its_option() -> None:
    shown = picture("x", [("hsil", (10, 8, 40, 30))])
    asked = Interviewer(shown, CYTO, CERVIX, np.random.default_rng(1))
    screens = [asked.screen() for _ in range(200)]
    answers = Counter(exchange.answer for exchange in screens if exchange)
    assert set(answers) == {"A.abnormal.", "B.abnormal."}
    assert 70 <= answers["A.abnormal."] <= 130  # 99 % of fair coins lie in 82..118
    for exchange in filter(None, (asked.category() for _ in range(50))):
        listed = re.findall(r"([A-Z])\.([^,\]]+)", exchange.question.split("[")[-1])
        assert exchange.answer.rstrip(".").split(".", 1) == list(next(o for o in listed if o[1] == "HSIL"))
        assert len({text for _, text in listed}) == len(listed)


def test_absence_is_only_claimed_where_it_was_looked_for() -> None:
    partial = picture("x", [("hsil", (10, 8, 40, 30))], known=frozenset())
    kinds = {
        e.kind for t in Interviewer(partial, CYTO, CERVIX, np.random.default_rng(0)).some() if len(t) == 1 for e in t
    }
    assert kinds <= {"refer", "region", "vqa", "screen", "mcq"}
    text = repr(Interviewer(partial, CYTO, CERVIX, np.random.default_rng(0)).some())
    assert "No " not in text
    assert "There are" not in text
    unsure = picture("y", [], unsure=frozenset({"hsil"}))
    asked = Interviewer(unsure, CYTO, CERVIX, np.random.default_rng(0))
    assert "hsil" not in asked.absent
    assert asked.screen() is None
    assert asked.any_abnormal() is None


def test_an_unknown_class_makes_no_picture_normal() -> None:
    odd = picture("x", [("adenocarcinoma", (10, 8, 40, 30))], known=KNOWN | {"adenocarcinoma"})
    asked = Interviewer(odd, CYTO, CERVIX, np.random.default_rng(0))
    assert asked.normal is None
    assert asked.screen() is None
    assert "Negative" not in repr(asked.some())
    kind = Interviewer(odd, CYTO, Names(load_system("cervix"), benign=["adenocarcinoma"]), np.random.default_rng(0))
    assert kind.normal is True
    unspecified = Interviewer(picture("z", []), CYTO, Names(load_system(None)), np.random.default_rng(0))
    assert unspecified.screen() is None  # nobody looked for 'abnormal' here


def test_where_source_and_boxes_disagree_nothing_is_said_of_the_whole() -> None:
    edge = picture("x", [("hsil", (0, 8, 4, 30))], abnormal=False)
    asked = Interviewer(edge, CYTO, CERVIX, np.random.default_rng(0))
    assert (asked.screen(), asked.category(), asked.any_abnormal(), asked.describe()) == (None, None, None, None)


def test_long_lists_are_not_asked_for() -> None:
    many = picture("x", [("hsil", (i, 0, i + 5.0, 9)) for i in range(30)])
    for most, grounded in ((24, False), (30, True)):
        talks = Interviewer(many, CYTO, CERVIX, np.random.default_rng(0), most=most).some()
        assert any("hsil 30 is located" in e.answer for t in talks for e in t) is grounded


@pytest.mark.parametrize(
    ("box", "where"),
    [((0, 0, 10, 10), "upper left"), ((50, 25, 70, 40), "centre"), ((100, 20, 128, 44), "middle right")],
)
def test_places_are_ninths(box: tuple[float, ...], where: str) -> None:
    assert place(Box(*box), (128, 64)) == where


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 15)), min_size=1, max_size=60),
    st.integers(0, 9), st.randoms(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_group_and_no_pixels_in_two_splits_in_any_order(
    rows: list[tuple[int, int]], seed: int, shuffler: Any
) -> None:
    members = [Member(f"m{i}", f"g{g}", f"h{h}") for i, (g, h) in enumerate(rows)]
    shares = parse_fractions("train=0.6,val=0.2,test=0.2")
    splits = assign(members, fractions=shares, seed=seed)
    pairs = list(zip(members, splits, strict=True))
    assert leaks([(s, "g", m.group) for m, s in pairs] + [(s, "h", m.sha256) for m, s in pairs]) == []
    assert sorted(i for part in bind(members) for i in part) == list(range(len(members)))
    shuffled = members[:]
    shuffler.shuffle(shuffled)
    again = {m.name: s for m, s in zip(shuffled, assign(shuffled, fractions=shares, seed=seed), strict=True)}
    assert again == {m.name: s for m, s in pairs}


def test_shares_are_met_when_groups_are_small() -> None:
    members = [Member(str(i), f"g{i}", f"h{i}") for i in range(1000)]
    counts = Counter(assign(members, fractions={"train": 0.8, "val": 0.1, "test": 0.1}))
    assert counts == {"train": 800, "val": 100, "test": 100}


def test_the_same_pixels_under_two_names_stay_together(tmp_path: Path) -> None:
    twins = [picture(f"t{i}", [("hsil", (1, 1, 30, 30))], shade=7) for i in range(3)]
    built = build_dataset([*twins, *several()], tmp_path / "o", dialect=CYTO, names=CERVIX)
    where = {r["images"][0]: s for s in built.lines for r in _of(built, s)}
    assert len({where[f"images/t{i}.jpg"] for i in range(3)}) == 1


def _of(built: Built, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (built.out / f"cytology_{split}.jsonl").read_text().splitlines()]


def test_own_splits_that_leak_are_refused(tmp_path: Path) -> None:
    pair = [picture("a", [], group="p", split="train"), picture("b", [], group="p", split="test")]
    with pytest.raises(SettingError, match="a is in train and b in test"):
        build_dataset(pair, tmp_path / "o", dialect=CYTO, names=CERVIX)


@pytest.mark.parametrize("text", ["train", "train=1,train=1", "train=-1", "train=0", "", "a=1;b=2"])
def test_bad_shares_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--split"):
        parse_fractions(text)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not empty"):
            build_dataset(several(), tmp_path / "o", dialect=CYTO, names=CERVIX, overwrite=overwrite)
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["thesis.txt"]
    build_dataset(several(), tmp_path / "n", dialect=CYTO, names=CERVIX)
    (tmp_path / "n" / "thesis.txt").write_text("mine")
    build_dataset(several(4), tmp_path / "n", dialect=CYTO, names=CERVIX, overwrite=True)
    assert len(list((tmp_path / "n" / "images").iterdir())) == 4
    assert (tmp_path / "n" / "thesis.txt").read_text() == "mine"


def test_text_from_files_is_data(tmp_path: Path) -> None:
    sly = picture("x", [], known=frozenset(), caption="<ima<image>ge> HSIL\nseen", questions=(("Why <image>?", "So."),))
    built = build_dataset([sly], tmp_path / "o", dialect=CYTO, names=CERVIX)
    text = json.dumps(lines_of(built))
    assert "HSIL seen" in text
    assert all(sum(t["content"].count("<image>") for t in r["messages"]) == 1 for r in lines_of(built))
    bad = picture("x", [("hsil <region>", (1, 1, 9, 9))])
    with pytest.raises(SettingError, match="cannot be written"):
        build_dataset([bad], tmp_path / "p", dialect=CYTO, names=CERVIX)


# ------------------------------------------------------------------------------------------------ sources


def save(path: Path, size: tuple[int, int] = (100, 80)) -> Path:
    Image.new("RGB", size, (200, 180, 190)).save(path)
    return path


def test_coco_boxes_groups_and_absent_classes(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    coco = {
        "images": [{"id": 9, "file_name": "a.png", "patient": "p1"}],
        "categories": [{"id": 1, "name": "HSIL"}, {"id": 2, "name": "ASC-US"}],
        "annotations": [
            {"image_id": 9, "category_id": 1, "bbox": [10, 20, 30, 40]},
            {"image_id": 9, "category_id": 2, "bbox": [0, 0, 100, 80], "iscrowd": 1},
            {"image_id": 9, "category_id": 1, "bbox": [90, 70, 50, 50]},
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    (one,) = collect(Sources(coco=(tmp_path / "c.json",)), dialect=CYTO)
    assert one.boxes == (LabelledBox("hsil", Box(10, 20, 40, 60)), LabelledBox("hsil", Box(90, 70, 100, 80)))
    assert one.known == {"hsil", "ascus"}
    assert one.group == "p1"
    coco["annotations"].append({"image_id": 9, "category_id": 7, "bbox": [1, 1, 1, 1]})  # type: ignore[attr-defined]
    (tmp_path / "c.json").write_text(json.dumps(coco))
    with pytest.raises(SlideError, match=r"c\.json is not a COCO file"):
        collect(Sources(coco=(tmp_path / "c.json",)), dialect=CYTO)


def test_a_slide_is_opened_once_for_all_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tilers
    from wsi_chat.datasets.slides import cut_tiles

    canvas = np.full((1024, 1024, 3), 235, np.uint8)
    canvas[100:900, 100:900] = np.random.default_rng(0).integers(60, 200, (800, 800, 3))
    write_pyramid(tmp_path / "s.tiff", canvas, mpp=0.5)
    cells = tuple(LabelledBox("hsil", Box(x, y, x + 30, y + 30)) for x in (120, 400, 700) for y in (120, 400, 700))
    tiles = cut_tiles(tmp_path / "s.tiff", cells, known=frozenset(), tile_px=256, mpp=0.5)
    assert len(tiles) == 9
    opened, really = [], tilers.open_slide
    home = "wsi_chat.datasets.slides.open_slide"
    monkeypatch.setattr(home, lambda *a, **k: opened.append(really(*a, **k)) or opened[-1])
    pictures = [np.asarray(tile.load()) for tile in tiles]
    assert len(opened) == 1
    assert all(np.abs(p.astype(int) - 235).max() > 50 for p in pictures)
    assert np.array_equal(np.asarray(tiles[3].load()), pictures[3])  # closed after the last: opened again
    assert len(opened) == 2


def test_a_slide_is_cut_where_it_is_annotated(tmp_path: Path) -> None:
    canvas = np.full((1024, 1024, 3), 235, np.uint8)
    canvas[100:150, 100:160] = (120, 60, 130)
    canvas[600:640, 500:540] = (120, 60, 130)  # across the border between two tiles
    write_pyramid(tmp_path / "s.tiff", canvas, mpp=0.25)
    rings = [[100, 100, 160, 150, "HSIL"], [500, 600, 540, 640, "LSIL"], [700, 700, 720, 720, None]]
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[a, b], [c, b], [c, d], [a, d], [a, b]]]},
         "properties": {"objectType": "annotation", "classification": {"name": name} if name else None}}
        for a, b, c, d, name in rings
    ]  # fmt: skip
    (tmp_path / "s.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    sources = Sources(geojson=(tmp_path / "s.geojson",), slides=(tmp_path / "s.tiff",))
    tiles = collect(sources, dialect=CYTO, tile_px=256, tile_mpp=0.5, negatives=0)
    assert [[b.label for b in tile.boxes] for tile in tiles] == [["hsil"], ["lsil"]]
    assert tiles[0].boxes[0].box == Box(50, 50, 80, 75)
    assert tiles[1].boxes[0].box == Box(0, 44, 14, 64)  # 70 % of it; the other tile shows 30 % and is left out
    dark = np.asarray(tiles[0].load())[55:70, 55:75].mean()
    assert tiles[0].load().size == (256, 256)
    assert dark < 120
    assert {tile.group for tile in tiles} == {f"{tmp_path.name}/s.tiff"}
    with pytest.raises(SettingError, match="1 GeoJSON files and 0 slides"):
        collect(Sources(geojson=(tmp_path / "s.geojson",)), dialect=CYTO)


def test_captions_and_patients(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    rows = "image,caption,question,answer,patient\na.png,HSIL is seen.,,,p1\na.png,,Any?,Yes.,p1\n"
    (tmp_path / "c.csv").write_text(rows)
    (one,) = collect(Sources(captions=(tmp_path / "c.csv",)), dialect=CYTO)
    assert (one.caption, one.questions, one.group) == ("HSIL is seen.", (("Any?", "Yes."),), "p1")
    (tmp_path / "p.csv").write_text("image,patient\na.png,77\n")
    (one,) = collect(Sources(captions=(tmp_path / "c.csv",), patients=tmp_path / "p.csv"), dialect=CYTO)
    assert one.group == "patient 77"
    (tmp_path / "p.csv").write_text("sample_id,image_path,patient\ns0,slides/a.png,78\n")  # a cohort's manifest
    (one,) = collect(Sources(captions=(tmp_path / "c.csv",), patients=tmp_path / "p.csv"), dialect=CYTO)
    assert one.group == "patient 78"
    (tmp_path / "c.csv").write_text("image,caption\na.png,\n")
    with pytest.raises(SlideError, match="line 2"):
        collect(Sources(captions=(tmp_path / "c.csv",)), dialect=CYTO)


def test_missing_and_broken_sources_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFound, match="no VOC annotation"):
        collect(Sources(voc=(tmp_path,)), dialect=CYTO)
    (tmp_path / "lonely.xml").write_text("<annotation/>")
    with pytest.raises(SlideError, match=r"lonely\.xml"):
        collect(Sources(voc=(tmp_path,)), dialect=CYTO)
    (tmp_path / "lonely.png").write_bytes(b"not a picture")
    with pytest.raises(SlideError, match=r"lonely\.png"):
        collect(Sources(voc=(tmp_path,)), dialect=CYTO)
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(SlideError, match=r"t\.json"):
        collect(Sources(rendered=(tmp_path / "t.json",)), dialect=CYTO)
    with pytest.raises(SettingError, match="OLD=NEW"):
        collect(Sources(), dialect=CYTO, rename=["a"])


def test_real_fields_keep_their_own_lists(shared_data: Path) -> None:
    found = collect(Sources(voc=(shared_data / "bccd",)), dialect=get_dialect("embedded"), keep_lists=True)
    assert Counter(p.split for p in found) == {"train": 205, "val": 87, "test": 72}
    assert found[0].known == {"wbc", "rbc", "platelet"}
