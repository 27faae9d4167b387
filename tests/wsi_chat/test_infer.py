"""Batch inference: verbatim prompts, moved coordinates, bad rows, kills and resuming, with a scripted engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wsi_chat.datasets.info import DataFile, DataSet, find_data
from wsi_chat.datasets.rows import BadRow, read_rows
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import Fault, ScriptedEngine
from wsi_chat.errors import EngineDied, OutputError, SettingError
from wsi_chat.inference.output import AnswerFile
from wsi_chat.inference.run import Inferred, infer
from wsi_chat.schema import Query

TRUTH = "hsil 1 is located at <region>10 20 30 40</region>."


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def row(question: str, answer: str, *more: str, images: list[str] | None = None) -> dict[str, Any]:
    turns = [turn("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate((question, answer, *more))]
    return {"messages": turns, "images": ["a.png"] if images is None else images}


def data(folder: Path, rows: list[Any], *, size: tuple[int, int] = (256, 256)) -> DataSet:
    for name, colour in (("a.png", "white"), ("b.png", "pink")):
        Image.new("RGB", size, colour).save(folder / name)
    lines = [item if isinstance(item, str) else json.dumps(item) for item in rows]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return DataSet("rows", (DataFile(path),), folder)


def echo(query: Query) -> str:
    return f"answer to {query.turns[-1].text}"


def run(source: DataSet, out: Path, engine: ScriptedEngine | None = None, **more: Any) -> Inferred:
    return infer(source, out, engine=engine or ScriptedEngine(echo), dialect=get_dialect("embedded"), **more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plain(n: int) -> list[dict[str, Any]]:
    return [row(f"<image>Question {number}?", f"True {number}.") for number in range(n)]


# -------------------------------------------------------------------------------------------- what is asked


def test_columns_of_the_seed_systems_and_ours(tmp_path: Path) -> None:
    run(
        data(tmp_path, [{**row("<image>Locate all hsil.", TRUTH), "id": "x7", "main_tag": "grounding"}]),
        tmp_path / "o.jsonl",
    )
    (found,) = lines(tmp_path / "o.jsonl")
    assert list(found)[:3] == ["prompt", "predict", "label"]
    assert found["prompt"] == "<image>Locate all hsil."
    assert found["predict"] == "answer to <image>Locate all hsil."
    assert found["label"] == TRUTH
    assert (found["id"], found["images"], found["finish_reason"], found["task"]) == ("x7", ["a.png"], "stop", "ground")
    assert found["main_tag"] == "grounding"
    assert {"logprob", "seconds", "status", "error"} <= set(found)


def test_every_assistant_turn_is_predicted_with_the_true_turns_before_it(tmp_path: Path) -> None:
    engine = ScriptedEngine(echo)
    run(data(tmp_path, [row("<image>One?", "Truth one.", "Two?", "Truth two.")]), tmp_path / "o.jsonl", engine)
    first, second = engine.asked
    assert [t.role for t in first.turns] == ["system", "user"]
    assert [t.text for t in second.turns[1:]] == ["<image>One?", "Truth one.", "Two?"]
    assert [(r["turn"], r["turns"], r["label"]) for r in lines(tmp_path / "o.jsonl")] == [
        (1, 2, "Truth one."),
        (2, 2, "Truth two."),
    ]


def test_several_images_are_shown_as_far_as_the_turn_reaches(tmp_path: Path) -> None:
    engine = ScriptedEngine(echo)
    rows = [row("<image>One?", "1", "<image>And this?", "2", images=["a.png", "b.png"])]
    run(data(tmp_path, rows), tmp_path / "o.jsonl", engine)
    assert [len(query.images) for query in engine.asked] == [1, 2]
    assert [r["images"] for r in lines(tmp_path / "o.jsonl")] == [["a.png"], ["a.png", "b.png"]]


def test_coordinates_move_with_the_picture_and_back(tmp_path: Path) -> None:
    # 1024 x 512 is sent as 256 x 128: a quarter
    question = "Give a brief description of region.<region>100 200 300 400</region> Keep 7 and 12."
    engine = ScriptedEngine(
        lambda _: "hsil 1 is located at <region>25 50 75 100</region>. hsil 2 is located at <region>1 2"
    )
    source = data(tmp_path, [row(f"<image>{question}", TRUTH)], size=(1024, 512))
    run(source, tmp_path / "o.jsonl", engine)
    assert engine.asked[0].images[0].size == (256, 128)
    assert engine.asked[0].turns[-1].text == (
        "<image>Give a brief description of region.<region>25 50 75 100</region> Keep 7 and 12."
    )
    (found,) = lines(tmp_path / "o.jsonl")
    assert found["prompt"] == f"<image>{question}"
    assert found["predict"].startswith("hsil 1 is located at <region>100 200 300 400</region>. hsil 2")
    assert found["predict"].endswith("<region>4 8")
    assert found["raw_predict"].startswith("hsil 1 is located at <region>25 50 75 100</region>.")
    assert found["label"] == TRUTH


def test_a_picture_of_the_right_size_leaves_every_byte(tmp_path: Path) -> None:
    odd = "<image>What is in <region>1.50  2 3 4 </region>, [5, 6, 7, 8]?"
    engine = ScriptedEngine(echo)
    run(data(tmp_path, [row(odd, "x")]), tmp_path / "o.jsonl", engine)
    assert engine.asked[0].turns[-1].text == odd
    assert "raw_predict" not in lines(tmp_path / "o.jsonl")[0]


def test_normalised_coordinates_never_move(tmp_path: Path) -> None:
    engine = ScriptedEngine(echo)
    asked = "<image>What is in [100, 200, 300, 400]?"
    source = data(tmp_path, [row(asked, "x")], size=(900, 500))
    infer(source, tmp_path / "o.jsonl", engine=engine, dialect=get_dialect("qwen3-vl"))
    assert engine.asked[0].turns[-1].text == asked


# -------------------------------------------------------------------------------------------- bad rows


def test_bad_rows_are_recorded_by_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(b"no picture")
    rows = [
        row("<image>Good?", "yes"),
        row("<image><image>Marks?", "two"),
        "{broken",
        row("<image>Missing?", "gone", "More?", "x", images=["none.png"]),
        row("<image>Broken?", "x", images=["c.png"]),
        {"messages": [turn("assistant", "I begin")], "images": []},
        row("<image>Last?", "end"),
    ]
    done = run(data(tmp_path, rows), tmp_path / "o.jsonl")
    found = lines(tmp_path / "o.jsonl")
    assert [(r["line"], r["status"]) for r in found] == [
        (1, "ok"), (2, "failed"), (3, "failed"), (4, "failed"), (4, "failed"), (5, "failed"), (6, "failed"), (7, "ok"),
    ]  # fmt: skip
    assert [line for line, _ in done.failed] == [2, 3, 4, 4, 5, 6]
    assert "2 <image> marks and 1 images" in found[1]["error"]
    assert "none.png" in found[3]["error"]
    assert found[3]["label"] == "gone"
    assert all(r["predict"] == "" for r in found if r["status"] == "failed")


def test_failed_answers_are_asked_again_and_truncated_ones_are_marked(tmp_path: Path) -> None:
    source, out = data(tmp_path, plain(3)), tmp_path / "o.jsonl"
    first = run(source, out, ScriptedEngine(echo, faults=[Fault(0, "fail"), Fault(1, "truncate", keep=4)]))
    assert (first.truncated, [line for line, _ in first.failed]) == (1, [1])
    again = ScriptedEngine(echo)
    second = run(source, out, again)
    assert [query.turns[-1].text for query in again.asked] == ["<image>Question 0?"]
    assert (second.new, second.reused, second.truncated, second.failed) == (1, 2, 1, [])
    assert [(r["line"], r["finish_reason"]) for r in lines(out)] == [(1, "stop"), (2, "length"), (3, "stop")]


def test_other_forms_of_the_data(tmp_path: Path) -> None:
    data(tmp_path, [])
    old = {"conversations": [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}], "image": "a.png"}
    (tmp_path / "old.json").write_text(json.dumps([old, {"messages": 3}]), encoding="utf-8")
    good, bad = read_rows(find_data(str(tmp_path / "old.json")))
    assert not isinstance(good, BadRow)
    assert (good.turns[0].text, good.label(0), good.images) == ("<image>Q", "A", ("a.png",))
    assert isinstance(bad, BadRow)


def test_names_come_from_dataset_info(tmp_path: Path) -> None:
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "U", "assistant_tag": "M"}
    entry = {
        "file_name": "d.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "pics"},
        "tags": tags,
    }
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"mine": entry, "odd": {"file_name": "d.jsonl", "formatting": "other"}}), encoding="utf-8"
    )
    talk = [{"who": "U", "says": "<image>Q"}, {"who": "M", "says": "A"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"talk": talk, "pics": ["a.png"]}) + "\n", encoding="utf-8")
    (found,) = read_rows(find_data("mine", tmp_path))
    assert not isinstance(found, BadRow)
    assert found.label(0) == "A"
    with pytest.raises(SettingError, match="names no data set 'other'"):
        find_data("other", tmp_path)
    with pytest.raises(SettingError, match="formatting 'other'"):
        find_data("odd", tmp_path)


# -------------------------------------------------------------------------------------------- kills and resuming

KILLED = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from wsi_chat.dialects import get_dialect
    from wsi_chat.engines import Fault, ScriptedEngine
    from wsi_chat.datasets.info import find_data
    from wsi_chat.inference.run import infer
    kill = Fault(int(sys.argv[3]), "kill")
    engine = ScriptedEngine(lambda q: f"answer to {q.turns[-1].text}", batch=3, faults=[kill])
    infer(find_data(sys.argv[1]), Path(sys.argv[2]), engine=engine, dialect=get_dialect("embedded"))
    """
)


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(path)]


