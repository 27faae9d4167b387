"""Benchmarks are not run by the tests, but what they import must be there."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").glob("*.py")])
OURS = ("wsi_chat", "tilers", "aggregators", "reports")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_of_the_project_exists(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            module = import_module(node.module)
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            # a submodule is an attribute once it has been imported
            for name in missing:
                import_module(f"{node.module}.{name}")
