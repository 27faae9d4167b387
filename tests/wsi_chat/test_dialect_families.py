"""The dialects of general model families: prompt bytes, box mapping under every resize, detection, own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_chat import tasks
from wsi_chat.dialects import detect_dialect, dialects, get_dialect
from wsi_chat.errors import SettingError
from wsi_chat.schema import Answer, Box, LabelledBox

SCREEN = tasks.mcq("Is any abnormal cell present?", ("normal", "abnormal"))
REGION = Box(64, 128, 256, 512)
LETTERED = (
    "Is any abnormal cell present?\nA. normal\nB. abnormal\n"
    "Answer with the option's letter from the given choices directly."
)
QWEN_JSON = (
    'Locate every instance that belongs to the following category: "hsil". Report bbox coordinates in JSON format. '
    "If there is none, answer []."
)
CELL = "What kind of cell is in the region"
WORD = "Answer the question using a single word or phrase."

GOLDEN = {
    # a field of 640x1024 px; region x 64-256 = .1-.4, y 128-512 = .125-.5
    "qwen2-vl": (
        LETTERED,
        "Find and give the bounding box of every <|object_ref_start|>hsil<|object_ref_end|>.",
        f"{CELL} <|box_start|>(100,125),(400,500)<|box_end|>? {WORD}",
    ),
    # sent as 644x1036: x * 644/640, y * 1036/1024
    "qwen2.5-vl": (LETTERED, QWEN_JSON, f"{CELL} with bbox_2d [64, 130, 258, 518]? {WORD}"),
    "qwen3-vl": (LETTERED, QWEN_JSON, f"{CELL} with bbox_2d [100, 125, 400, 500]? {WORD}"),
    "internvl": (
        LETTERED,
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>hsil</ref>",
        f"{CELL} <box>[[100, 125, 400, 500]]</box>? {WORD}",
    ),
    "medgemma": (
        LETTERED,
        "Locate every hsil in this image. Answer with a JSON list only, one object per instance: "
        '{"box_2d": [y0, x0, y1, x1], "label": "hsil"}, where (y0, x0) is the top left and (y1, x1) the bottom right '
        "corner, normalized to 0-1000. If there is none, answer [].",
        f"{CELL} with box_2d [125, 100, 500, 400] (y0, x0, y1, x1, normalized to 0-1000)? {WORD}",
    ),
    "paligemma": (
        "answer en Is any abnormal cell present? A. normal B. abnormal",
        "detect hsil",
        "answer en what kind of cell is in <loc0128><loc0102><loc0512><loc0410>?",
    ),
    "endochat": (
        "Is any abnormal cell present? Choose from: A. normal, B. abnormal. Answer the question with a single phrase.",
        "Where is the hsil located? Give the bounding box coordinates [x1, y1, x2, y2].",
        "What is in the region [0.1, 0.125, 0.4, 0.5]? Answer the question with a single phrase.",
    ),
    "json": (
        LETTERED,
        "Locate every hsil in the image. Answer with a JSON list only, one object per instance: "
        '{"bbox_2d": [x0, y0, x1, y1], "label": "hsil"}, where (x0, y0) is the top left and (x1, y1) the bottom right '
        "corner on a scale of 0 to 1000 along each side of the image. If there is none, answer [].",
        f"{CELL} [100, 125, 400, 500] (x0, y0, x1, y1 on a scale of 0 to 1000 along each side)? {WORD}",
    ),
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_prompt_bytes(name: str) -> None:
    dialect = get_dialect(name)
    frame = dialect.frame((640, 1024))
    asks = (SCREEN, tasks.ground("hsil"), tasks.refer(REGION))
    assert tuple(dialect.prompt(ask, frame) for ask in asks) == GOLDEN[name]
    assert str(dialect.spec.version) == "1"


def test_every_dialect_has_golden_prompts() -> None:
    assert sorted([*GOLDEN, "cytochat", "embedded"]) == dialects()


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("cytochat", "26c10574bcd50c45e43a42264a7248ebb2ed0fa49382cc4fce54ca313e48f0ad"),
        ("embedded", "b761a4057a76c3d4e815f4e77a232f7a9be373f2f6cdb60a6f4649fca3d9c1cd"),
    ],
)
def test_fields_added_later_leave_the_first_dialects_keys_alone(name: str, sha256: str) -> None:
    assert get_dialect(name).prompts_sha256 == sha256


def test_fields_added_later_count_where_they_are_used(tmp_path: Path) -> None:
    hashes = set()
    for number, line in enumerate(["", "order: yxyx", "box_key: box", 'prompts: {separator: "; "}']):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"extends: cytochat\nname: mine\nversion: 1\n{line}\n")
        hashes.add(get_dialect(str(path)).prompts_sha256)
    assert len(hashes) == 4


# ---------------------------------------------------------------------------------------------- resizes

SIZES = st.tuples(st.integers(60, 5000), st.integers(60, 5000))
FAMILIES = sorted(GOLDEN)


@pytest.mark.parametrize(
    ("name", "multiple", "least", "most"),
    [("qwen2-vl", 28, 3136, 12845056), ("qwen2.5-vl", 28, 3136, 12845056), ("qwen3-vl", 32, 65536, 16777216)],
)
def test_the_processor_has_nothing_left_to_resize(name: str, multiple: int, least: int, most: int) -> None:
    """`smart_resize` of transformers, with the settings of the published checkpoints and with its own defaults."""
    resize = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    policy = get_dialect(name).image_px

    @settings(deadline=None)
    @given(SIZES)
    def check(size: tuple[int, int]) -> None:
        width, height = policy.sent_size(*size)
        for bounds in ((least, most), (policy.min_pixels, policy.max_pixels)):
            assert resize(height, width, multiple, *bounds) == (height, width)

    check()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen2-vl", "<|box_start|>(100,250),(500,1000)<|box_end|>"),
        ("qwen2.5-vl", '[{"bbox_2d": [64, 203, 322, 812], "label": "x"}]'),  # sent as 644x812
        ("qwen3-vl", '[{"bbox_2d": [100, 250, 500, 1000], "label": "x"}]'),
        ("internvl", "<ref>x</ref><box>[[100, 250, 500, 1000]]</box>"),
        ("medgemma", '[{"box_2d": [250, 100, 1000, 500], "label": "x"}]'),
        ("paligemma", "<loc0256><loc0102><loc1024><loc0512> x"),
        ("endochat", "[0.1, 0.25, 0.5, 1.0]"),
        ("json", '[{"bbox_2d": [100, 250, 500, 1000], "label": "x"}]'),
    ],
)
def test_an_answer_maps_to_the_image_as_given(name: str, text: str) -> None:
    dialect = get_dialect(name)
    (found,) = dialect.read_boxes(Answer("k", "ground", text), dialect.frame((640, 800)), "hsil").boxes
    corners = (found.box.x0, found.box.y0, found.box.x1, found.box.y1)
    assert corners == pytest.approx((64, 200, 320, 800), abs=0.5)
    assert found.label == "hsil"


def _boxes(size: tuple[int, int], corners: list[tuple[float, ...]]) -> list[LabelledBox]:
    return [
        LabelledBox("hsil", Box(x * size[0], y * size[1], min(1, x + w) * size[0], min(1, y + h) * size[1]))
        for x, y, w, h in corners
    ]


# lefts on a coarse grid, all different, so that no two boxes round to the same
CORNERS = st.lists(
    st.tuples(st.integers(0, 48).map(lambda n: n / 50), *[st.floats(0.02, 0.97) for _ in range(3)]),
    max_size=6,
    unique_by=lambda corners: corners[0],
)


def _tolerance(name: str, size: tuple[int, int]) -> tuple[float, float]:
    """Half a unit of the model's coordinates in pixels as given; a whole one where the last bin has no far edge."""
    dialect = get_dialect(name)
    unit = 10.0**-dialect.spec.decimals * (1.01 if dialect.spec.coordinates == "norm1024" else 0.505)
    space = dialect.frame(size).space
    return unit * size[0] / space[0], unit * size[1] / space[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_reads_back(name: str) -> None:
    dialect = get_dialect(name)

    @settings(max_examples=60, deadline=None)
    # no side so short that a box would be thinner than one unit and have to be widened
    @given(size=st.tuples(st.integers(400, 4000), st.integers(400, 4000)), corners=CORNERS)
    def check(size: tuple[int, int], corners: list[tuple[float, ...]]) -> None:
        frame = dialect.frame(size)
        boxes = _boxes(size, corners)
        text = dialect.write_boxes(boxes, frame, "hsil")
        reading = dialect.read_boxes(Answer("k", "ground", text), frame, "hsil")
        assert (len(reading.boxes), reading.dropped, reading.truncated) == (len(boxes), 0, False)
        sx, sy = _tolerance(name, size)
        for box, back in zip(boxes, reading.boxes, strict=True):
            assert (back.box.x0, back.box.x1) == pytest.approx((box.box.x0, box.box.x1), abs=sx)
            assert (back.box.y0, back.box.y1) == pytest.approx((box.box.y0, box.box.y1), abs=sy)

    check()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_cut_anywhere_keeps_its_complete_boxes_and_invents_none(name: str) -> None:
    dialect = get_dialect(name)
    frame = dialect.frame((1000, 1000))
    boxes = _boxes((1000, 1000), [(0.1, 0.2, 0.3, 0.4), (0.3, 0.123, 0.5, 0.6), (0.55, 0.111, 0.222, 0.333)])
    text = dialect.write_boxes(boxes, frame, "hsil")
    whole = [found.box for found in dialect.read_boxes(Answer("k", "ground", text), frame, "hsil").boxes]
    kept = []
    for length in range(len(text) + 1):
        answer = Answer("k", "ground", text[:length], status="truncated")
        reading = dialect.read_boxes(answer, frame, "hsil")
        assert [found.box for found in reading.boxes] == whole[: len(reading.boxes)]
        assert reading.truncated
        assert len(reading.boxes) + reading.dropped <= len(boxes)
        kept.append(len(reading.boxes))
    assert kept == sorted(kept)
    assert set(kept) == {0, 1, 2, 3}


# ---------------------------------------------------------------------------------------------- which family


@pytest.mark.parametrize(
    ("config", "dialect"),
    [
        ('{"model_type": "qwen2_vl"}', "qwen2-vl"),
        ('{"model_type": "qwen2_5_vl"}', "qwen2.5-vl"),
        ('{"model_type": "qwen3_vl_moe"}', "qwen3-vl"),
        ('{"model_type": "internvl_chat"}', "internvl"),
        ('{"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}', "medgemma"),
        ('{"model_type": "paligemma"}', "paligemma"),
        ('{"model_type": "custom", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}', "qwen2.5-vl"),
        ('{"architectures": ["Other", "InternVLChatModel"]}', "internvl"),
        ('{"architectures": ["Qwen3VLMoeForConditionalGeneration"]}', "qwen3-vl"),
        ('{"model_type": "llama", "_name_or_path": "x/EndoChat-1k"}', "endochat"),
    ],
)
def test_a_checkpoint_tells_its_family(tmp_path: Path, config: str, dialect: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert detect_dialect(tmp_path) == dialect


@pytest.mark.parametrize("config", ["{}", '{"model_type": "gemma3_text"}', '{"architectures": "Qwen2VL"}'])
def test_an_unknown_family_is_refused_with_the_choices(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(SettingError, match="no dialect is known") as refused:
        detect_dialect(tmp_path)
    assert "qwen2.5-vl" in refused.value.hint


OWN = """
extends: qwen2-vl
name: my-cells
version: 3
labels: [hsil]
aliases: {high grade: hsil}
prompts: {ground: "Mark each {label}."}
"""


def test_a_users_file_is_a_dialect_and_may_extend_one(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(OWN)
    mine, base = get_dialect(str(path)), get_dialect("qwen2-vl")
    frame = mine.frame((640, 1024))
    assert mine.prompt(tasks.ground("hsil"), frame) == "Mark each hsil."
    assert mine.prompt(SCREEN, frame) == base.prompt(SCREEN, frame)
    assert (mine.name, mine.spec.version, mine.known_label("High grade")) == ("my-cells", 3, "hsil")
    assert mine.prompts_sha256 != base.prompts_sha256
    # edited between two runs of one process: read again
    path.write_text(OWN.replace("Mark each", "Find each"))
    assert get_dialect(str(path)).prompt(tasks.ground("hsil"), frame) == "Find each hsil."


@pytest.mark.parametrize("base", dialects())
def test_a_file_of_a_name_and_extends_alone_can_do_what_its_base_can(base: str, tmp_path: Path) -> None:
    """Several images, known questions, narratives and names on servers: nothing hangs on the dialect's own name."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nextends: {base}\n")
    mine, theirs = get_dialect(str(path)), get_dialect(base)
    assert mine.name == "mine"
    for ability in ("several_images", "known_questions", "narrates"):
        assert getattr(mine, ability) == getattr(theirs, ability)
    assert mine.spec == theirs.spec.model_copy(update={"name": "mine"})
    assert mine.identity != theirs.identity


def test_a_file_may_extend_another_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(OWN)
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: base.yaml\nlabels: [lsil]\n")
    mine = get_dialect(str(tmp_path / "mine.yaml"))
    assert mine.prompt(tasks.ground("lsil"), mine.frame((640, 1024))) == "Mark each lsil."
    assert (mine.several_images, mine.spec.version, mine.labels) == (True, 3, ("lsil",))


def test_what_each_family_can_do() -> None:
    every = {name: get_dialect(name) for name in dialects()}
    several = {"qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "medgemma"}
    assert {name for name, dialect in every.items() if dialect.several_images} == several
    assert {name for name, dialect in every.items() if dialect.known_questions} == {"embedded"}
    assert {name for name, dialect in every.items() if not dialect.narrates} == {"embedded", "paligemma"}
    assert every["medgemma"].spec.served_as == ("medgemma", "gemma-3", "gemma3")
    assert get_dialect("cytochat").identity == f"cytochat/1/{get_dialect('cytochat').prompts_sha256}"


def test_a_manifest_beside_the_checkpoint_wins(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    (tmp_path / "manifest.json").write_text('{"dialect": "json"}')
    assert detect_dialect(tmp_path) == "json"
    (tmp_path / "my.yaml").write_text(OWN)
    (tmp_path / "manifest.json").write_text('{"dialect": "my.yaml"}')
    assert get_dialect(detect_dialect(tmp_path)).name == "my-cells"
    (tmp_path / "manifest.json").write_text('{"dialect": "klingon"}')
    with pytest.raises(SettingError, match="no dialect 'klingon'"):
        detect_dialect(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("extends: klingon\nname: a\nversion: 1\n", "no dialect 'klingon'"),
        ("extends: qwen2-vl\nversion: 1\n", "name: Field required"),
        ("extends: bad.yml\nname: a\n", "more than 8 files extend one another"),
        ("extends: ./absent.yaml\nname: a\n", "absent.yaml cannot be read"),
        ("extends: qwen2-vl\nname: a\nversion: 1\nprompts: {ground: 'x'}\n", "prompt 'ground'"),
        ("- a list\n", "the file"),
    ],
)
def test_a_wrong_file_of_the_users_says_where(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "bad.yml"
    path.write_text(text)
    with pytest.raises(SettingError, match=why):
        get_dialect(str(path))


@pytest.mark.parametrize("name", ["absent.yaml", "folder/absent"])
def test_a_path_is_never_taken_for_a_name(name: str) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        get_dialect(name)


def test_control_tokens_of_every_family_are_taken_off_a_text() -> None:
    dialect: Any = get_dialect("medgemma")
    assert dialect.read_text(Answer("k", "vqa", "Two cells.<end_of_turn>\n<eos></s>")) == "Two cells."
