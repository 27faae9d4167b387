"""evaluate on files: published ones with three columns, EndoChat's, ours; and from rendered truth to the figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wsi_chat.dialects.options import options_of
from wsi_chat.dialects.refusal import declines
from wsi_chat.errors import SettingError
from wsi_chat.evaluation.evaluate import Evaluation, evaluate

runner = CliRunner()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain(prompt: str, predict: str | None, label: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "predict": predict, "label": label, **more}


MCQ = (
    "Please answer the multiple-choice question based on the image [T], and select the best option from the "
    "following options [A.{}, B.{}]. Just answer the option."
)
PUBLISHED = [
    plain("system\nYou are a helpful assistant.\nuser\nLocate all hsil.\nassistant\n",
          "hsil 1 is located at <region>10 10 60 60</region>. hsil 2 is located at <region>300 300 340 340</region>.",
          "hsil 1 is located at <region>10 10 60 60</region>."),
    plain("Locate all lsil.", "lsil 1 is located at <region>0 0 50 50</region>. lsil 2 is located at <region>70 8",
          "lsil 1 is located at <region>0 0 50 40</region>."),
    plain("Locate all agc.", "I cannot help with that.", "No agc is found."),
    plain(MCQ.format("yes", "no"), "A.yes.", "A.yes."),
    plain(MCQ.format("yes", "no"), "The answer is B", "A.yes."),
    plain(MCQ.format("yes", "no"), "hmm", "B.no."),
    plain(MCQ.format("yes", "yes"), "A.yes.", "A.yes."),
    plain("Give a brief description of region.<region>1 2 3 4</region>", "HSIL.", "hsil"),
    plain("Describe the Cytology diagnosis results.", "No abnormal cells were found here.",
          "No abnormal cells were found here."),
]  # fmt: skip


def of(path: Path, **more: Any) -> Evaluation:
    return evaluate(path, resamples=50, **more)


def test_a_published_file_of_three_columns(tmp_path: Path) -> None:
    result = of(write(tmp_path / "p.jsonl", PUBLISHED))
    assert result.counts.by_kind == {"mcq": 4, "ground": 3, "refer": 1, "describe": 1}
    assert result.grounding is not None
    half = result.grounding.at_iou[2]
    assert (half.hits, half.found, half.truth) == (2, 3, 2)
    assert result.grounding.unanswered == 1
    assert result.grounding.negatives.denied == 0
    assert set(result.grounding.by_class) == {"hsil", "lsil", "agc"}
    assert result.choice is not None
    assert (result.choice.overall.scores.rows, result.choice.overall.scores.unparsed) == (3, 1)
    assert result.choice.overall.scores.accuracy.value == pytest.approx(1 / 3)
    assert result.choice.overall.always_first == pytest.approx(2 / 3)
    assert result.counts.unscored == 1
    assert "listed twice" in result.problems[0].reason
    assert result.referring is not None
    assert result.referring.accuracy.value == 1.0
    assert result.text["describe"].exact.value == 1.0
    assert result.fields["describe"].negation.value == 1.0
    assert any("name no image" in note for note in result.notes)


def test_the_same_file_as_an_array_gives_the_same(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(PUBLISHED), encoding="utf-8")
    one = of(write(tmp_path / "p.jsonl", PUBLISHED)).model_dump(exclude={"file", "problems"})
    assert of(tmp_path / "p.json").model_dump(exclude={"file", "problems"}) == one


@pytest.mark.parametrize(
    ("predict", "label", "hits"),
    [
        (
            '[{"bbox_2d": [100, 100, 200, 200], "label": "hsil"}]',
            '[{"bbox_2d": [100, 100, 200, 210], "label": "hsil"}]',
            1,
        ),
        ("[0.1, 0.1, 0.2, 0.2]", "[0.1, 0.1, 0.2, 0.21]", 1),
        ("[0.1, 0.1, 0.2, 0.2]", "[0.5, 0.5, 0.7, 0.7]", 0),
        ("<|box_start|>(100,100),(200,200)<|box_end|>", "<|box_start|>(100,100),(200,200)<|box_end|>", 1),
        ("<loc0100><loc0200><loc0300><loc0400> hsil", "<loc0100><loc0200><loc0300><loc0400> hsil", 1),
    ],
)
def test_box_grammars(tmp_path: Path, predict: str, label: str, hits: int) -> None:
    result = of(write(tmp_path / "p.jsonl", [plain("Locate all hsil.", predict, label)]))
    assert result.grounding is not None
    assert result.grounding.at_iou[2].hits == hits
    assert result.grounding.at_iou[2].truth == 1


def test_boxes_of_two_grammars_meet_once_the_size_is_known(tmp_path: Path) -> None:
    label = "hsil 1 is located at <region>51.2 51.2 102.4 102.4</region>."
    path = write(tmp_path / "p.jsonl", [plain("Locate all hsil.", '[{"bbox_2d": [100, 100, 200, 200]}]', label)])
    mixed = of(path)
    assert mixed.counts.unscored == 1
    assert "size is not known" in mixed.problems[0].reason
    result = of(path, image_size=(512, 512))
    assert result.grounding is not None
    assert result.grounding.at_iou[3].hits == 1


def test_rows_of_endochat(tmp_path: Path) -> None:
    base = {"image": "C80/1.jpg", "sub_task": ""}
    rows = [
        {**base, "id": 1, "question": "Phase? Answer the question with a single phrase.", "answer": "The left-top.",
         "answer_gt": "left top", "main_tag": "single_phrase"},
        {**base, "id": 2, "question": "Where is it?", "answer": "[0.1, 0.1, 0.4, 0.4]",
         "answer_gt": "[0.1, 0.1, 0.4, 0.4]", "main_tag": "grounding"},
        {**base, "id": 3, "question": "What?", "answer": "a tool is seen", "answer_gt": "a tool is seen",
         "main_tag": "visual_QA"},
        {**base, "id": 4, "question": "Tell.", "answer": None, "answer_gt": "a long tale of tools",
         "main_tag": "detailed_description"},
    ]  # fmt: skip
    (tmp_path / "test_result.json").write_text(json.dumps(rows), encoding="utf-8")
    result = of(tmp_path / "test_result.json")
    assert result.counts.by_kind == {"ground": 1, "phrase": 1, "vqa": 1, "narrative": 1}
    assert result.phrase is not None
    assert result.phrase.accuracy.value == 1.0
    assert result.grounding is not None
    assert result.grounding.mean_iou.value == pytest.approx(1.0)
    # an answer that never came stays in the denominator
    assert (result.counts.failed, result.text["narrative"].rouge_l.value) == (1, 0.0)


REFUSALS = (
    "I cannot answer a medical question.",
    "A definitive answer cannot be given from a single field.",
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I am unable to diagnose images.",
    "抱歉，我无法判断。",
)


@pytest.mark.parametrize("predict", REFUSALS)
def test_a_refusal_is_counted_as_one_and_as_wrong(tmp_path: Path, predict: str) -> None:
    rows = [
        plain(MCQ.format("hsil", "lsil"), predict, "A.hsil."),
        plain(MCQ.format("hsil", "lsil"), "B.lsil.", "B.lsil."),
        plain("Locate all hsil.", predict, "No hsil is found."),
        plain("Locate all hsil.", "bananas", "No hsil is found."),
    ]
    result = of(write(tmp_path / "p.jsonl", rows))
    assert (result.counts.refused, result.counts.unparsed, result.counts.unscored) == (2, 1, 0)
    assert result.choice is not None
    assert result.choice.overall.scores.accuracy.value == 0.5


def test_a_label_that_cannot_be_read_is_not_scored_as_none_there(tmp_path: Path) -> None:
    quad = "<|quad_start|>(100,100),(200,100),(200,200),(100,200)<|quad_end|>"
    rows = [plain("Locate all hsil.", "No hsil is found.", label) for label in (quad, "somewhere", "No hsil is found.")]
    result = of(write(tmp_path / "p.jsonl", rows))
    assert result.counts.unscored == 2
    assert "neither a box nor words for none" in result.problems[0].reason
    assert result.grounding is not None
    assert result.grounding.negatives.questions == 1


@pytest.mark.parametrize(
    "text", ["", "bananas", "The nucleus cannot be larger.", "HSIL cannot be excluded.", "No hsil is found.", "A or B"]
)
def test_other_answers_are_no_refusals(text: str) -> None:
    assert not declines(text)


def test_failed_and_cut_off_rows_count(tmp_path: Path) -> None:
    rows = [
        plain(MCQ.format("yes", "no"), "", "A.yes.", status="failed"),
        plain(MCQ.format("yes", "no"), "A.yes.", "A.yes.", finish_reason="length"),
        {"prompt": "no label here"},
    ]
    result = of(write(tmp_path / "p.jsonl", rows))
    counts = result.counts
    assert (counts.failed, counts.truncated, counts.skipped, counts.unparsed, counts.refused) == (1, 1, 1, 0, 0)
    assert result.choice is not None
    assert result.choice.overall.scores.accuracy.value == 0.5


def test_files_that_cannot_be_scored(tmp_path: Path) -> None:
    for text in ("", "no json", '{"a": 1}'):
        (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(SettingError, match="holds no prediction"):
            evaluate(tmp_path / "p.jsonl")
    with pytest.raises(SettingError, match="cannot be read"):
        evaluate(tmp_path / "none.jsonl")


def test_labels_as_predictions_score_full(tmp_path: Path) -> None:
    good = [row for row in PUBLISHED if "yes, B.yes" not in row["prompt"]]
    result = of(write(tmp_path / "p.jsonl", [{**row, "predict": row["label"]} for row in good]))
    assert result.choice is not None
    assert result.grounding is not None
    assert result.referring is not None
    scores = result.choice.overall.scores
    assert (scores.accuracy.value, scores.macro_f1.value, scores.mcc.value) == (1.0, 1.0, 1.0)
    assert all(at.f1.value == 1.0 and at.ap is not None and at.ap.value == 1.0 for at in result.grounding.at_iou)
    assert result.grounding.negatives.denied == 1
    assert result.referring.accuracy.value == 1.0
    assert [one.value for one in result.text["describe"].bleu] == pytest.approx([1.0] * 4)


def test_from_rendered_truth_to_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded checkpoint asked about rendered fields by the commands themselves; a rerun asks nothing."""
    from wsi_chat.cli import app
    from wsi_chat.commands.console import EXIT_PARTIAL

    monkeypatch.chdir(tmp_path)

    def call(*words: str, code: int = 0) -> str:
        result = runner.invoke(app, list(words))
        assert result.exit_code == code, result.output
        return result.stdout

    call("synth", "fields", "fields", "-n", "1", "--seed", "970000000")
    call("dataset", "build", "data", "--rendered", "fields/truth.json", "--dialect", "embedded", "--specimen",
         "cervix", "--split", "test=1", "--png", "--per-kind", "1", "--kind", "ground", "--kind", "mcq",
         "--kind", "refer")  # fmt: skip
    file = tmp_path / "data" / "cytology_test.jsonl"
    turns = [
        {"role": "user", "content": "<image>Locate all hsil."},
        {"role": "assistant", "content": "No hsil is found."},
    ]
    broken = {"messages": turns, "images": ["images/none.png"]}
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(broken) + "\n")
    asked = len(file.read_text(encoding="utf-8").splitlines())
    infer = ("infer", "--dataset", "cytology_test", "--dataset_dir", "data", "--save_name", "out.jsonl",
             "--max_new_tokens", "12", "--json")  # fmt: skip
    first = json.loads(call(*infer, code=EXIT_PARTIAL))
    assert first["rows"] == asked
    assert [failure["line"] for failure in first["failed"]] == [asked]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in rows] == sorted(row["line"] for row in rows)
    again = json.loads(call(*infer, code=EXIT_PARTIAL))
    assert (again["new"], again["reused"]) == (1, first["answers"] - 1)
    scored = json.loads(call("evaluate", "out.jsonl", "--json", "--resamples", "20"))
    assert scored["counts"]["rows"] == first["answers"]
    assert scored["counts"]["failed"] == 1
    assert scored["images"] == 2
    assert scored["grounding"]["questions"] >= 2
    out = tmp_path / "out-evaluation"
    assert json.loads((out / "evaluation.json").read_text(encoding="utf-8")) == scored
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    table = call("evaluate", "out.jsonl", "-o", "other", "--resamples", "0")
    assert "multiple choice" in table
    assert "asked for what is not there" in table


