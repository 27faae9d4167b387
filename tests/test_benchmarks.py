"""Benchmarks are not run by the tests, but what they import must be there."""

from __future__ import annotations

import ast
import re
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


def _anchor(heading: str) -> str:
    """The fragment by which Markdown viewers link to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_contents_of_the_results_list_every_section() -> None:
    contents = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[(.+)\]\((results/.+)\)$", contents, re.MULTILINE)
    sections = [
        (heading, f"results/{path.name}#{_anchor(heading)}")
        for path in (ROOT / "benchmarks" / "results").glob("*.md")
        for heading in re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(sections) > 20
    assert sorted(listed) == sorted(sections)


def test_scripts_that_the_results_name_exist() -> None:
    pages = [ROOT / "benchmarks" / "RESULTS.md", *(ROOT / "benchmarks" / "results").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"benchmarks/\w+\.py", page.read_text(encoding="utf-8"))}
    assert len(named) > 15
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []
