"""YAML and JSON of unknown origin: what is in bounds reads as plain YAML and JSON do, all else is one kind of error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from wsi_chat import bounded
from wsi_chat.errors import DocumentError

PACKAGE = Path(bounded.__file__).parent

LAUGHS = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(8)
)
MERGED_LAUGHS = "a: &a {k: 1, l: 2}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{', '.join([f'*{chr(97 + i)}'] * 10)}]}}\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x: " + "[" * 2000 + "]" * 2000, "nested more than 32"),
        ("x: " + "[" * 2000, "nested more than 32"),
        ("- " * 5000 + "a", "nested more than 32"),
        ("? " * 5000 + "a", "nested more than 32"),
        ("a: &a [*a]", "inside what it stands for"),
        (LAUGHS, "more than 50000 values"),
        (MERGED_LAUGHS, "more than 50000 values"),
        ("x: " + "9" * 5000, "number of 5000 characters"),
        ("x: 0x" + "f" * 3000, "number of 3002 characters"),
        ("x: 1" + ":1" * 400_000, "number of 800001 characters"),
        ("x: 2001-99-99", "month"),
        ("x: !!timestamp 'abc'", "cannot be read"),
        ("x: !!int ''", "cannot be read"),
        ("x: !!bool maybe", "cannot be read"),
        ("? [1, 2]\n: 3", "unhashable"),
        ("<<: 5", "merging"),
        ("x: !!python/object/apply:os.system ['true']", "constructor"),
        ("a: 1\nb: 2\na: 3", "line 3, gives the key 'a' twice"),
        ("--- a\n--- b", "another document"),
        ("a: [", "line 2, is not YAML"),
        ("\x00", "control characters"),
    ],
)
def test_yaml_out_of_bounds_is_a_named_error_at_once(text: str, reason: str) -> None:
    began = time.monotonic()
    with pytest.raises(DocumentError, match=reason) as caught:
        bounded.parse_yaml(text, "own.yaml")
    assert str(caught.value).startswith("own.yaml")
    assert caught.value.hint
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*/*.yaml")), ids=lambda file: file.stem)
def test_every_yaml_of_the_package_reads_as_plain_yaml_does(file: Path) -> None:
    assert bounded.load_yaml(file) == yaml.safe_load(file.read_text(encoding="utf-8"))


def test_yaml_within_bounds_reads_as_plain_yaml_does() -> None:
    text = "base: &base {a: 1, b: 0.5}\nown: {<<: *base, b: 2}\ntwice: [*base, *base]\nsmall: 0x1f\n"
    assert bounded.parse_yaml(text, "x") == {
        "base": {"a": 1, "b": 0.5},
        "own": {"a": 1, "b": 2},
        "twice": [{"a": 1, "b": 0.5}] * 2,
        "small": 31,
    }
    assert bounded.parse_yaml("", "x") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 64"),
        ("[" * 65 + "]" * 65, "nested more than 64"),
        ('{"a":' * 300 + "1" + "}" * 300, "nested more than 64"),
        ("1" * 5000, "number of 5000 digits"),
        ("-" + "1" * 3000, "number of 3001 digits"),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_out_of_bounds_is_a_named_error(text: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason) as caught:
        bounded.parse_json(text, "data.json")
    assert str(caught.value).startswith("data.json")


WITHOUT_LIBYAML = """
import json, sys, yaml
del yaml.CSafeLoader
from pathlib import Path
from wsi_chat.bounded import load_yaml, parse_yaml
from wsi_chat.errors import DocumentError
print(json.dumps(load_yaml(Path(sys.argv[1]))))
for text in ("a: " + "[" * 40 + "]" * 40, "a: 1\\na: 2", "a: &a [*a]"):
    try:
        parse_yaml(text, "x.yaml")
    except DocumentError as error:
        print(error.reason)
"""


def test_yaml_is_read_within_the_same_bounds_where_pyyaml_was_built_without_libyaml() -> None:
    file = PACKAGE / "terminology/cervix-tbs2014.yaml"
    command = [sys.executable, "-c", WITHOUT_LIBYAML, str(file)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert json.loads(said[0]) == json.loads(json.dumps(bounded.load_yaml(file)))
    deep, twice, within = said[1:]
    assert "nested more than 32 levels" in deep
    assert "the key 'a' twice" in twice
    assert "alias *a inside" in within


def test_json_within_bounds_reads_as_plain_json_does() -> None:
    flat = [[n] for n in range(1000)]  # many brackets, no depth
    deep = "[" * 64 + "]" * 64
    for text in (json.dumps(flat), deep, '{"n": 1234567890123456789, "f": 0.' + "1" * 70 + "}"):
        assert bounded.parse_json(text, "x") == json.loads(text)


def test_a_line_that_is_not_json_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "LINE_BYTES", 40)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n[1]\n' + b'"' + b"x" * 60 + b'"\n{"a": "\xff"}\n{"b": 2}')
    found = dict(bounded.iter_json_lines(file))
    assert {line: value for line, value in found.items() if not isinstance(value, DocumentError)} == {
        1: {"a": 1},
        4: [1],
        7: {"b": 2},
    }
    errors = {line: str(value) for line, value in found.items() if isinstance(value, DocumentError)}
    assert set(errors) == {3, 5, 6}
    assert "line 3, is not JSON" in errors[3]
    assert "longer than" in errors[5]
    assert "UTF-8" in errors[6]


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '{"a": 1}\n{"a": 2}\n', '\n\n [\n{"a": 1},\n{"a": 2}\n]'])
def test_records_come_from_an_array_and_from_lines(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    assert [value for _, value in bounded.iter_json_records(file)] == [{"a": 1}, {"a": 2}]
    file.write_text('{\n"a": 1\n}\n')
    assert list(bounded.iter_json_records(file)) == [(1, {"a": 1})]


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(DocumentError, match=r"not a regular file|directory"):
            bounded.load_json(path)
        with pytest.raises(DocumentError):
            list(bounded.iter_json_lines(path))
    large = tmp_path / "large.yaml"
    large.write_text("a" * 200)
    with pytest.raises(DocumentError, match="larger than 100 bytes"):
        bounded.load_yaml(large, limit=100)
    with pytest.raises(DocumentError) as caught:
        bounded.load_yaml(tmp_path / "none.yaml")
    assert caught.value.missing
    assert caught.value.exit_code == 2
