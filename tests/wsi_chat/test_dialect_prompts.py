"""The exact bytes that each dialect sends, the sizing of images, and the query's key."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsi_chat import tasks
from wsi_chat.dialects import detect_dialect, dialects, get_dialect, load_dialect
from wsi_chat.dialects.frame import Frame, ImagePolicy, fit
from wsi_chat.errors import AnswerError, EngineError, SettingError
from wsi_chat.schema import Box, Query
from wsi_chat.tasks import Ask

SCREEN = tasks.mcq("Is any abnormal cell present?", ("normal", "abnormal"))
REGION = Box(88.974, 117.961, 176.63, 286.95)


def _build(name: str, ask: Ask, size: tuple[int, int] = (512, 512), **rest: Any) -> tuple[Query, Frame]:
    settings: dict[str, Any] = {"model_id": "m@1", "decoding": {"greedy": True, "seed": 0}} | rest
    image = settings.pop("image", None) or Image.new("RGB", size, "pink")
    return get_dialect(name).build(ask, image, **settings)


GOLDEN = [
    (
        "cytochat",
        SCREEN,
        "<image>Please answer the multiple-choice question based on the image [Is any abnormal cell present?], and "
        "select the best option from the following options [A.normal, B.abnormal]. Just answer the option.",
    ),
    ("cytochat", tasks.ground("hsil"), "<image>Locate all hsil."),
    (
        "cytochat",
        tasks.refer(REGION),
        "<image>Give a brief description of region.<region>88.97 117.96 176.63 286.95</region>",
    ),
    ("cytochat", tasks.describe(), "<image>Describe the Cytology diagnosis results."),
    (
        "cytochat",
        tasks.vqa("Were any abnormal cells found during the examination?"),
        "<image>Were any abnormal cells found during the examination?",
    ),
    (
        "cytochat",
        tasks.vqa("What is this?", region=Box(1, 2.5, 3, 4)),
        "<image>What is this?<region>1.0 2.5 3.0 4.0</region>",
    ),
    (
        "embedded",
        SCREEN,
        "<image>Please answer the multiple-choice question based on the image [Is any abnormal cell present?], and "
        "select the best option from the following options [A.normal, B.abnormal]. Just answer the option.",
    ),
    ("embedded", tasks.ground("wbc"), "<image>Locate all wbc."),
    # 512 px given, 256 px sent: the region is halved and rounded
    ("embedded", tasks.refer(REGION), "<image>Give a brief description of region.<region>44 59 88 143</region>"),
    ("embedded", tasks.describe(), "<image>Describe the Cytology diagnosis results."),
]


@pytest.mark.parametrize(("name", "ask", "text"), GOLDEN)
def test_prompt_bytes(name: str, ask: Ask, text: str) -> None:
    query, _ = _build(name, ask)
    assert [(turn.role, turn.text) for turn in query.turns] == [
        ("system", "You are a helpful assistant."),
        ("user", text),
    ]
    assert query.choices == (("A", "B") if ask.options else ())
    assert query.target == ask.target


def test_embedded_wording_is_what_the_checkpoint_was_trained_on() -> None:
    wording = pytest.importorskip("wsi_chat.training.embedded.wording")
    spec = get_dialect("embedded").spec
    assert spec.prompts.choice == wording.MCQ
    assert spec.prompts.ground.replace("label", "name") == wording.GROUND
    assert spec.prompts.refer == wording.REFER
    assert spec.prompts.describe == wording.DESCRIBE
    assert set(spec.labels) == {*wording.CLASSES, wording.ABNORMAL}


def test_a_dialect_caps_the_length_of_an_answer_and_never_lengthens_it() -> None:
    rooms = [_build(name, tasks.ground("hsil"))[0].max_tokens for name in ("cytochat", "embedded")]
    assert rooms == [1024, 288]
    assert _build("embedded", tasks.ground("hsil", max_tokens=50))[0].max_tokens == 50
    assert _build("embedded", SCREEN)[0].max_tokens == 1


def test_user_text_cannot_ask_for_a_second_image() -> None:
    query, _ = _build("cytochat", tasks.vqa("<image>{question} <ima<image>ge> what?"))
    assert query.turns[-1].text.count("<image>") == 1
    assert "{question}" in query.turns[-1].text


def test_a_region_outside_the_image_is_refused_and_one_across_its_edge_is_cut() -> None:
    with pytest.raises(SettingError, match="no area inside the image of 512x512"):
        _build("cytochat", tasks.refer(Box(600, 0, 700, 10)))
    query, _ = _build("cytochat", tasks.refer(Box(-50, 500, 40, 900)))
    assert query.turns[-1].text.endswith("<region>0.0 500.0 40.0 512.0</region>")


# ---------------------------------------------------------------------------------------------- keys


def test_the_key_follows_everything_that_determines_the_answer() -> None:
    image = Image.new("RGB", (256, 256), "pink")
    other = image.copy()
    other.putpixel((9, 9), (0, 0, 0))
    base: dict[str, Any] = {"name": "embedded", "ask": SCREEN, "image": image}
    variants: list[dict[str, Any]] = [
        base,
        base | {"image": other},
        base | {"image": Image.new("RGB", (256, 128), "pink")},
        base | {"name": "cytochat"},
        base | {"ask": tasks.mcq("Is any abnormal cell present?", ("abnormal", "normal"))},
        base | {"ask": tasks.mcq("Is any abnormal cell present?", ("normal", "abnormal"), max_tokens=2)},
        base | {"ask": tasks.describe()},
        base | {"model_id": "m@2"},
        base | {"decoding": {"greedy": True, "seed": 1}},
    ]
    keys = {_build(**variant)[0].key for variant in variants}
    assert len(keys) == len(variants)
    same = _build(**(base | {"image": image.copy(), "tile_id": "t000007", "decoding": {"seed": 0, "greedy": True}}))
    assert same[0].key == _build(**base)[0].key
    assert same[0].tile_id == "t000007"


def test_settings_that_no_file_can_hold_are_refused() -> None:
    with pytest.raises(AnswerError, match="not plain values"):
        _build("embedded", SCREEN, decoding={"seed": object()})


# ---------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        ("cytochat", (512, 512), (512, 512)),
        ("cytochat", (1024, 512), (512, 256)),
        ("cytochat", (100, 50), (512, 256)),
        ("embedded", (256, 256), (256, 256)),
        ("embedded", (640, 480), (256, 192)),
        ("embedded", (300, 10), (256, 32)),
    ],
)
def test_sent_sizes(name: str, given: tuple[int, int], sent: tuple[int, int]) -> None:
    query, frame = _build(name, tasks.describe(), given)
    assert query.images[0].size == frame.sent == sent
    assert frame.given == given


def test_a_strip_is_refused() -> None:
    with pytest.raises(AnswerError, match="2001x10 px"):
        _build("cytochat", tasks.describe(), (2001, 10))


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([1, 14, 28, 32]), st.sampled_from([None, 448, 896]))
def test_sent_sizes_need_no_second_resize(width: int, height: int, multiple: int, side: int | None) -> None:
    policy = ImagePolicy(
        side=side and side // multiple * multiple, multiple=multiple, min_pixels=56 * 56, max_pixels=1024 * 1024
    )
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(AnswerError):
            policy.sent_size(width, height)
        return
    sent = policy.sent_size(width, height)
    assert all(length >= multiple and length % multiple == 0 for length in sent)
    if side is None:
        assert 56 * 56 <= sent[0] * sent[1] <= 1024 * 1024
    else:
        assert max(sent) == policy.side


def test_transparent_pixels_are_not_black() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert fit(image, (8, 8)).getpixel((3, 3)) == (255, 255, 255)
    assert fit(Image.new("L", (8, 8), 40), (4, 4)).getpixel((1, 1)) == (40, 40, 40)


def test_an_image_of_the_right_size_is_sent_as_it_is() -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    query, _ = _build("embedded", SCREEN, image=Image.fromarray(pixels))
    assert (np.asarray(query.images[0]) == pixels).all()


# ---------------------------------------------------------------------------------------------- names and files


def test_the_dialects_of_the_package() -> None:
    assert {"cytochat", "embedded"} <= set(dialects())
    hashes = {get_dialect(name).prompts_sha256 for name in dialects()}
    assert len(hashes) == len(dialects())
    assert all(len(text) == 64 for text in hashes)
    with pytest.raises(SettingError, match="no dialect 'klingon'"):
        get_dialect("klingon")


def test_tiles_are_sized_and_resolved_for_the_model() -> None:
    blood = SimpleNamespace(code="blood-smear", mpp=0.2)
    cervix = SimpleNamespace(code="cervix-tbs2014", mpp=0.5)
    assert get_dialect("embedded").tile_px == 256
    assert get_dialect("embedded").mpp_for(blood) == 0.15
    assert get_dialect("embedded").mpp_for(cervix) == 0.5
    assert get_dialect("cytochat").tile_px == 512
    assert get_dialect("cytochat").mpp_for(blood) == 0.2


def test_a_checkpoint_tells_its_dialect(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with pytest.raises(EngineError, match=r"config\.json is missing"):
        detect_dialect(tmp_path)
    with pytest.raises(EngineError, match=r"checkpoint foo does not exist") as raised:
        detect_dialect("foo")
    assert raised.value.hint == "Point --model to a folder with config.json and *.safetensors."
    config.write_text('{"model_type": "qwen2_vl", "_name_or_path": "jay/CytoChat-7B"}')
    assert detect_dialect(tmp_path) == "cytochat"
    config.write_text('{"model_type": "mamba"}')
    with pytest.raises(SettingError, match="model_type 'mamba'"):
        detect_dialect(tmp_path)
    (tmp_path / "manifest.json").write_text('{"dialect": "embedded"}')
    assert detect_dialect(tmp_path) == "embedded"
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(EngineError, match=r"manifest\.json is not JSON"):
        detect_dialect(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("Locate all {label}.", "Locate {thing}.", "prompts"),
        ("boxes: region", "boxes: polygons", "boxes"),
        ("side: 512", "side: 2", "image.side"),
        ("version: 1", "version: 1\nsurprise: 2", "surprise"),
        ("name: cytochat", "name: [", "not YAML"),
    ],
)
def test_a_wrong_dialect_file_says_where(tmp_path: Path, old: str, new: str, why: str) -> None:
    from wsi_chat import dialects as package

    text = (Path(package.__file__).parent / "cytochat.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert load_dialect(path).prompts_sha256 == get_dialect("cytochat").prompts_sha256
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(SettingError, match=why):
        load_dialect(path)
    with pytest.raises(SettingError, match="cannot be read"):
        load_dialect(tmp_path / "absent.yaml")
