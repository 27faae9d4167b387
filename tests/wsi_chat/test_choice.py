"""Which option an answer in words chooses: letters that are choices, articles that are not, reasoning dropped."""

from __future__ import annotations

import time

import pytest

from wsi_chat import tasks
from wsi_chat.dialects import dialects, get_dialect
from wsi_chat.dialects.choice import chosen_option
from wsi_chat.dialects.reasoning import final_answer, unfinished
from wsi_chat.schema import Answer

CLASSES = ("HSIL", "LSIL", "ASC-US", "Normal")


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", "B.", "(B)", "[B]", "**B**", "B)", "b) LSIL", "B.LSIL", "B. LSIL", "B: LSIL", "B - LSIL", "B、LSIL",
        "（B）",
        "Option B", "$\\boxed{B}$", "\\boxed{\\text{B}}", '{"answer": "B"}', "assistant\nB", "B<|im_end|>",
        "The answer is B", "The answer is **B**", "**Answer: B**", "Answer: (B) LSIL", "Final answer: **B. LSIL**",
        "The correct option is (B) LSIL", "The answer is: option B.", "I would choose B.", "I think it is B",
        "答案是B", "答案：B", "应选 B。", "选B",
        "A lymphocyte and a few squamous cells are visible; the correct option is B.",
        "A low-grade lesion: B",
        "The answer is a low-grade lesion, so B.",
        "The answer is B because the nuclei are large.",
        "The answer is B, not A.",
        "The correct answer is B. Option A is wrong because the N/C ratio is low.",
        "Option A is wrong. The answer is B.",
        "Not A. B.",
        "A: HSIL is unlikely. B: LSIL is right.",
        "D'accord, B",
        "D-dimer is not visible here; B",
        "C-shaped nuclei suggest B.",
        "B\n\nThe nuclei are enlarged.",
        "The nuclei are enlarged.\n\nB",
        "A. HSIL\nB. LSIL\nC. ASC-US\nD. Normal\nAnswer: B",
        "<think>Option A would need a high N/C ratio.</think>\nB",
        "It could be A. HSIL.\n</think>\n\nB",
        "<think>The nuclei are enlarged.</think><answer>B</answer>",
        "LSIL", "lsil.", "The image shows LSIL.", "It is LSIL.",
    ],
)  # fmt: skip
def test_an_answer_that_chooses_b(text: str) -> None:
    assert chosen_option(text, CLASSES) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A cluster of abnormal cells with irregular, hyperchromatic nuclei.",
        "A normal field: superficial and intermediate squamous cells, nothing else.",
        "A definitive answer cannot be given from a single field.",
        "Answer: A cluster of abnormal cells",
        "I cannot answer a medical question.",
        "A or B", "The answer is A or B", "Answer: A, B", "Neither A nor B.", "Either A or B.", "A/B", "AB",
        "The answer is not A.", "答案不是A", "It is not LSIL.", "A. HSIL is unlikely",
        "Hepatitis A.", "vitamin B", "Group A", "A-type cells", "A's",
        "The answer is A. No, the answer is B.",
        "A. HSIL\nB. LSIL\nC. ASC-US\nD. Normal",
        "B. HSIL",
        "The image shows HSIL and LSIL.",
        "<think>A",
        "<think>A. HSIL</think><think>B",
        "E", "E. SCC",
    ],
)  # fmt: skip
def test_an_answer_that_chooses_nothing(text: str) -> None:
    assert chosen_option(text, CLASSES) is None


def test_the_article_of_a_description_is_not_the_first_option_in_any_dialect() -> None:
    ask = tasks.mcq("the field", ("normal", "abnormal"))
    for name in dialects():
        dialect = get_dialect(name)
        for text in ("A cluster of abnormal cells is seen.", "<think>A: normal?", "<think>A</think>"):
            assert dialect.read_choice(Answer("k", "screen", text), ask) is None
        assert dialect.read_choice(Answer("k", "screen", "<think>A</think>B"), ask) == {"normal": 0.0, "abnormal": 1.0}


def test_probabilities_of_the_first_word_of_reasoning_are_not_those_of_the_choice() -> None:
    ask = tasks.mcq("the field", ("normal", "abnormal"))
    answer = Answer("k", "screen", "<think>Enlarged nuclei.</think>B", probabilities={"A": 0.9, "B": 0.1})
    assert get_dialect("cytochat").read_choice(answer, ask) == {"normal": 0.0, "abnormal": 1.0}


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("Normal cells.", "Normal cells."),
        ("<think>HSIL?</think>\n\nNormal cells.", "Normal cells."),
        ("HSIL?</think>\nNormal cells.", "Normal cells."),
        ("<think>one</think><think>two</think> Normal", "Normal"),
        ("<THINKING>x</THINKING>Normal", "Normal"),
        ("◁think▷x◁/think▷Normal", "Normal"),
        ("<|channel|>analysis<|message|>x<|channel|>final<|message|>Normal", "Normal"),
        ("<think>x</think><answer> Normal </answer>", "Normal"),
        ("<think>HSIL", ""),
        ("Normal <think>HSIL", ""),
    ],
)
def test_only_what_follows_the_reasoning_is_the_answer(text: str, final: str) -> None:
    assert final_answer(text) == final
    assert unfinished(text) is (final == "")
    dialect = get_dialect("qwen3-vl")
    answer = Answer("k", "describe", text)
    assert dialect.read_text(answer) == final
    assert dialect.truncated(answer) is (final == "")


def test_boxes_that_were_only_weighed_are_not_found() -> None:
    dialect = get_dialect("qwen2.5-vl")
    frame = dialect.frame((512, 512))
    weighed = '[{"bbox_2d": [400, 400, 460, 460], "label": "hsil"}]'
    real = '[{"bbox_2d": [100, 100, 160, 160], "label": "hsil"}]'
    reading = dialect.read_boxes(Answer("k", "ground", f"<think>{weighed}?</think>{real}"), frame, "hsil")
    assert [round(found.box.x0) for found in reading.boxes] == [round(100 * 512 / frame.sent[0])]
    none = dialect.read_boxes(Answer("k", "ground", f"{weighed}, no.\n</think>\n[]"), frame, "hsil")
    assert (none.boxes, none.understood) == ((), True)
    cut = dialect.read_boxes(Answer("k", "ground", f"<think>{weighed}, no boxes here"), frame, "hsil")
    assert (cut.boxes, cut.understood, cut.truncated) == ((), False, True)


@pytest.mark.parametrize(
    "part", ["the ", "best answer ", "A. ", "**", "(", "answer: ", "\\boxed{", "<think></think>", "\n"]
)
def test_a_runaway_answer_is_read_in_bounded_time(part: str) -> None:
    began = time.monotonic()
    chosen_option(part * 30_000, CLASSES)
    assert time.monotonic() - began < 5
