"""Every input of tests/cases/inputs.yaml ends with its error, or is read as far as it can be; none as a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from wsi_chat import errors

from .inputs import KINDS, make

FILE = Path(__file__).parents[1] / "cases" / "inputs.yaml"
CASES: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
MOST_BYTES = 100_000


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}: {case['name']}")
@pytest.mark.filterwarnings("ignore")
def test_an_input_has_the_outcome_that_its_case_states(case: dict[str, Any], tmp_path: Path) -> None:
    path = make(case, tmp_path)
    assert not path.is_file() or path.stat().st_size < MOST_BYTES
    read = KINDS[case["kind"]].read
    if "error" not in case:
        assert str(read(path)) == case["reads"]
        return
    with pytest.raises(errors.WsiChatError) as caught:
        read(path)
    assert isinstance(caught.value, getattr(errors, case["error"]))
    assert caught.value.hint
    message = caught.value.message.replace(f"{tmp_path}/", "")
    for words in case["says"]:
        assert words in message


def test_there_is_one_case_of_each_kind_of_damage_and_every_reader_has_some() -> None:
    names = [(case["kind"], case["name"]) for case in CASES]
    assert len(set(names)) == len(names) >= 150
    assert {kind for kind, _ in names} == set(KINDS)
