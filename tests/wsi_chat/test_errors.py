"""Errors in one line, as summary.csv and run.log have them."""

from __future__ import annotations

import pytest

from wsi_chat.engines.loading import pick_device
from wsi_chat.errors import DocumentError, SettingError


@pytest.mark.parametrize(
    ("message", "hint", "line"),
    [
        ("device is 'foo'", "Give auto.", "device is 'foo'. Give auto."),
        ("It is missing.", "Put it back.", "It is missing. Put it back."),
        ("读不出。", "再试一次。", "读不出。 再试一次。"),
        ("nothing to add", "", "nothing to add"),
        ("", "Give auto.", "Give auto."),
    ],
)
def test_the_message_and_the_way_out_are_two_sentences(message: str, hint: str, line: str) -> None:
    error = SettingError(message, hint=hint)
    assert str(error) == line
    assert (error.message, error.hint) == (message, hint)  # the terminal has them on two lines, as they are


def test_a_device_that_is_none_is_told_in_two_sentences() -> None:
    with pytest.raises(SettingError) as raised:
        pick_device("foo")
    assert str(raised.value) == "device is 'foo'. Give auto, cpu, cuda, cuda:1 or mps."


def test_the_error_of_a_document_stays_as_it_is() -> None:
    assert str(DocumentError("a.yaml", "holds a list", line=3)) == "a.yaml, line 3, holds a list. Correct the file."
