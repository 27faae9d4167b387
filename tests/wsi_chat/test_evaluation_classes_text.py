"""Classes, choices with their baselines, text and statements: hand-computed values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_chat.dialects.options import options_of, topic_of
from wsi_chat.evaluation.classes import NOTHING, Chosen, Named, score_choices, score_classes
from wsi_chat.evaluation.recognition import (
    class_names,
    question_of,
    recognise,
    target_of,
    turns_in,
)
from wsi_chat.evaluation.statements import score_fields, stated
from wsi_chat.evaluation.text import TextPair, score_text

MCQ = (
    "Please answer the multiple-choice question based on the image [Any abnormal cell?], and select the best option "
    "from the following options [A.no, B.yes, at least one]. Just answer the option."
)


def named(truth: str, predicted: str) -> list[Named]:
    return [Named(str(n), t, None if s == "-" else s) for n, (t, s) in enumerate(zip(truth, predicted, strict=True))]


def test_class_scores_by_hand() -> None:
    # a: 2 of 3 right, b: 0 of 1 (not read)
    scores = score_classes(named("aaab", "aab-"))
    assert scores.unparsed == 1
    assert scores.accuracy.value == 0.5
    assert scores.balanced_accuracy.value == pytest.approx(1 / 3)
    # F1 of a 4/5, of b 0
    assert scores.macro_f1.value == pytest.approx(0.4)
    assert scores.accuracy.interval is not None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc-")), min_size=2, max_size=30))
def test_intervals_rest_on_the_metrics_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    import warnings

    from wsi_chat.evaluation.classes import _counts, balanced, macro_f1, matthews

    rows = named("".join(t for t, _ in pairs), "".join(s for _, s in pairs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = score_classes(rows, resamples=0)
    predicted = [NOTHING if row.predicted is None else row.predicted for row in rows]
    names = sorted({*(row.truth for row in rows), *predicted} - {NOTHING})
    sums = _counts([row.truth for row in rows], predicted, names).sum(axis=0, keepdims=True)
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        assert balanced(sums)[0] == pytest.approx(scores.balanced_accuracy.value)
        assert macro_f1(sums)[0] == pytest.approx(scores.macro_f1.value)
        assert matthews(sums)[0] == pytest.approx(scores.mcc.value)


def test_a_liking_for_the_first_option_is_no_skill() -> None:
    # the right answer stands first in 7 of 10, and the model always takes the first
    rows = [
        Chosen(str(n), "t", ("yes", "no"), "yes" if n < 7 else "no", "yes") for n in range(10)
    ]  # fmt: skip
    overall = score_choices(rows).overall
    assert overall.scores.accuracy.value == pytest.approx(0.7)
    assert overall.always_first == pytest.approx(0.7)
    assert overall.majority == pytest.approx(0.7)
    assert overall.scores.balanced_accuracy.value == 0.5
    assert overall.first_chosen == 1.0
    assert overall.first_true == pytest.approx(0.7)
    assert overall.gain.value == 0.0
    assert overall.skill == 0.0


def test_shuffled_options_show_the_liking() -> None:
    rows = [
        Chosen(str(n), "t", ("yes", "no") if n % 2 else ("no", "yes"), "yes", "yes" if n % 2 else "no")
        for n in range(8)
    ]
    overall = score_choices(rows).overall
    assert overall.scores.accuracy.value == 0.5
    assert overall.majority == 1.0
    assert overall.gain.value == -0.5
    assert overall.skill is None


def test_topics_are_scored_apart_and_together() -> None:
    rows = [Chosen("a", "one", ("x", "y"), "x", "x"), Chosen("b", "two", ("x", "y"), "y", None)]
    choices = score_choices(rows)
    assert choices.by_topic["one"].scores.accuracy.value == 1.0
    assert choices.by_topic["two"].scores.unparsed == 1
    assert choices.overall.scores.accuracy.value == 0.5
    # x of one topic and x of the other are two classes
    assert choices.overall.scores.classes == 2


# -------------------------------------------------------------------------------------------- text


def pair(predicted: str, truth: str, image: str = "a") -> TextPair:
    return TextPair(image, predicted, truth)


def test_text_by_hand() -> None:
    # "the cat sat" against "the cat is here": 2 of 3 words, 1 of 2 pairs, brevity exp(1 - 4/3)
    scores = score_text([pair("the cat sat", "the cat is here"), pair("", "", "b")])
    short = math.exp(1 - 4 / 3)
    assert scores.bleu[0].value == pytest.approx(short * 2 / 3)
    assert scores.bleu[1].value == pytest.approx(short * math.sqrt(2 / 3 * 1 / 2))
    assert scores.bleu[3].value is None
    # ROUGE-L: 2 of 3 and 2 of 4 words, F 4/7; the empty row counts as 0
    assert scores.rouge_l.value == pytest.approx(4 / 7 / 2)
    # METEOR: P 2/3, R 1/2, F 10PR / (R + 9P), one chunk of two matches
    f = 10 * (2 / 3) * 0.5 / (0.5 + 9 * (2 / 3))
    assert scores.meteor.value == pytest.approx(f * (1 - 0.5 * (1 / 2) ** 3) / 2)
    assert scores.empty == 1


def test_the_reference_itself_scores_full() -> None:
    texts = ["No abnormal cells were found here.", "High grade lesion with many cells.", "Yeasts and hyphae are seen."]
    scores = score_text([pair(text, text, str(n)) for n, text in enumerate(texts)])
    assert [one.value for one in scores.bleu] == pytest.approx([1.0] * 4)
    assert scores.rouge_l.value == 1.0
    assert scores.exact.value == 1.0
    # CIDEr's full marks are 10; METEOR keeps a penalty for its one chunk
    assert scores.cider.value == pytest.approx(10.0)
    assert scores.meteor.value is not None
    assert 0.99 < scores.meteor.value < 1.0


def test_meteor_matches_stems() -> None:
    assert (score_text([pair("cells", "cell"), pair("a", "a")]).meteor.value or 0) > 0.4


def test_rare_words_weigh_more_in_cider() -> None:
    truth = ["the field shows candida spores", "the field shows herpes virus", "the field shows normal cells"]
    right = score_text([pair("candida spores", truth[0]), pair(truth[1], truth[1]), pair(truth[2], truth[2])])
    wrong = score_text([pair("the field", truth[0]), pair(truth[1], truth[1]), pair(truth[2], truth[2])])
    assert (right.cider.value or 0) > (wrong.cider.value or 0)


# -------------------------------------------------------------------------------------------- statements


@pytest.mark.parametrize(
    ("text", "category", "abnormal", "organisms"),
    [
        ("High-grade squamous intraepithelial lesion: 3 abnormal cells are seen.", "hsil", True, set()),
        ("No abnormal cells were found.", "negative", False, set()),
        (
            "Negative for intraepithelial lesion or malignancy; Trichomonas vaginalis.",
            "negative",
            False,
            {"trichomonas"},
        ),
        ("No HSIL is seen. LSIL is present.", "lsil", True, set()),
        ("LSIL and HSIL are present.", "hsil", True, set()),
        ("The image is stained.", "", None, set()),
        ("Without evidence of candida.", "", None, set()),
    ],
)
def test_what_a_sentence_states(text: str, category: str, abnormal: bool | None, organisms: set[str]) -> None:
    found = stated(text)
    assert (found.category, found.abnormal, set(found.organisms)) == (category, abnormal, organisms)


def test_fields_agree_by_hand() -> None:
    scores = score_fields(
        [
            pair("HSIL is seen.", "High-grade squamous intraepithelial lesion.", "a"),
            pair("No abnormal cells.", "LSIL is seen.", "b"),
            pair("", "No abnormal cells were found.", "c"),
        ]
    )
    assert scores.category.value == pytest.approx(1 / 3)
    assert scores.negation.value == pytest.approx(1 / 3)
    assert scores.organism_rows == 0


# -------------------------------------------------------------------------------------------- recognition


@pytest.mark.parametrize(
    ("question", "label", "kind"),
    [
        (MCQ, "B.yes.", "mcq"),
        ("Locate all hsil.", "hsil 1 is located at <region>1 2 3 4</region>.", "ground"),
        ("Locate all hsil.", "No hsil is found.", "ground"),
        ("Give a brief description of region.<region>1 2 3 4</region>", "hsil", "refer"),
        ("What does this region show?<region>1 2 3 4</region>", "It shows an atypical cell.", "region"),
        ("Describe the Cytology diagnosis results.", "No cells are seen.", "describe"),
        ("Please provide a detailed description of the image.", "The field shows two cells.", "narrative"),
        ("How many cells are seen? Answer the question with a single phrase.", "2", "phrase"),
        ("Were any abnormal cells found during the examination?", "Yes, some.", "vqa"),
        ("Where is the needle located? Give the bounding box coordinates.", "[0.1, 0.2, 0.3, 0.4]", "ground"),
        ("What is in the region [0.1, 0.2, 0.3, 0.4]?", "needle", "refer"),
        ("Which letter?\nA. one\nB. two\nAnswer with the option's letter from the given choices directly.", "A", "mcq"),
    ],
)  # fmt: skip
def test_kinds_are_recognised(question: str, label: str, kind: str) -> None:
    assert recognise(question, label) == kind


def test_tags_of_endochat_and_turns_decide() -> None:
    assert recognise("Locate all hsil.", "x", tag="visual_QA") == "vqa"
    assert recognise("What is this?", "A cell of the upper layer.", turns=2) == "multi-turn"


def test_options_with_commas_and_topics() -> None:
    assert options_of(MCQ) == (("A", "no"), ("B", "yes, at least one"))
    assert topic_of(MCQ) == "Any abnormal cell?"


def test_chat_templates_are_taken_off() -> None:
    wrapped = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>First?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nLocate all hsil.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert question_of(wrapped) == "Locate all hsil."
    assert turns_in(wrapped) == 2
    assert (
        question_of("system\nYou are a helpful assistant.\nuser\nLocate all hsil.\nassistant\n") == "Locate all hsil."
    )


def test_targets_have_one_name() -> None:
    assert target_of("Locate all HSIL.") == "hsil"
    assert target_of('Locate every instance that belongs to the following category: "asc-us". Report bbox.') == "ascus"
    assert class_names()["high-grade squamous intraepithelial lesion"] == "hsil"
