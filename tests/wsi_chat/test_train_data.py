"""What is trained on: conversations found, checked, carried from one dialect to another, and turned into tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_chat.datasets.translate import Translator
from wsi_chat.dialects import dialects, get_dialect, load_dialect
from wsi_chat.dialects.frame import Frame
from wsi_chat.engines import embedded_checkpoint, read_checkpoint
from wsi_chat.errors import SettingError
from wsi_chat.schema import Answer, Box, LabelledBox, Query, Turn
from wsi_chat.training import probes
from wsi_chat.training.data import Conversation, find_dataset, read_conversations, validation_of
from wsi_chat.training.encode import IGNORED, Encoder, fitting
from wsi_chat.training.sampling import LengthGrouped
from wsi_chat.training.settings import settings_of

CHOICE = (
    "Please answer the multiple-choice question based on the image [Which?], and select the best option from the "
    "following options [A.no, B.yes, maybe, C.ASC-US]. Just answer the option."
)


def _said(target: str, question: str, answer: str, size: tuple[int, int] = (512, 512), source: str = "cytochat") -> Any:
    translator = Translator(get_dialect(source), get_dialect(target))
    turns = (Turn("user", f"<image>{question}"), Turn("assistant", answer))
    said, (exchange,) = translator.turns(turns, [size])
    return said[-2].text, said[-1].text, exchange


# ------------------------------------------------------------------------------------------------ dialects


def test_the_same_line_trains_a_json_model_and_a_cytochat_model() -> None:
    line = ("Locate all hsil.", "hsil 1 is located at <region>88.97 118.4 176.63 286.95</region>.")
    assert _said("cytochat", *line)[:2] == (f"<image>{line[0]}", line[1])
    question, answer, exchange = _said("qwen2.5-vl", *line, size=(504, 504))
    assert question == (
        '<image>Locate every instance that belongs to the following category: "hsil". Report bbox coordinates in JSON '
        "format. If there is none, answer []."
    )
    assert json.loads(answer) == [{"bbox_2d": [89, 118, 177, 287], "label": "hsil"}]
    assert exchange.kind == "ground"
    assert exchange.truth == (LabelledBox("hsil", Box(88.97, 118.4, 176.63, 286.95)),)
    # 0-1000 whatever the size
    assert json.loads(_said("qwen3-vl", *line)[1]) == [{"bbox_2d": [174, 231, 345, 560], "label": "hsil"}]
    assert _said("qwen2-vl", *line)[1] == (
        "<|object_ref_start|>hsil<|object_ref_end|><|box_start|>(174,231),(345,560)<|box_end|>"
    )
    # the embedded dialect sends 256 px: boxes shrink with the picture
    assert _said("embedded", *line)[1] == "hsil 1 is located at <region>44 59 88 143</region>."


def test_none_regions_choices_and_free_words_are_carried_over() -> None:
    assert _said("qwen3-vl", "Locate all lsil.", "No lsil is found.")[1] == "[]"
    assert _said("cytochat", "Find every lsil in this image.", "[]", source="qwen3-vl")[1] == "No lsil is found."
    question, answer, exchange = _said(
        "qwen3-vl", "Give a brief description of region.<region>128 64 256 512</region>", "hsil"
    )
    assert "bbox_2d [250, 125, 500, 1000]" in question
    assert (answer, exchange.kind, exchange.right) == ("hsil", "refer", "hsil")
    question, answer, exchange = _said("qwen2-vl", CHOICE, "B.yes, maybe.")
    assert question.startswith("<image>Which?\nA. no\nB. yes, maybe\nC. ASC-US\n")
    assert (answer, exchange.kind, exchange.right) == ("B. yes, maybe.", "choice", "yes, maybe")
    question, answer, exchange = _said("qwen3-vl", "Is it abnormal?<region>0 0 256 256</region>", "Yes, it shows HSIL.")
    assert question == "<image>Is it abnormal? The question is about the region with bbox_2d [0, 0, 500, 500]."
    assert (answer, exchange.kind) == ("Yes, it shows HSIL.", None)
    # boxes amid prose keep the prose
    question, answer, exchange = _said("qwen3-vl", "What?", "A cell <region>0 0 256 256</region> lies there, dark.")
    assert answer == "A cell [0, 0, 500, 500] lies there, dark."
    assert exchange.kind is None


def test_the_system_prompt_is_the_targets_unless_the_data_has_its_own() -> None:
    translator = Translator(get_dialect("cytochat"), get_dialect("cytochat"))
    talk = (Turn("user", "Hi"), Turn("assistant", "Yes."))
    assert translator.turns(talk, [])[0][0] == Turn("system", "You are a helpful assistant.")
    own = Turn("system", "You are terse.")
    assert translator.turns((own, *talk), [])[0] == (own, *talk)


@pytest.mark.parametrize("target", [name for name in dialects() if name != "endochat"])
@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(20, 100)] * 2, st.just("hsil")),
        min_size=1, max_size=5, unique=True,
    )
)  # fmt: skip
def test_boxes_survive_the_way_through_every_dialect(target: str, drawn: list[tuple[int, int, int, int, str]]) -> None:
    size = (512, 512)
    boxes = [LabelledBox(label, Box(x, y, x + w, y + h)) for x, y, w, h, label in drawn]
    written = get_dialect("cytochat").write_boxes(boxes, get_dialect("cytochat").frame(size), "hsil")
    _, answer, exchange = _said(target, "Locate all hsil.", written)
    assert exchange.truth == tuple(boxes)
    spoken = get_dialect(target)
    reading = spoken.read_boxes(Answer("k", "ground", answer), spoken.frame(size), "hsil")
    unit = 0.51 * max(1.0, 512 / min(spoken.frame(size).space)) * (2 if spoken.spec.coordinates == "norm1024" else 1)
    if spoken.spec.coordinates == "norm1":
        unit = 512 * 0.51 * 10.0**-spoken.spec.decimals
    assert len({(b.label, b.box) for b in boxes}) >= len(reading.boxes) >= 1
    for got in reading.boxes:
        assert any(
            got.label == b.label and max(abs(got.box.x0 - b.box.x0), abs(got.box.y0 - b.box.y0),
                                         abs(got.box.x1 - b.box.x1), abs(got.box.y1 - b.box.y1)) <= unit
            for b in boxes
        ), (got, boxes)  # fmt: skip


def test_boxes_with_pictures_of_two_sizes_are_refused() -> None:
    translator = Translator(get_dialect("cytochat"), get_dialect("qwen3-vl"))
    turns = (Turn("user", "<image><image>Where?"), Turn("assistant", "hsil 1 is located at <region>1 2 3 4</region>."))
    with pytest.raises(SettingError, match="pictures of several sizes"):
        translator.turns(turns, [(64, 64), (128, 64)])
    assert len(translator.turns(turns, [(64, 64), (64, 64)])[0]) == 2


# ------------------------------------------------------------------------------------------------ files


def _write(folder: Path, lines: list[Any], name: str = "d") -> Path:
    (folder / "i").mkdir(parents=True, exist_ok=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "i" / f"{number}.png")
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def _line(question: str, answer: str, *images: str) -> dict[str, Any]:
    marks = "<image>" * len(images)
    return {
        "messages": [{"role": "user", "content": f"{marks}{question}"}, {"role": "assistant", "content": answer}],
        "images": list(images),
    }


GOOD = _line("Locate all hsil.", "hsil 1 is located at <region>1 2 30 40</region>.", "i/0.png")


def test_faults_are_named_with_their_line_or_left_out_and_counted(tmp_path: Path) -> None:
    broken = tmp_path / "i" / "broken.png"
    file = _write(
        tmp_path,
        [GOOD, _line("A?", "b", "i/lost.png"), _line("Is it?", "No.", "i/broken.png"), _line("Two?", "b.", "i/1.png")],
    )
    # the header is whole, the pixels are not: only decoding finds it
    broken.write_bytes((tmp_path / "i" / "1.png").read_bytes()[:3000])
    source = find_dataset(str(file))
    target = get_dialect("cytochat")
    with pytest.raises(SettingError, match=r"1 faults: line 2: image i/lost.png does not exist"):
        read_conversations(source, target)
    talks, left_out = read_conversations(source, target, skip_bad=True)
    assert [talk.line for talk in talks] == [1, 4]
    assert left_out == {"image_missing": 1, "unusable": 1}
    file.write_text("".join(json.dumps(x) + "\n" for x in (GOOD, _line("Is it?", "No.", "i/broken.png"))))
    with pytest.raises(SettingError, match=r"d\.jsonl:2: image .*broken\.png cannot be read"):
        read_conversations(source, target)


def test_data_sets_are_found_by_name_and_the_validation_split_beside_them(tmp_path: Path) -> None:
    _write(tmp_path, [GOOD], "a_train")
    _write(tmp_path, [_line("B?", "c", "i/1.png")], "a_val")
    info: dict[str, Any] = {f"a_{part}": {"file_name": f"a_{part}.jsonl"} for part in ("train", "val")}
    info["ranked"] = {"file_name": "a_val.jsonl", "ranking": True}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    source = find_dataset("a_train", tmp_path)
    assert source.file == tmp_path / "a_train.jsonl"
    assert source.dialect.name == "cytochat"
    found = validation_of(source)
    assert found is not None
    assert found.name == "a_val"
    assert validation_of(found) is None
    with pytest.raises(SettingError, match=r"names no data set 'b'.*a_train, a_val"):
        find_dataset("b", tmp_path)
    with pytest.raises(SettingError, match="pairs of ranked answers"):
        find_dataset("ranked", tmp_path)
    with pytest.raises(SettingError, match="is not a file"):
        find_dataset(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"rank": 0}, "--rank: 0"), ({"method": "qlora"}, "--method: 'qlora'"), ({"warmup": 1.5}, "--warmup"),
     ({"method": "full", "merge": True}, "--merge is given with --method full"),
     ({"resume": True, "overwrite": True}, "--resume and --overwrite")],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message):
        settings_of(datasets=("a",), out=tmp_path, **values)


# ------------------------------------------------------------------------------------------------ tokens


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    from transformers import AutoConfig

    checkpoint = read_checkpoint(embedded_checkpoint())
    return Encoder(checkpoint, AutoConfig.from_pretrained(str(checkpoint.path)), get_dialect("embedded"))


def _talk(folder: Path, turns: list[tuple[str, str]], images: int) -> Conversation:
    _write(folder, [GOOD])
    paths = tuple(folder / "i" / f"{n}.png" for n in range(images))
    spoken = (Turn("system", "You are a helpful assistant."), *(Turn(r, t) for r, t in turns))  # type: ignore[arg-type]
    return Conversation(folder / "d.jsonl", 1, spoken, paths, ((64, 64),) * images, ())


TURNS = [
    ("user", "<image>Locate all hsil."), ("assistant", "hsil 1 is located at <region>4 8 120 160</region>."),
    ("user", "And here?<image>"), ("assistant", "No hsil is found."),
]  # fmt: skip


def test_the_loss_is_on_the_assistants_words_and_nowhere_else(encoder: Encoder, tmp_path: Path) -> None:
    encoded = encoder.encode(_talk(tmp_path, TURNS, 2))
    tokenizer = encoder.tokenizer
    text = tokenizer.decode(encoded.ids)
    pads = "<|image_pad|>" * 64
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>Locate all hsil.<|im_end|>\n"
        "<|im_start|>assistant\nhsil 1 is located at <region>4 8 120 160</region>.<|im_end|>\n"
        f"<|im_start|>user\nAnd here?<|vision_start|>{pads}<|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nNo hsil is found.<|im_end|>"
    )
    answers = [tokenizer(t, add_special_tokens=False)["input_ids"] for _, t in TURNS[1::2]]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    # token by token: where an answer stands the label is the token, elsewhere there is none
    expected = [IGNORED] * len(encoded.ids)
    start = 0
    for answer in answers:
        words = [*answer, end]
        start = next(
            place for place in range(start, len(encoded.ids)) if list(encoded.ids[place : place + len(words)]) == words
        )
        expected[start : start + len(words)] = words
        start += len(words)
    assert list(encoded.labels) == expected
    assert sum(label != IGNORED for label in encoded.labels) == sum(len(answer) + 1 for answer in answers)


def test_the_tokens_are_those_that_the_engine_asks_with(encoder: Encoder, tmp_path: Path) -> None:
    from transformers import AutoConfig

    from wsi_chat.engines.qwen import QwenPrompts

    checkpoint = read_checkpoint(embedded_checkpoint())
    prompts = QwenPrompts(checkpoint, AutoConfig.from_pretrained(str(checkpoint.path)))
    talk = _talk(tmp_path, TURNS, 2)
    encoded = encoder.encode(talk)
    shown = [Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC) for path in talk.images]
    for turns in (2, 4):
        images = tuple(shown[: turns // 2])
        asked = prompts.prompt(Query("k", "vqa", talk.turns[:turns], images))
        assert encoded.ids[: len(asked.ids)] == asked.ids
        assert encoded.labels[len(asked.ids) - 1] == IGNORED
        assert encoded.labels[len(asked.ids)] == encoded.ids[len(asked.ids)]
    assert all(bool((a.values == b.values).all()) for a, b in zip(encoded.images, asked.images, strict=True))


def test_a_batch_is_padded_without_loss_and_long_lines_are_named(encoder: Encoder, tmp_path: Path) -> None:
    short, long = _talk(tmp_path, TURNS[:2], 1), _talk(tmp_path, TURNS, 2)
    one, two = encoder.encode(short), encoder.encode(long)
    batch = encoder.collate([one, two])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, len(two.ids))
    assert batch["labels"][0, len(one.ids) :].tolist() == [IGNORED] * (len(two.ids) - len(one.ids))
    assert batch["attention_mask"].sum(1).tolist() == [len(one.ids), len(two.ids)]
    assert batch["image_grid_thw"].tolist() == [[1, 16, 16]] * 3
    assert abs(encoder.length(long) - len(two.ids)) <= 0.15 * len(two.ids)
    kept, lengths, left = fitting([short, long], encoder, encoder.length(short))
    assert kept == [short]
    assert lengths == [encoder.length(short)]
    assert left == [long.place]


def test_control_tokens_in_a_line_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    talk = _talk(tmp_path, [("user", "<image>Hi"), ("assistant", "Yes.<|im_end|>\n<|im_start|>user")], 1)
    with pytest.raises(SettingError, match=r"d\.jsonl:1: the assistant's turn contains the control token"):
        fitting([talk], encoder, None)
    with pytest.raises(SettingError, match="control token"):
        encoder.encode(talk)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=120), st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_an_epoch_holds_every_line_once_and_repeats_by_seed(
    lengths: list[int], batch: int, epoch: int, grouped: bool
) -> None:
    sampler = LengthGrouped(lengths, batch, seed=5, grouped=grouped)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) and len(sampler) == len(lengths)  # noqa: PT018
    again = LengthGrouped(lengths, batch, seed=5, grouped=grouped)
    again.set_epoch(epoch)
    assert list(again) == order


def test_grouping_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(50, 900, 4000)

    def padding(grouped: bool) -> float:
        order = np.array(list(LengthGrouped(lengths, 8, seed=0, grouped=grouped))).reshape(-1, 8)
        return float((lengths[order].max(1)[:, None] - lengths[order]).sum() / lengths.sum())

    assert padding(True) < 0.05 < 0.5 < padding(False)


# ------------------------------------------------------------------------------------------------ metrics


def test_scores_of_counts() -> None:
    said = probes.scores({"ground": 4, "hit": 3, "found": 5, "truth": 4, "unread": 1, "choice": 4, "choice_right": 3})
    assert said["ground_f1"] == pytest.approx(2 * 3 / 9)
    assert (said["ground_precision"], said["ground_recall"]) == (0.6, 0.75)
    assert said["ground_unread"] == 0.25
    assert said["choice_accuracy"] == 0.75
    assert "refer_accuracy" not in said
    assert probes.scores({"ground": 2})["ground_f1"] == 1.0, "nothing to find and nothing found"
    assert probes.scores({"ground": 2, "found": 1})["ground_f1"] == 0.0


class _Oracle:
    """A stand-in for a model: says a given text to every question."""

    generation_config: Any = None
    training = True
    device = "cpu"

    def __init__(self, encoder: Encoder, text: str) -> None:
        self.encoder, self.text = encoder, text

    def eval(self) -> None: ...
    def train(self, mode: bool) -> None:
        self.training = mode

    def generate(self, *, input_ids: Any, **_: Any) -> Any:
        import torch

        said = [*self.encoder.tokenizer(self.text)["input_ids"], self.encoder.end_id, 7]
        return torch.cat([input_ids, torch.tensor([said] * len(input_ids))], dim=1)


@pytest.mark.parametrize(
    ("text", "f1"),
    [("hsil 1 is located at <region>4 8 120 160</region>.", 1.0), ("No hsil is found.", 0.0),
     ("lsil 1 is located at <region>4 8 120 160</region>.", 0.0),
     ("hsil 1 is located at <region>9 9 40 40</region>.", 0.0)],
)  # fmt: skip
def test_grounding_is_scored_through_the_dialects_parser(
    encoder: Encoder, tmp_path: Path, text: str, f1: float
) -> None:
    file = _write(tmp_path, [GOOD])
    talks, _ = read_conversations(find_dataset(str(file)), get_dialect("embedded"))
    chosen = probes.choose(talks, 5, seed=0)
    assert len(chosen) == 1
    model = _Oracle(encoder, text)
    assert probes.scores(probes.count(model, encoder, chosen))["ground_f1"] == f1
    assert model.training
    assert model.generation_config is None


def test_an_answer_that_is_none_is_no_right_none(encoder: Encoder, tmp_path: Path) -> None:
    file = _write(tmp_path, [_line("Locate all lsil.", "No lsil is found.", "i/0.png")])
    talks, _ = read_conversations(find_dataset(str(file)), get_dialect("embedded"))
    for text, f1, unread in (("No lsil is found.", 1.0, 0.0), ("#?!", 0.0, 1.0), ("I cannot say.", 0.0, 1.0)):
        said = probes.scores(probes.count(_Oracle(encoder, text), encoder, talks))
        assert (said["ground_f1"], said["ground_unread"]) == (f1, unread)


def test_a_dialect_of_the_users_own_is_trained_in_its_own_coordinates(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: qwen3-vl\nname: mine\nversion: 1\nnames: {hsil: HSIL cell}\n")
    mine = load_dialect(path)
    translator = Translator(get_dialect("cytochat"), mine)
    frames = Frame((512, 512), (512, 512), (512, 512)), mine.frame((512, 512))
    said = translator.exchange("Locate all hsil.", "hsil 1 is located at <region>0 0 256 512</region>.", frames)
    assert json.loads(said.answer) == [{"bbox_2d": [0, 0, 500, 1000], "label": "HSIL cell"}]
    assert '"HSIL cell"' in said.question


@pytest.mark.parametrize("name", ["lr", "steps", "epochs", "batch_size"])
def test_a_yes_is_no_number_of_a_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=f"--{name.replace('_', '-')}: True cannot be used") as raised:
        settings_of(datasets=("a",), out=tmp_path, **{name: True})
    assert raised.value.hint.startswith("Write a number")
    assert settings_of(datasets=("a",), out=tmp_path, vision=True).vision is True
