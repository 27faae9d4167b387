"""The checker: each fault is named with its line, sound files pass, and nothing that can be in a file stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from wsi_chat import cli
from wsi_chat.datasets.check import check_file
from wsi_chat.dialects import Dialect, DialectSpec, get_dialect

ASK = "following options [{}]. Just answer the option."


def line(question: str = "<image>Locate all hsil.", answer: str = "No hsil is found.", **more: Any) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, "images": ["a.png"], **more})


def talk(*turns: tuple[str, str]) -> str:
    return line(messages=[{"role": role, "content": text} for role, text in turns])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    return tmp_path


CASES = [
    ("{", "json"),
    ("", "json"),
    ("[" * 100_000, "json"),
    ("[]", "shape"),
    ('{"messages": []}', "shape"),
    ('{"messages": [7], "images": []}', "shape"),
    (line(images="a.png"), "shape"),
    (line(images=["b.png"]), "image_missing"),
    (line(images=["a\u0000.png"]), "image_missing|image_unreadable"),
    (line(images=["broken.png"]), "image_unreadable"),
    (line("Locate all hsil."), "marks"),
    (line("<image><image>Locate all hsil."), "marks"),
    (talk(("user", "<image>x"), ("user", "y")), "order"),
    (talk(("assistant", "<image>x"), ("user", "y")), "order"),
    (talk(("user", "<image>x"), ("assistant", "y"), ("user", "z")), "order"),
    (talk(("human", "<image>x"), ("assistant", "y")), "role"),
    (line(answer=" "), "empty"),
    (line(answer="hsil 1 is located at <region>1 2 101 20</region>."), "box_outside"),
    (line(answer="hsil 1 is located at <region>-1 2 10 20</region>."), "box_outside"),
    (line("<image>What?<region>1 2 10 51</region>"), "box_outside"),
    (line(answer="hsil 1 is located at <region>30 2 10 20</region>."), "box_reversed"),
    (line(answer="hsil 1 is located at <region>1 2 10</region>."), "box_unreadable"),
    (line(answer='[{"bbox_2d": [9, 2, 3, 20], "label": "hsil"}]'), "box_reversed"),
    (line("<image>" + ASK.format("A.yes, B.Yes"), "A.yes."), "duplicate_option"),
    (line("<image>" + ASK.format("A.yes, A.no"), "A.yes."), "duplicate_option"),
    (line("<image>" + ASK.format("A.yes, B.no"), "C.maybe."), "option"),
    (line("<image>" + ASK.format("A.yes, B.no"), "A.no."), "option"),
]


@pytest.mark.parametrize(("text", "kind"), CASES, ids=[f"{i}-{case[1]}" for i, case in enumerate(CASES)])
def test_each_fault_is_named_with_its_line(folder: Path, text: str, kind: str) -> None:
    (folder / "d.jsonl").write_text(f"{line()}\n{text}\n{line('<image>Other?')}\n", encoding="utf-8")
    checked = check_file(folder / "d.jsonl")
    assert checked.lines == 3
    assert [p.line for p in checked.problems] == [2]
    assert checked.problems[0].kind in kind.split("|")


@pytest.mark.parametrize(
    "text",
    [
        line(
            answer="hsil 1 is located at <region>0 0 100.0 50</region>. hsil 2 is located at <region>1 1 2 2</region>."
        ),
        line(answer="The lesion is located at the transformation zone."),
        line("<image>" + ASK.format("A.yes, B.no, C.cannot be said"), "C.cannot be said."),
        line("<image>" + ASK.format("A.yes, B.no"), "B"),
        talk(("system", "s"), ("user", "<image>x"), ("assistant", "y"), ("user", "z"), ("assistant", "w")),
    ],
)
def test_sound_lines_pass(folder: Path, text: str) -> None:
    (folder / "d.jsonl").write_text(text + "\n", encoding="utf-8")
    assert check_file(folder / "d.jsonl").problems == ()


def test_duplicate_lines_name_the_first(folder: Path) -> None:
    again = json.dumps(dict(reversed(json.loads(line()).items())))  # the same but for the order of keys
    (folder / "d.jsonl").write_text(f"{line()}\n{line('<image>b')}\n{again}\n", encoding="utf-8")
    (found,) = check_file(folder / "d.jsonl").problems
    assert (found.line, found.kind, found.message) == (3, "duplicate_line", "says the same as line 1")


def test_json_boxes_are_judged_in_their_dialects_range(folder: Path) -> None:
    data = json.loads(get_dialect("cytochat").spec.model_dump_json())
    data |= {"name": "j", "coordinates": "norm1000", "boxes": "json"}
    (folder / "d.jsonl").write_text(line(answer='[{"bbox_2d": [1, 2, 900, 1001], "label": "hsil"}]') + "\n")
    assert check_file(folder / "d.jsonl").problems == ()  # whose coordinates these are is not known
    assert check_file(folder / "d.jsonl", dialect=Dialect(DialectSpec.model_validate(data))).counts == {
        "box_outside": 1
    }
    (folder / "build.json").write_text(json.dumps({"dialect": data}))
    assert check_file(folder / "d.jsonl").counts == {"box_outside": 1}


def test_leaks_between_the_files_of_one_data_set(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    Image.new("RGB", (9, 9)).save(folder / "other.png")
    (folder / "train.jsonl").write_text(f"{line(images=['other.png'])}\n{line('<image>b')}\n")
    (folder / "val.jsonl").write_text(line(images=["copy.png"]) + "\n")
    info = {"t": {"file_name": "train.jsonl"}, "v": {"file_name": "val.jsonl"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (found,) = check_file(folder / "train.jsonl").problems
    assert (found.line, found.kind) == (2, "split_leak")
    assert found.message == "image a.png is in val.jsonl too"
    (folder / "val.jsonl").write_text(line(images=["broken.png"]) + "\n")
    assert check_file(folder / "train.jsonl").problems == ()
    for name in ("train", "val"):
        (folder / f"{name}.index.csv").write_text("line,kind,image,group,source\n1,ground,x,p7,s\n")
    (found,) = check_file(folder / "train.jsonl").problems
    assert found.message == "patient or slide p7 is in val.jsonl too"
    (folder / "dataset_info.json").write_text("[]")
    assert check_file(folder / "train.jsonl").counts == {"info": 1}


@given(st.lists(st.binary(max_size=60), max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_checked(tmp_path: Path, raws: list[bytes]) -> None:
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(raws))
    assert check_file(tmp_path / "d.jsonl").problems


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=12) | st.just("<image><region>1 2"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["messages", "images", "role", "content", "x"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_checked(tmp_path: Path, value: Any) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": value, "images": value}) + "\n")
    assert check_file(tmp_path / "d.jsonl").lines == 1


def test_exit_codes_and_json(folder: Path) -> None:
    run = CliRunner()
    (folder / "d.jsonl").write_text(line() + "\n")
    clean = run.invoke(cli.app, ["dataset", "check", str(folder / "d.jsonl")])
    assert (clean.exit_code, clean.stdout) == (0, "1 line: nothing wrong\n")
    (folder / "d.jsonl").write_text(line(images=["b.png"]) + "\n{\n")
    dirty = run.invoke(cli.app, ["dataset", "check", str(folder / "d.jsonl"), "--json"])
    assert dirty.exit_code == 1
    assert json.loads(dirty.stdout)["counts"] == {"image_missing": 1, "json": 1}
    missing = run.invoke(cli.app, ["dataset", "check", str(folder / "no.jsonl")])
    assert getattr(missing.exception, "exit_code", None) == 2
    assert run.invoke(cli.app, ["dataset", "check"]).exit_code == 2


def test_a_data_set_built_by_version_0_1_is_still_read(folder: Path) -> None:
    data = json.loads(get_dialect("qwen2-vl").spec.model_dump_json())
    (folder / "build.json").write_text(json.dumps({"dialect": {**data, "choice": "letter"}}))
    (folder / "d.jsonl").write_text(line(answer="<|box_start|>(1,2),(900,1001)<|box_end|>") + "\n")
    assert check_file(folder / "d.jsonl").counts == {"box_outside": 1}  # of 0 to 1000, as its dialect says
