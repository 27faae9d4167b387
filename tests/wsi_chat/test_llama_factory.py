"""Data sets in LLaMA-Factory's layouts: infer, dataset check and train read the same rows and find their pictures."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from wsi_chat import cli
from wsi_chat.datasets.check import check_file
from wsi_chat.datasets.info import find_data
from wsi_chat.datasets.rows import BadRow, Row, read_rows
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import SettingError
from wsi_chat.inference.llama_factory import dialect_of_template, sampling_of, with_max_pixels
from wsi_chat.inference.run import infer
from wsi_chat.schema import Sampling
from wsi_chat.training.data import find_dataset, read_conversations

TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}, "tags": TAGS}
ASK, ANSWER = "<image>Locate all hsil.", "No hsil is found."


def messages(image: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]
    return {"messages": turns, "images": [image]}


def from_value(image: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": ANSWER}], "image": image}


def alpaca(image: str) -> dict[str, Any]:
    return {"instruction": "<image>Locate", "input": "all hsil.", "output": ANSWER, "images": [image]}


LAYOUTS = {
    "sub_json": ("ann/train.json", messages, SHAREGPT),
    "sub_jsonl": ("ann/train.jsonl", messages, SHAREGPT),
    "top": ("top.jsonl", messages, SHAREGPT),
    "openai": ("top.json", messages, {**SHAREGPT, "formatting": "openai"}),
    "llava": ("llava.json", from_value, {"formatting": "sharegpt", "columns": {"messages": "conversations"}}),
    "bare": ("bare.jsonl", from_value, {}),
    "alpaca": ("alpaca.json", alpaca, {"columns": {"prompt": "instruction", "query": "input", "response": "output"}}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every layout, each with two rows about pictures that lie in pics/ of the data set folder."""
    data = tmp_path / "data"
    (data / "pics").mkdir(parents=True)
    (data / "ann").mkdir()
    for n, colour in enumerate(("pink", "white")):
        Image.new("RGB", (64, 64), colour).save(data / "pics" / f"{n}.png")
    info: dict[str, Any] = {"hub": {"hf_hub_url": "someone/some_set", "formatting": "sharegpt"}}
    for name, (file, row, entry) in LAYOUTS.items():
        rows = [row(f"pics/{n}.png") for n in range(2)]
        text = json.dumps(rows) if file.endswith(".json") else "".join(json.dumps(one) + "\n" for one in rows)
        (data / file).write_text(text)
        info[name] = {"file_name": file, **entry}
    info["folder"] = {"file_name": "ann", **SHAREGPT}
    (data / "dataset_info.json").write_text(json.dumps(info))
    return data


@pytest.mark.parametrize("name", LAYOUTS)
def test_by_name_and_by_path_every_layout_reads_the_same(folder: Path, name: str) -> None:
    file = folder / LAYOUTS[name][0]
    for dataset, where in ((name, folder), (str(file), None), (str(file), folder)):
        rows = list(read_rows(find_data(dataset, where)))
        assert [type(row) for row in rows] == [Row, Row]
        for n, row in enumerate(rows):
            assert isinstance(row, Row)
            assert row.label(0) == ANSWER
            assert row.turns[0].text.replace("\n", " ") == ASK
            assert row.picture(row.images[0]).samefile(folder / "pics" / f"{n}.png")
    for checked in (check_file(file), check_file(name, folder=folder)):
        assert (checked.lines, checked.problems) == (2, ())
    for source in (find_dataset(name, folder), find_dataset(str(file))):
        talks, left_out = read_conversations(source, get_dialect("embedded"))
        assert (len(talks), left_out) == (2, {})


def test_infer_finds_pictures_of_a_file_in_a_subfolder(folder: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda query: ANSWER)
    done = infer(find_data("folder,top", folder), tmp_path / "o.jsonl", engine=engine, dialect=get_dialect("qwen2-vl"))
    assert (done.rows, done.failed) == (6, [])
    written = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["line"] for row in written] == [1, 2, 3, 4, 5, 6]
    assert {row["predict"] for row in written} == {ANSWER}


def test_data_sets_of_a_hub_are_passed_over_aloud(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(list(read_rows(find_data("top, hub", folder)))) == 2
    assert "hub are elsewhere (hf_hub_url: someone/some_set)" in caplog.text
    with pytest.raises(SettingError, match="hub are elsewhere"):
        find_data("hub", folder)


@pytest.mark.parametrize("image", ["../outside.png", "pics/../../outside.png", "/etc/passwd", "{outside}"])
def test_pictures_outside_the_data_set_are_refused(folder: Path, tmp_path: Path, image: str) -> None:
    outside = tmp_path / "outside.png"
    Image.new("RGB", (64, 64)).save(outside)
    (folder / "one.jsonl").write_text(json.dumps(messages(image.format(outside=outside))) + "\n")
    done = infer(
        find_data(str(folder / "one.jsonl")),
        tmp_path / "o.jsonl",
        engine=ScriptedEngine(lambda query: ANSWER),
        dialect=get_dialect("qwen2-vl"),
    )
    assert [line for line, reason in done.failed if "outside the data set" in reason] == [1]
    assert check_file(folder / "one.jsonl").counts == {"image_outside": 1}
    if image == "{outside}":
        (row,) = read_rows(find_data(str(folder / "one.jsonl"), media=tmp_path))
        assert isinstance(row, Row)
        assert row.picture(row.images[0]).is_file()


@pytest.mark.parametrize("image", ["pipe", "zero"])
def test_pictures_that_are_no_files_are_refused_at_once(folder: Path, tmp_path: Path, image: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "one.jsonl").write_text(json.dumps(messages(image)) + "\n")
    done = infer(
        find_data(str(folder / "one.jsonl")),
        tmp_path / "o.jsonl",
        engine=ScriptedEngine(lambda query: ANSWER),
        dialect=get_dialect("qwen2-vl"),
    )
    assert [line for line, _ in done.failed] == [1]
    assert check_file(folder / "one.jsonl").counts == {"image_unreadable": 1}


def test_videos_and_strange_turns_are_named(folder: Path) -> None:
    rows = [
        {**messages("pics/0.png"), "videos": ["a.mp4"]},
        {"instruction": "x", "input": 3, "output": "y"},
        {"instruction": "x", "output": "y", "history": [["only one"]]},
    ]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(read_rows(find_data(str(folder / "odd.jsonl"))))
    assert [row.reason for row in found if isinstance(row, BadRow)] == [
        "holds videos, which are not read here",
        'has no text "instruction" with its "output"',
        '"history" is not a list of pairs of texts',
    ]


def test_the_options_of_the_script(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "o.jsonl"
    command = (
        f"infer --dataset sub_json,hub --dataset_dir data --template qwen2_vl --save_name {out} --max_samples 1 "
        "--temperature 0.95 --top_p 0.7 --top_k 50 --max_new_tokens 8 --cutoff_len 10 --seed 3 "
        "--image_max_pixels 16384"
    )
    done = CliRunner().invoke(cli.app, command.split())
    assert done.exit_code == 0, done.output
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    width, height = row["sent_sizes"][0]
    assert width * height <= 16384
    assert row["logprob"] <= 0
    assert "1 prompt longer than --cutoff-len" in done.stderr
    assert "no longer lists" not in done.stderr  # --seed is an option of the script, and so of infer
    again = tmp_path / "again.jsonl"
    CliRunner().invoke(cli.app, command.replace(str(out), str(again)).split())
    assert json.loads(again.read_text())["predict"] == row["predict"]
    assert "--seed" in CliRunner().invoke(cli.app, ["infer", "--help"]).stdout
    checked = CliRunner().invoke(cli.app, ["dataset", "check", "sub_json", "--dataset_dir", "data"])
    assert (checked.exit_code, checked.stdout) == (0, "2 lines: nothing wrong\n")


def test_sampling_reaches_the_engine_and_the_key(folder: Path, tmp_path: Path) -> None:
    keys = []
    for sampling in (None, Sampling(0.95, 0.7, 50)):
        engine = ScriptedEngine(lambda query: ANSWER)
        out = tmp_path / f"{sampling is None}.jsonl"
        infer(find_data("top", folder), out, engine=engine, dialect=get_dialect("qwen2-vl"), sampling=sampling)
        assert [query.sampling for query in engine.asked] == [sampling, sampling]
        keys.append(json.loads(out.read_text().splitlines()[0])["key"])
    assert keys[0] != keys[1]


def test_values_of_sampling() -> None:
    assert sampling_of(None, None, None) is None
    assert sampling_of(0, 0.7, 50) is None
    assert sampling_of(0.95, 0.7, 50) == Sampling(0.95, 0.7, 50)
    assert sampling_of(1.0, None, -1) == Sampling(1.0, 1.0, 0)
    for bad in ((-0.1, None, None), (float("nan"), None, None), (1, 0, None), (1, 1.5, None), (1, None, -2)):
        with pytest.raises(SettingError):
            sampling_of(*bad)


def test_templates_and_sizes() -> None:
    assert dialect_of_template("qwen2_vl") == "qwen2-vl"
    with pytest.raises(SettingError, match="'llama3'"):
        dialect_of_template("llama3")
    small = with_max_pixels(get_dialect("qwen2-vl"), 100_000)
    width, height = small.frame((2000, 1000)).sent
    assert 0.7 * 100_000 < width * height <= 100_000
    assert with_max_pixels(get_dialect("cytochat"), 300 * 300).frame((512, 512)).sent <= (300, 300)
    assert small.prompts_sha256 != get_dialect("qwen2-vl").prompts_sha256
    with pytest.raises(SettingError, match="at least 784"):
        with_max_pixels(get_dialect("qwen2-vl"), 100)


def test_names_that_no_file_system_takes_are_no_files(folder: Path) -> None:
    long = "x" * 5000
    (folder / "long.jsonl").write_text(json.dumps(messages(long)) + "\n")
    assert check_file(folder / "long.jsonl").counts == {"image_missing": 1}
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "long": {"file_name": long, **SHAREGPT}}))
    with pytest.raises(SettingError, match="not a file of rows"):
        find_data("long", folder)
    with pytest.raises(SettingError, match="is not a file"):
        find_data(f"{long}.jsonl", folder)
    assert check_file(folder / "top.jsonl").counts == {"info": 1}