OPTIONS = "A. HSIL\nB. LSIL\nC. ASC-US\nD. Normal"


@pytest.mark.parametrize(
    "prompt",
    [
        f"Question: Which cell?\nOptions:\n{OPTIONS}\nPlease select the correct answer from the options above. \n",
        f"Which cell?\n{OPTIONS}\nAnswer with the option's letter from the given choices directly.",
        f"Hint: think.\nQuestion: Which cell?\n\n{OPTIONS}\n\nThe last line of your response should be a letter.",
        f"图中是哪种细胞？\n{OPTIONS}\n请直接回答选项字母。",
        "Which cell?\n(A) HSIL\n(B) LSIL\n(C) ASC-US\n(D) Normal\nAnswer with a letter.",
        "Which cell? A) HSIL B) LSIL C) ASC-US D) Normal. Answer:",
        "Which cell? (A) HSIL (B) LSIL (C) ASC-US (D) Normal\nAnswer:",
        "图中是哪种细胞？A、HSIL B、LSIL C、ASC-US D、Normal。请回答。",
    ],
)
def test_choices_in_the_words_of_others(tmp_path: Path, prompt: str) -> None:
    rows = [plain(prompt, "B", "B"), plain(prompt, "A cell of low grade.", "B. LSIL")]
    result = of(write(tmp_path / "p.jsonl", rows))
    assert result.counts.by_kind == {"mcq": 2}
    assert result.choice is not None
    scores = result.choice.overall.scores
    assert (scores.accuracy.value, scores.unparsed) == (0.5, 1)
    assert set(result.choice.by_topic) <= {"Which cell?", "图中是哪种细胞？"}
    assert options_of(prompt) == (("A", "HSIL"), ("B", "LSIL"), ("C", "ASC-US"), ("D", "Normal"))