def test_a_killed_run_resumes_to_the_same_file_and_asks_nothing_twice(tmp_path: Path) -> None:
    source, out = data(tmp_path, plain(12)), tmp_path / "o.jsonl"
    run(source, tmp_path / "whole.jsonl", ScriptedEngine(echo, batch=3))
    command = [sys.executable, "-c", KILLED, str(source.path), str(out), "7"]
    assert subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == -9
    kept = lines(out)
    # batches of three, the last asked first: two whole batches were answered before the kill
    assert [r["line"] for r in kept] == [3, 2, 1, 6, 5, 4]
    engine = ScriptedEngine(echo, batch=3)
    done = run(source, out, engine)
    assert (done.reused, done.new) == (6, 6)
    assert [query.turns[-1].text for query in engine.asked] == [f"<image>Question {n}?" for n in range(6, 12)]
    assert timeless(out) == timeless(tmp_path / "whole.jsonl")
    idle = ScriptedEngine(echo)
    before = out.read_bytes()
    run(source, out, idle)
    assert idle.asked == []
    assert out.read_bytes() == before


def test_a_cut_off_last_line_is_mended_wherever_it_was_cut(tmp_path: Path) -> None:
    source, out = data(tmp_path, plain(3)), tmp_path / "o.jsonl"
    run(source, out)
    whole = out.read_bytes()
    expected = timeless(out)
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (start + 1, start + 25, len(whole) - 40, len(whole) - 1, 5):
        out.write_bytes(whole[:cut])
        engine = ScriptedEngine(echo)
        run(source, out, engine)
        assert timeless(out) == expected
        assert len(engine.asked) == (3 if cut == 5 else 1), cut


