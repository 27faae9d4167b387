"""What tests may rely on: nothing beside the checkout but what the fixture `shared` gives, or else skips for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMES_IT = re.compile(r"""\.\./shared|\bSHARED\b|["'/]shared/|parents\[\d\][\s/]*["']shared["']""")


def test_no_test_names_the_shared_folder_but_through_its_fixture() -> None:
    allowed = {TESTS / "conftest.py", Path(__file__)}
    files = [path for path in TESTS.rglob("*.py") if path not in allowed]
    assert len(files) > 50
    assert [str(path) for path in files if NAMES_IT.search(path.read_text(encoding="utf-8"))] == []


def test_what_is_absent_skips_and_says_which(shared: Callable[[str], Path]) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"nowhere/at-all is absent"):
        shared("nowhere/at-all")