def test_a_list_in_a_free_question_is_no_choice(tmp_path: Path) -> None:
    row = plain("Describe:\nA. the nuclei\nB. the cytoplasm", "Round nuclei.", "Small round nuclei in blue cytoplasm.")
    assert of(write(tmp_path / "p.jsonl", [row])).counts.by_kind == {"vqa": 1}


def test_reasoning_is_no_answer_of_any_kind(tmp_path: Path) -> None:
    box = '[{{"bbox_2d": [{0}, {0}, {1}, {1}], "label": "hsil"}}]'
    right, weighed = box.format(100, 160), box.format(400, 460)
    more = {"images": ["a.png"], "image_sizes": [[512, 512]], "dialect": "qwen2.5-vl"}
    rows = [
        plain("Locate all hsil.", f"<think>{weighed}? No.</think>{right}", right, **more),
        plain("Locate all hsil.", f"{weighed}? No.</think>\n[]", "[]", **more),
        plain("Locate all hsil.", f"<think>{weighed}, no", "[]", **more),
        plain("Describe the Cytology diagnosis results.", "<think>HSIL?</think>Normal cells.", "Normal cells."),
        plain(MCQ.format("yes", "no"), "<think>A. yes</think>B", "B.no."),
    ]
    result = of(write(tmp_path / "p.jsonl", rows))
    assert result.grounding is not None
    half = result.grounding.at_iou[2]
    assert (half.hits, half.found, half.truth) == (1, 1, 1)
    assert (result.grounding.negatives.denied, result.grounding.negatives.unanswered) == (1, 1)
    assert result.counts.truncated == 1
    assert result.text["describe"].exact.value == 1.0
    assert result.choice is not None
    assert result.choice.overall.scores.accuracy.value == 1.0