def test_a_dead_engine_leaves_its_answers(tmp_path: Path) -> None:
    from wsi_chat.engines import SupervisedEngine

    source, out = data(tmp_path, plain(5)), tmp_path / "o.jsonl"
    engines = iter([ScriptedEngine(echo, faults=[Fault(2, "die")]), ScriptedEngine(echo, faults=[Fault(1, "die")])])
    with pytest.raises(EngineDied):
        infer(source, out, engine=SupervisedEngine(lambda: next(engines)), dialect=get_dialect("embedded"))
    assert [r["line"] for r in lines(out)] == [1, 2, 3]
    last = ScriptedEngine(echo)
    assert run(source, out, last).reused == 3
    assert len(last.asked) == 2


def test_answers_of_another_run_are_not_taken_nor_lost(tmp_path: Path) -> None:
    source, out = data(tmp_path, plain(2)), tmp_path / "o.jsonl"
    run(source, out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="another run"):
        run(source, out, ScriptedEngine(echo, revision="1"))
    assert out.read_bytes() == before
    assert run(source, out, ScriptedEngine(echo, revision="1"), overwrite=True).new == 2


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    source, out = data(tmp_path, plain(1)), tmp_path / "o.jsonl"
    for text in (
        '{"prompt": "p", "predict": "q", "label": "l"}\n',
        '{"prompt": "p", "predict": "q", "label": "l"}',
        "notes",
    ):
        out.write_text(text, encoding="utf-8")
        with pytest.raises(OutputError, match="not an answer that wsi-chat infer wrote"):
            run(source, out)
        assert out.read_text(encoding="utf-8") == text


def test_a_changed_row_is_asked_anew(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    run(data(tmp_path, plain(3)), out)
    rows = plain(3)
    rows[1] = row("<image>Changed?", "new")
    engine = ScriptedEngine(echo)
    run(data(tmp_path, rows), out, engine)
    assert [query.turns[-1].text for query in engine.asked] == ["<image>Changed?"]
    assert [r["label"] for r in lines(out)] == ["True 0.", "new", "True 2."]


def test_two_writers_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    with AnswerFile(out), pytest.raises(OutputError, match="another process"):
        AnswerFile(out)


def test_an_engine_that_swallows_a_question_is_noticed(tmp_path: Path) -> None:
    class Forgetful(ScriptedEngine):
        def answer(self, queries: Any) -> Any:
            yield from (answer for n, answer in enumerate(super().answer(queries)) if n != 1)

    run(data(tmp_path, plain(3)), tmp_path / "o.jsonl", Forgetful(echo))
    assert [r["status"] for r in lines(tmp_path / "o.jsonl")] == ["ok", "failed", "ok"]


def test_only_the_first_rows_on_request(tmp_path: Path) -> None:
    assert run(data(tmp_path, plain(5)), tmp_path / "o.jsonl", max_samples=2).rows == 2
    assert re.fullmatch(r"[0-9a-f]{64}", lines(tmp_path / "o.jsonl")[0]["key"])
