"""The program's own sentences: every code has words in every language, and every code that is used is known."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import wsi_chat
from wsi_chat.remarks import LANGUAGES, Phrasing, catalogue, listed, read_remark, together
from wsi_chat.schema import Adequacy, Remark

ROOT = Path(wsi_chat.__file__).resolve().parents[1]
HAN = re.compile(r"[\u4e00-\u9fff]")
# texts that are the same in every language: names, and what is joined of other remarks
NEUTRAL = {
    "verbatim", "part.class_and_number", "part.name_and_number", "part.number_and_class",
    "part.number_and_kinds", "about.given",
    "category.names",
}  # fmt: skip


def templates(language: str) -> dict[str, str]:
    found = {}
    for section, entry in catalogue(language)["remarks"].items():
        if isinstance(entry, Mapping):
            found |= {f"{section}.{key}": text for key, text in entry.items()}
        else:
            found[section] = entry
    return found


def fields_of(template: str) -> dict[str, set[str]]:
    """Field -> the specs that a template writes it with."""
    specs: dict[str, set[str]] = {}
    for _, name, spec, _ in string.Formatter().parse(template):
        if name is not None:
            specs.setdefault(name, set()).add(spec or "")
    return specs


def filled(code: str, n: int) -> Remark:
    """A remark with a value of the right kind in every field."""
    values: dict[str, Any] = {}
    for name, specs in fields_of(templates("en")[code]).items():
        if specs & {"and", "or", ";", "sentences"}:
            values[name] = [Remark("verbatim", text=f"part {i}") for i in range(n)]
        elif any(spec.endswith(("f", "g", "%")) for spec in specs):
            values[name] = 0.25 * n
        elif any("|" in spec or spec == "d" for spec in specs):
            values[name] = n
        else:
            values[name] = f"<{name}>"
    return Remark(code, **values)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("code", templates("en"))
@pytest.mark.parametrize("n", [1, 3])
def test_every_code_has_words_with_and_without_plural(code: str, language: str, n: int) -> None:
    remark = filled(code, n)
    text = Phrasing(language).remark(remark)
    assert not set(text) & set("{|}")
    for name, value in remark.fields.items():
        if isinstance(value, str):
            assert f"<{name}>" in text, "no field is left out"
    if language == "zh" and code not in NEUTRAL and not code.startswith(("name.", "together.")):
        assert HAN.search(text)
    if language == "en":
        assert text == str(remark)
        assert not HAN.search(text)


def test_the_languages_have_the_same_codes_and_the_same_fields() -> None:
    english, chinese = templates("en"), templates("zh")
    assert set(english) == set(chinese)
    for code, text in english.items():
        assert set(fields_of(text)) == set(fields_of(chinese[code])), code


def test_singular_and_plural_are_told_apart() -> None:
    assert "1 foreground tile was" not in Remark("run.limited", n=2, all=9)
    assert Remark("run.limited", n=1, all=1) == "Only 1 of 1 foreground tile was asked (--limit)."
    assert Remark("run.limited", n=5, all=1200) == "Only 5 of 1\u202f200 foreground tiles were asked (--limit)."


# ---------------------------------------------------------------------------------------------- the source


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Remark" and node.args:
            yield node


def assigned(tree: ast.AST, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            yield node.value


def codes_in(tree: ast.AST, first: ast.expr) -> set[str]:
    """The codes that a first argument can be: literals, either side of a choice, values of a dictionary."""
    if isinstance(first, ast.Name):
        return {code for value in assigned(tree, first.id) for code in codes_in(tree, value)}
    if isinstance(first, ast.Subscript) and isinstance(first.value, ast.Name):
        tables = [value for value in assigned(tree, first.value.id) if isinstance(value, ast.Dict)]
        return {code for table in tables for value in table.values for code in codes_in(tree, value)}
    if isinstance(first, ast.IfExp):
        return codes_in(tree, first.body) | codes_in(tree, first.orelse)
    return {first.value} if isinstance(first, ast.Constant) and isinstance(first.value, str) else set()


def emitted() -> dict[str, list[str]]:
    """Code -> where the source makes a remark of it."""
    found: dict[str, list[str]] = {}
    for package in ("wsi_chat", "aggregators", "reports", "tilers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "remarks.py":
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for call in calls(tree):
                place = f"{path.relative_to(ROOT)}:{call.lineno}"
                codes = codes_in(tree, call.args[0])
                if isinstance(call.args[0], ast.Name) and call.args[0].id == "VERBATIM":
                    continue
                assert codes, f"{place}: the code of this remark cannot be read from the source"
                for code in codes:
                    found.setdefault(code, []).append(place)
    return found


def test_every_code_of_the_source_is_in_the_catalogue_and_the_other_way_round() -> None:
    known, used = set(templates("en")), emitted()
    assert not {code: places for code, places in used.items() if code not in known}
    assert known - set(used) - {"verbatim", "together.sentences"} == set(), "words that nothing uses"


# ---------------------------------------------------------------------------------------------- the record


def test_a_remark_is_its_english_text_and_keeps_what_it_was_made_from() -> None:
    remark = Remark("run.limited", n=5, all=9)
    for again in (pickle.loads(pickle.dumps(remark)), copy.deepcopy(remark), read_remark(remark)):
        assert isinstance(again, Remark)
        assert (str(again), again.code, again.fields) == (str(remark), "run.limited", {"n": 5, "all": 9})
    with pytest.raises(KeyError):
        Remark("run.unheard_of")
    with pytest.raises(KeyError):
        Remark("run.limited", n=5)


def test_a_plain_text_is_a_remark_without_words_in_another_language() -> None:
    remark = read_remark("Anything at all.")
    assert (remark.code, Phrasing("zh").remark(remark)) == ("verbatim", "Anything at all.")


def test_text_that_was_written_down_stays_though_the_catalogue_says_it_otherwise() -> None:
    stored = {"text": "Five of nine.", "code": "run.limited", "fields": {"n": 5, "all": 9}}
    remark = read_remark(stored)
    assert remark == "Five of nine."
    assert Phrasing("en").remark(remark) == Remark("run.limited", n=5, all=9)
    assert "9" in Phrasing("zh").remark(remark)
    strange = read_remark({"text": "From tomorrow.", "code": "run.from_tomorrow", "fields": {}})
    assert Phrasing("zh").remark(strange) == "From tomorrow."


def test_several_sentences_become_one_remark() -> None:
    parts = Remark("category.counted"), Remark("run.limited", n=5, all=9)
    both = together(parts[0], "", parts[1])
    assert both == f"{parts[0]} {parts[1]}"
    assert Phrasing("zh").remark(both) == "".join(map(Phrasing("zh").remark, parts))
    assert together(parts[0]) is parts[0]


def test_a_record_holds_remarks_as_texts() -> None:
    adequacy = Adequacy(status="not_assessed", reason=Remark("adequacy.not_asked"), notes=("by hand",))
    assert json.loads(adequacy.model_dump_json())["reason"] == str(Remark("adequacy.not_asked"))
    assert (adequacy.reason.code, adequacy.notes[0].code) == ("adequacy.not_asked", "verbatim")


def test_lists_are_joined_as_a_reader_expects() -> None:
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_where_chinese_meets_latin_there_is_a_space_and_neither_part_is_changed() -> None:
    phrasing = Phrasing("zh")
    score = Remark("score.calibrated", n=90, about="", method=Remark("method.platt"), head=Remark("head.logistic"))
    assert "以 Platt 缩放校准" in phrasing.remark(score)
    other = Remark("score.calibrated", n=90, about="", method=Remark("method.isotonic"), head=Remark("head.logistic"))
    assert "以保序回归校准" in phrasing.remark(other)
    assert phrasing.fill("标本{text}。", {"text": "中A混排"}) == "标本中A混排。", "a part's own text stays"
    assert phrasing.fill("{a}，{b}", {"a": "CD", "b": "12"}) == "CD，12"
    touching = re.compile(r"[\u4e00-\u9fff][A-Za-z0-9]|[A-Za-z0-9][\u4e00-\u9fff]")
    texts = [str(text) for section in catalogue("zh").values() for text in _texts(section)]
    assert not [text for text in texts if touching.search(text)]


def _texts(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    else:
        yield value
