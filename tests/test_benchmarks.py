"""Benchmarks are not run by the tests, but what they import must be there."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").glob("*.py")])
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


def test_the_page_on_scaling_shows_what_the_model_of_cost_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling = import_module("scaling")
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for name, table in scaling.tables(3.0).items():
        assert table in page, f"{name}: run python benchmarks/scaling.py and put its table into docs/scaling.md"
    assert f"{scaling.Slide().tiles:,} tiles" in page
    assert all(abs(check.off) <= scaling.TOLERANCE for check in scaling.checks())


def test_the_model_of_cost_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling = import_module("scaling")
    slide, machine = scaling.Slide(), scaling.H200_8B
    one = scaling.seconds_per_slide(slide, machine)
    assert slide.tiles == round(13**2 * 250_000 * 3.14159265 / 192**2)
    assert one == pytest.approx(5 + (slide.tiles + 10) / (55.6 * 0.957) + (24 * 12 + 16 * 6) / 50 + 5)
    many = scaling.cost(1000, 8, slide, machine, price=2.0)
    assert many.wall == pytest.approx(75.6 + 125 * one)
    assert many.gpu_seconds == pytest.approx(8 * 75.6 + 1000 * one)
    assert many.money == pytest.approx(many.gpu_seconds / 1800)
    assert scaling.cost(1, 256, slide, machine, price=0).gpu_seconds == pytest.approx(75.6 + one)  # one GPU is used
    assert scaling.cost(1000, 8, slide, machine, price=0, lost_per_hour=4).wall > many.wall
