"""Rewriting the wordings of instruction data by a model: what is taken, what is refused, what is never offered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from wsi_chat.datasets.annotated import Annotated
from wsi_chat.datasets.build import build_dataset
from wsi_chat.datasets.questions import Exchange
from wsi_chat.datasets.rewrite import Rewriter, judge, terms_of
from wsi_chat.datasets.wordings import PHRASE, Names
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import Fault, ScriptedEngine
from wsi_chat.journal import Journal
from wsi_chat.schema import Answer, Box, LabelledBox, Query
from wsi_chat.terminology import load_system

NAMES = Names(load_system("cervix"))
TERMS = terms_of(NAMES, ["hsil", "lsil", "intermediate"])


def _judged(template: str, text: str) -> str:
    said, why = judge(template, Answer("k", "vqa", text), TERMS)
    assert said == ("" if why else text)
    return why


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("There are 3 HSIL cells.", "The field contains 3 HSIL cells."),
        ("There are 3 HSIL cells.", "Three HSIL cells can be counted here."),
        ("No abnormal cells were found.", "The examination found no abnormal cells."),
        ("No abnormal cells were found.", "Abnormal cells were not found."),
        ("Were any abnormal cells found during the examination?", "Did the examination turn up abnormal cells?"),
        ("How many HSIL are seen?", "What is the number of HSIL?"),
        ("HSIL lies in the upper left.", "HSIL sits at the top left."),
        ("The field shows 2 HSIL cells. No LSIL is seen.", "Seen are 2 HSIL cells. There is no LSIL."),
    ],
)
def test_what_says_the_same_is_taken(template: str, text: str) -> None:
    assert _judged(template, text) == ""


@pytest.mark.parametrize(
    ("template", "text", "why"),
    [
        ("There are 3 HSIL cells.", "There are HSIL cells.", "numbers"),
        ("There are 3 HSIL cells.", "There are 4 HSIL cells.", "numbers"),
        ("There are 3 HSIL cells.", "There are thirteen HSIL cells.", "numbers"),
        ("There are 3 HSIL cells.", "There are 3 LSIL cells.", "classes"),
        ("There are 3 HSIL cells.", "There are 3 HSIL and LSIL cells.", "classes"),
        ("There are 3 HSIL cells.", "There are 3 cells.", "classes"),
        ("No abnormal cells were found.", "Abnormal cells were found.", "negation"),
        ("Abnormal cells were found.", "Abnormal cells weren't found.", "negation"),
        ("Abnormal cells are absent.", "Abnormal cells are not absent.", "negation"),
        ("No abnormal cells were found.", "No malignant cells were found.", "classes"),
        ("HSIL lies in the upper left.", "HSIL lies in the upper right.", "meaning"),
        ("It shows HSIL.", "It possibly shows HSIL.", "meaning"),
        ("It shows HSIL.", "It shows HSIL, confirmed by p16.", "numbers"),
        ("It shows HSIL.", "It shows HSIL, an HPV infection.", "meaning"),
        ("How many HSIL are seen?", "Are HSIL seen?", "question"),
        ("How many HSIL are seen?", "Many HSIL are seen.", "meaning"),
        ("Is there anything abnormal here?", "What is abnormal here?", "question"),
        ("Is there anything abnormal here?", "There is something abnormal here.", "question"),
        ("2 HSIL and 3 LSIL are seen.", "3 HSIL and 2 LSIL are seen.", "sentences"),
        ("HSIL is seen. No LSIL is seen.", "No HSIL is seen. LSIL is seen.", "sentences"),
        ("HSIL is seen but no LSIL.", "LSIL is seen but no HSIL.", "sentences"),
        ("HSIL is seen. LSIL is seen.", "HSIL is seen.", "classes"),
        ("It shows HSIL.", "", "empty"),
        ("It shows HSIL.", "  ... ", "empty"),
        ("It shows HSIL.", "It shows HSIL <region>1 2 3 4</region>.", "form"),
        ("It shows HSIL.", "<image>It displays HSIL.", "form"),
        ("It shows HSIL.", "It displays HSIL.<|im_end|>", "form"),
        ("It shows HSIL.", "It displays HSIL.\nAnything else?", "form"),
        ("It shows HSIL.", "it  shows HSIL.", "same"),
        ("It shows HSIL.", "It shows HSIL " + "as was said before " * 10, "length"),
    ],
)
def test_what_says_something_else_is_refused(template: str, text: str, why: str) -> None:
    assert _judged(template, text) == why


def test_an_answer_that_was_cut_off_or_failed_is_refused() -> None:
    cut = Answer("k", "vqa", "The field contains 3 HSIL cells.", status="truncated", finish_reason="length")
    assert judge("There are 3 HSIL cells.", cut, TERMS) == ("", "truncated")
    broken = Answer("k", "vqa", "", status="failed", finish_reason="error")
    assert judge("There are 3 HSIL cells.", broken, TERMS) == ("", "failed")


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=120))
def test_whatever_a_model_says_only_the_same_facts_pass(text: str) -> None:
    said, why = judge("There are 3 HSIL cells.", Answer("k", "vqa", text), TERMS)
    if not why:
        assert "hsil" in said.casefold()
        assert "3" in said or "three" in said.casefold()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from(["HSIL", "LSIL"]), st.sampled_from(["HSIL", "LSIL"]))
def test_a_number_or_class_that_changes_never_passes(n: int, m: int, one: str, other: str) -> None:
    why = _judged(f"There are {n} {one} cells.", f"In the field {m} {other} cells are found.")
    assert (why == "") == (n == m and one == other)


# ------------------------------------------------------------------------------------------------ the rewriter


def _rewriter(script: object, **more: object) -> tuple[Rewriter, ScriptedEngine]:
    engine = ScriptedEngine(script, **{k: more.pop(k) for k in ("faults",) if k in more})  # type: ignore[arg-type]
    made = Rewriter(engine, get_dialect("cytochat"), NAMES, ["hsil"], **{"share": 1.0, **more})  # type: ignore[arg-type]
    return made, engine


def _offered(query: Query) -> str:
    return query.turns[-1].text.split("\n\n", 1)[1]


def test_boxes_choices_and_the_dialects_own_prompts_are_never_offered() -> None:
    kept = [
        Exchange("ground", "Locate all hsil.", "hsil 1 is located at <region>1 2 3 4</region>."),
        Exchange("refer", "Give a brief description of region.<region>1 2 3 4</region>", "hsil"),
        Exchange("describe", "Describe the Cytology diagnosis results.", ""),
        Exchange("screen", "Is it abnormal?", "A.normal."),
    ]
    changed = [
        Exchange("region", "Is the cell in this region abnormal?<region>1 2 3 4</region>", "Yes, it shows HSIL."),
        Exchange("phrase", f"How many HSIL are seen? {PHRASE}", "2"),
        Exchange("ground", "Find every hsil in this image.", "hsil 1 is located at <region>1 2 3 4</region>."),
    ]
    offered: list[str] = []

    def script(query: Query) -> str:
        text = _offered(query)
        offered.append(text)
        return {
            "Is the cell in this region abnormal?": "Does the region hold an abnormal cell?",
            "Yes, it shows HSIL.": "Yes, HSIL is what it shows.",
            "How many HSIL are seen?": "What number of HSIL is visible?",
            "Find every hsil in this image.": "In this image, find every hsil.",
        }.get(text, "refused")

    rewriter, _ = _rewriter(script)
    (talk,) = rewriter.rewrite([tuple(kept + changed)], of="picture")
    assert list(talk[: len(kept)]) == kept
    assert talk[4].question == "Does the region hold an abnormal cell?<region>1 2 3 4</region>"
    assert talk[4].answer == "Yes, HSIL is what it shows."
    assert talk[5] == Exchange("phrase", f"What number of HSIL is visible? {PHRASE}", "2")
    assert talk[6].question == "In this image, find every hsil."
    assert talk[6].answer == changed[2].answer
    assert not any("region>" in text or "Locate" in text or "Describe the Cyt" in text for text in offered)
    assert (rewriter.done.tried, rewriter.done.kept, rewriter.done.used) == (4, 4, 4)


@pytest.mark.parametrize(
    ("reply", "why"),
    [("There are HSIL cells.", "numbers"), ("There aren't 3 HSIL cells.", "negation"), ("", "empty")],
)
def test_a_bad_rewriting_leaves_the_template_and_is_counted(reply: str, why: str) -> None:
    exchange = Exchange("vqa", "Describe the Cytology diagnosis results.", "There are 3 HSIL cells.")
    rewriter, _ = _rewriter({"vqa": reply})
    assert rewriter.rewrite([(exchange,)], of="p") == [(exchange,)]
    assert rewriter.done.payload() == {"tried": 1, "kept": 0, "used": 0, "template_stays": {why: 1}}


@pytest.mark.parametrize(("fault", "why"), [("truncate", "truncated"), ("fail", "failed")])
def test_a_truncated_or_failed_rewriting_leaves_the_template(fault: str, why: str) -> None:
    exchange = Exchange("vqa", "Describe the Cytology diagnosis results.", "There are 3 HSIL cells.")
    said = "In the field there are 3 HSIL cells."
    rewriter, _ = _rewriter({"vqa": said}, faults=[Fault(0, fault, keep=len(said) - 1)])  # type: ignore[arg-type]
    assert rewriter.rewrite([(exchange,)], of="p") == [(exchange,)]
    assert rewriter.done.refused == {why: 1}


def test_a_text_is_asked_once_and_never_again_with_a_journal(tmp_path: Path) -> None:
    exchange = Exchange("vqa", "Describe the Cytology diagnosis results.", "There are 3 HSIL cells.")
    with Journal(tmp_path / "cache.sqlite") as journal:
        first, engine = _rewriter({"vqa": "3 HSIL cells are in the field."}, journal=journal)
        talks = first.rewrite_all([("p", [(exchange,), (exchange, exchange)])])
        assert len(engine.asked) == 1
    with Journal(tmp_path / "cache.sqlite") as journal:
        again, silent = _rewriter({}, journal=journal)
        assert again.rewrite_all([("p", [(exchange,), (exchange, exchange)])]) == talks
        assert silent.asked == []
        assert again.done.payload() == first.done.payload()


def test_the_share_is_kept_and_the_same_each_time() -> None:
    talks = [(Exchange("vqa", "Describe the Cytology diagnosis results.", f"There are {n} HSIL cells."),)
             for n in range(200)]  # fmt: skip
    asked = []
    for _ in range(2):
        rewriter, engine = _rewriter({"vqa": "x"}, share=0.25)
        rewriter.rewrite(talks, of="p")
        asked.append([_offered(query) for query in engine.asked])
    assert asked[0] == asked[1]
    assert 30 <= len(asked[0]) <= 70


# ------------------------------------------------------------------------------------------------ in a build


def _picture(number: int) -> Annotated:
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    return Annotated(
        name=f"p{number}", size=(64, 64), load=lambda: Image.fromarray(pixels), group=f"g{number}",
        boxes=(LabelledBox("hsil", Box(4, 4, 30, 30)),), known=frozenset({"hsil", "lsil"}),
    )  # fmt: skip


def _built(out: Path, rewriter: Rewriter | None) -> dict[str, list[dict[str, object]]]:
    built = build_dataset(
        [_picture(n) for n in range(6)], out, dialect=get_dialect("embedded"), names=NAMES, rewriter=rewriter,
        fractions={"train": 0.7, "val": 0.3},
    )  # fmt: skip
    about = json.loads((out / "build.json").read_text())
    assert about.get("rewritten") == (dict(built.rewritten) if built.rewritten else None)
    return {f.name: [json.loads(line) for line in f.read_text().splitlines()] for f in sorted(out.glob("*.jsonl"))}


def test_a_build_with_rewriting_changes_words_and_nothing_else(tmp_path: Path) -> None:
    from wsi_chat.datasets.check import check_file

    def script(query: Query) -> str:
        text = _offered(query)
        return f"Well, {text[0].lower()}{text[1:]}" if text.endswith("?") else "no number, no class"

    plain = _built(tmp_path / "plain", None)
    rewriter, _ = _rewriter(script)
    reworded = _built(tmp_path / "reworded", rewriter)
    assert plain.keys() == reworded.keys()
    changed = 0
    for file, lines in plain.items():
        assert check_file(tmp_path / "reworded" / file).problems == ()
        for old, new in zip(lines, reworded[file], strict=True):
            assert old["images"] == new["images"]
            for before, after in zip(old["messages"], new["messages"], strict=True):  # type: ignore[call-overload]
                if before["role"] == "assistant":
                    assert before == after, "every rewritten answer was wrong, so the templates stay"
                elif before != after:
                    changed += 1
                    assert after["content"].replace("Well, ", "").casefold() == before["content"].casefold()
    assert changed > 5
    assert rewriter.done.used == changed
    assert rewriter.done.refused.total() > 0


def test_the_command_counts_what_the_embedded_checkpoint_cannot_rewrite(tmp_path: Path) -> None:
    from wsi_chat import cli

    _picture(0).load().save(tmp_path / "a.png")
    (tmp_path / "c.csv").write_text("image,caption\na.png,There are 3 HSIL cells.\n")
    arguments = ["dataset", "build", str(tmp_path / "out"), "--captions", str(tmp_path / "c.csv"), "--rewrite-share",
                 "1", "--json", "--split", "train=1"]  # fmt: skip
    done = CliRunner().invoke(cli.app, [*arguments, "--rewrite", str(tmp_path / "nothing")])
    assert "does not exist" in str(done.exception)
    from wsi_chat.engines import embedded_checkpoint

    done = CliRunner().invoke(cli.app, [*arguments, "--rewrite", str(embedded_checkpoint())])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)["rewritten"]
    assert said["tried"] == said["kept"] + sum(said["template_stays"].values())
    assert said["tried"] >= 1
    assert (tmp_path / "out.rewrites.sqlite").is_file()