@pytest.mark.parametrize("prompt", ["Locate all hsil.", "Point out what is wrong here."])
@pytest.mark.parametrize(
    "text",
    [
        "<|object_ref_start|>hsil<|object_ref_end|><|box_start|>(100,100),(200,200)<|box_end|>",
        "hsil(100,100),(200,200)",
        "(100, 100), (200, 200)",
    ],
)
@pytest.mark.parametrize("dialect", ["", "cytochat", "qwen2-vl"])
def test_boxes_of_qwen_with_and_without_their_tokens(tmp_path: Path, prompt: str, text: str, dialect: str) -> None:
    none = plain(prompt, text, "No hsil is found.", dialect=dialect)
    rows = [plain(prompt, text, text, dialect=dialect), none]
    result = of(write(tmp_path / "p.jsonl", rows))
    assert result.counts.by_kind == {"ground": 2}
    assert result.grounding is not None
    assert (result.grounding.at_iou[2].hits, result.grounding.at_iou[2].found) == (1, 2)
    assert result.grounding.negatives.false_alarms == 1
    assert any("2 answers of cytochat have their boxes in the form of qwen2-vl" in n for n in result.notes) is (
        dialect == "cytochat"
    )


def test_boxes_in_free_text_are_not_scored_in_silence(tmp_path: Path) -> None:
    rows = [plain("Describe the image.", "A cell at (100,100),(200,200).", "A cell lies in the upper left corner.")]
    result = of(write(tmp_path / "p.jsonl", rows))
    assert result.counts.by_kind == {"narrative": 1}
    assert any("1 answer scored as free text also holds boxes" in note and "line 1" in note for note in result.notes)
