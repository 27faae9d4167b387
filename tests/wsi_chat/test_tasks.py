"""What can be asked, and what cannot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wsi_chat import tasks
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box
from wsi_chat.terminology import load_system


def test_the_screen_question_comes_from_the_reporting_system() -> None:
    ask = tasks.screen(load_system("cervix"))
    assert (ask.task, ask.topic) == ("screen", "Is any abnormal cell present?")
    assert ask.options == ("normal", "abnormal")
    assert ask.letters == ("A", "B")
    assert ask.max_tokens == 1


def test_options_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(SettingError, match="listed twice"):
        tasks.mcq("Which?", ["hsil", "lsil", " HSIL"])
    with pytest.raises(SettingError, match="is empty"):
        tasks.mcq("Which?", ["hsil", " "])


@pytest.mark.parametrize("count", [0, 1, 27])
def test_a_choice_has_2_to_26_options(count: int) -> None:
    with pytest.raises(SettingError, match=f"got {count}"):
        tasks.mcq("Which?", [f"option {n}" for n in range(count)])


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "ground", "target": " "},
        {"task": "refer"},
        {"task": "vqa", "question": ""},
        {"task": "describe", "options": ("a", "b")},
        {"task": "describe", "max_tokens": 0},
    ],
)
def test_incomplete_questions_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        tasks.Ask(**fields)


def test_each_task_asks_for_room_of_its_own() -> None:
    system = SimpleNamespace(screen=SimpleNamespace(topic="?", options=("no", "yes")))
    asks = [tasks.screen(system), tasks.ground("hsil"), tasks.refer(Box(0, 0, 1, 1)), tasks.describe()]
    assert [ask.max_tokens for ask in asks] == [1, 1024, 32, 256]
    assert tasks.vqa("Why?", max_tokens=7).max_tokens == 7
