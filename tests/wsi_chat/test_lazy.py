"""Packages whose names are imported on first use offer what they list, and nothing else."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("aggregators", "reports", "tilers", "wsi_chat", "wsi_chat.cohort")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_listed_name_is_there_and_is_what_a_type_checker_sees(name: str) -> None:
    package = importlib.import_module(name)
    assert dir(package) == sorted(package.__all__)
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (checked,) = (part for part in tree.body if isinstance(part, ast.If))
    homes = {
        alias.name: part.module
        for part in ast.walk(checked)
        if isinstance(part, ast.ImportFrom)
        for alias in part.names
    }
    assert {*homes} == {*package.__all__} - {"__version__"}
    for exported, home in homes.items():
        assert getattr(package, exported) is getattr(importlib.import_module(str(home)), exported)


@pytest.mark.parametrize("name", PACKAGES)
def test_another_name_is_an_attribute_error_that_names_the_package(name: str) -> None:
    package = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"^module '{name}' has no attribute 'nonsense'$"):
        _ = package.nonsense
    with pytest.raises(ImportError, match="nonsense"):
        exec(f"from {name} import nonsense")


def test_importing_the_packages_imports_none_of_their_modules() -> None:
    code = (
        "import sys, aggregators, reports, tilers, wsi_chat\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('aggregators', 'reports', 'tilers', 'wsi_chat',"
        " 'numpy', 'torch', 'pydantic', 'yaml')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) == {
        "aggregators", "reports", "tilers", "wsi_chat", "wsi_chat._version", "wsi_chat.lazy"
    }  # fmt: skip
