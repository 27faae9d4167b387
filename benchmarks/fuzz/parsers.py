"""The parsers that read what a stranger, or a model, wrote: targets for fuzzing.

    python -m benchmarks.fuzz.parsers --n 5000 --seed 1           random damage of each target's samples
    python -m benchmarks.fuzz.guided boxes -runs=100000 CORPUS    the same targets, guided by coverage (atheris)
    python -m benchmarks.fuzz.parsers boxes --corpus CORPUS       the files of a folder, or a file

A target takes bytes and raises nothing: a WsiChatError with a way out is what damaged input should end in, and what
comes back has to hold what its own docstring promises.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fuzz.damage import damaged_bytes
from benchmarks.fuzz.samples import SAMPLES
from tilers.ome import parse_ome_xml
from tilers.tiff_header import has_gaps, read_tiff_header
from wsi_chat import tasks
from wsi_chat.analysis.ancillary import read_ancillary
from wsi_chat.analysis.manifest import read_manifest
from wsi_chat.asking.intent import guess
from wsi_chat.bounded import JSON_DEPTH, YAML_DEPTH, parse_json, parse_yaml
from wsi_chat.datasets.annotated import Renaming
from wsi_chat.datasets.coco import read_coco
from wsi_chat.datasets.info import read_info
from wsi_chat.datasets.qupath import read_geojson
from wsi_chat.datasets.tables import read_table
from wsi_chat.datasets.voc import read_voc_file
from wsi_chat.dialects import Dialect, Frame, dialects, get_dialect, load_dialect
from wsi_chat.engines.chat_requests import Pieces, read_reply
from wsi_chat.errors import AnswerError, SlideUnsupported, WsiChatError
from wsi_chat.evaluation.predictions import read_predictions
from wsi_chat.schema import Answer, Query
from wsi_chat.settings import resolve
from wsi_chat.terminology import load_system
from wsi_chat.terminology.loading import check_file

OPTIONS = ("a cluster of squamous cells", "no abnormal cells", "LSIL", "a")
CHOICE = tasks.Ask("mcq", topic="the field", options=OPTIONS)
SECONDS = 10  # that one input may take


def boxes(data: bytes) -> None:
    """Every dialect reads an answer: boxes lie inside the picture and have an area."""
    text = data.decode("utf-8", "replace")
    for status in ("ok", "truncated"):
        answer = Answer("k", "ground", text, status=status)  # type: ignore[arg-type]
        for spoken, frame in _dialects():
            found = spoken.read_boxes(answer, frame, "hsil")
            assert found.dropped >= 0
            for one in found.boxes:
                box = one.box
                assert 0 <= box.x0 < box.x1 <= frame.given[0], box
                assert 0 <= box.y0 < box.y1 <= frame.given[1], box


def choice(data: bytes) -> None:
    """A multiple-choice answer: one option or none, and as many probabilities as options."""
    text = data.decode("utf-8", "replace")
    for spoken, _ in _dialects():
        read = spoken.read_choice(Answer("k", "mcq", text), CHOICE)
        assert read is None or (tuple(read) == OPTIONS and sum(read.values()) == 1), read
        spoken.read_text(Answer("k", "vqa", text))
        spoken.read_label(Answer("k", "refer", text))


def reply(data: bytes) -> None:
    """What a model server replies; an AnswerError is tried again, anything else would not be."""
    with contextlib.suppress(AnswerError, ValueError, RecursionError):  # the last two: no JSON
        content = json.loads(data)
        for choices in ((), ("A", "B")):
            query = Query("k" * 64, "screen", (), choices=choices)
            with contextlib.suppress(AnswerError):
                answer = _strictly(lambda query=query: read_reply(content, query))
                p = answer.probabilities
                assert p is None or abs(sum(p.values()) - 1) < 1e-6, p
            with contextlib.suppress(AnswerError):
                pieces = Pieces()
                _strictly(lambda pieces=pieces: pieces.take(content))
                _strictly(lambda pieces=pieces, query=query: read_reply(pieces.reply(), query))


def _strictly(read: Callable[[], Any]) -> Any:
    """What ``read`` returns; of errors only AnswerError, others as AssertionError."""
    try:
        return read()
    except AnswerError:
        raise
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error


def question(data: bytes) -> None:
    """What a person asks in chat."""
    text = data.decode("utf-8", "replace")
    for spoken, _ in _dialects()[:2]:
        guess(text, dialect=spoken, system=_cervix())


def narrative(data: bytes) -> None:
    """A model's narrative, line by line."""
    from reports.check_narrative import read_lines

    for line in read_lines(data.decode("utf-8", "replace"), truncated=bool(data[:1] == b"3")):
        assert line.number is None or line.number >= 0


def json_text(data: bytes) -> None:
    value = parse_json(data, "x.json")
    assert _depth(value) <= JSON_DEPTH
    json.dumps(value)


def yaml_text(data: bytes) -> None:
    value = parse_yaml(data.decode("utf-8", "replace"), "x.yaml")
    assert _depth(value) <= YAML_DEPTH
    repr(value)


def geojson(data: bytes) -> None:
    for one in read_geojson(_file(data, "x.geojson"), rename=_renaming()).boxes:
        assert one.box.x0 <= one.box.x1
        assert one.box.y0 <= one.box.y1


def coco(data: bytes) -> None:
    read_coco(_file(data, "x.json"), images=_file(b"", "nothing").parent, rename=_renaming())


def voc(data: bytes) -> None:
    read_voc_file(_file(data, "x.xml"))


def table(data: bytes) -> None:
    for _, row in read_table(_file(data, "x.csv")):
        assert all(isinstance(value, str) for value in row.values())


def manifest(data: bytes) -> None:
    out = Path("/out")
    for sample in read_manifest(_file(data, "m.csv")):
        assert (out / sample.slide_id).resolve().parent == out, sample.slide_id


def dataset_info(data: bytes) -> None:
    read_info(_file(data, "dataset_info.json").parent)


def predictions(data: bytes) -> None:
    read_predictions(_file(data, "x.jsonl"))


def settings(data: bytes) -> None:
    effective, _ = resolve({}, config=_file(data, "x.yaml"), environ={})
    json.dumps(effective.model_dump(mode="json"), allow_nan=False)


def ancillary(data: bytes) -> None:
    read_ancillary([str(_file(data, "a.yaml"))])


def system(data: bytes) -> None:
    check_file(_file(data, "own.yaml"))


def dialect(data: bytes) -> None:
    load_dialect(_file(data, "own.yaml"))


def ome(data: bytes) -> None:
    """OME-XML in a TIFF or beside a Zarr; what it raises is a reason that `open_slide` gives."""
    with contextlib.suppress(SlideUnsupported):
        for image in parse_ome_xml(data.decode("utf-8", "replace")):
            assert image.mpp is None or min(image.mpp) > 0


def tiff(data: bytes) -> None:
    """The first look at a TIFF."""
    path = _file(data, "x.tiff")
    if read_tiff_header(path) is not None:
        has_gaps(path)


# ------------------------------------------------------------------------------------------ what they share


@cache
def _dialects() -> list[tuple[Dialect, Frame]]:
    spoken = [get_dialect(name) for name in dialects()]
    return [(one, one.frame((640, 480))) for one in spoken]


@cache
def _cervix() -> Any:
    return load_system("cervix")


@cache
def _renaming() -> Renaming:
    return Renaming({}, get_dialect("cytochat").known_label)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def _file(data: bytes, name: str) -> Path:
    path = Path(_folder().name) / name
    path.write_bytes(data)
    return path


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, dict | list | set):
            deepest = max(deepest, depth)
            waiting += [(child, depth + 1) for child in (one.values() if isinstance(one, dict) else one)]
    return deepest


TARGETS: dict[str, Callable[[bytes], None]] = {
    "boxes": boxes, "choice": choice, "question": question, "narrative": narrative, "reply": reply, "json": json_text,
    "yaml": yaml_text, "geojson": geojson, "coco": coco, "voc": voc, "table": table, "manifest": manifest,
    "dataset-info": dataset_info, "predictions": predictions, "settings": settings, "ancillary": ancillary,
    "system": system, "dialect": dialect, "ome": ome, "tiff": tiff,
}  # fmt: skip


def judge(name: str, data: bytes) -> None:
    """One input of a target. Raises what should not have been raised."""
    try:
        TARGETS[name](data)
    except WsiChatError as error:
        if not error.hint:
            raise AssertionError(f"{type(error).__name__} without a way out: {error.message[:200]}") from error


def blind(name: str, n: int, seed: int) -> None:
    """``n`` inputs made of a target's samples at random. Raises for the first that fails, naming it."""
    for number in range(n):
        rng = random.Random(f"{seed}/{name}/{number}")
        data = rng.choice(SAMPLES[name])
        for _ in range(rng.choice([1, 1, 2, 5])):
            data = damaged_bytes(data, rng)[0][:20_000]
        try:
            judge(name, data)
        except BaseException as error:
            error.add_note(f"{name}, seed {seed}, number {number}: {data[:300]!r}")
            raise


def replay(name: str, corpus: Path) -> int:
    """Every file of a folder, or one; returns how many. Raises for the first that fails, naming it."""
    files = sorted(path for path in corpus.iterdir() if path.is_file()) if corpus.is_dir() else [corpus]
    for path in files:
        try:
            judge(name, path.read_bytes())
        except BaseException as error:
            error.add_note(f"{name}: {path}")
            raise
    return len(files)


def main() -> None:
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", default=list(TARGETS), help="Default: all.")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="read these inputs instead; a folder named after the target in it")
    given = parser.parse_args()
    for name in given.target:
        signal.alarm(SECONDS * max(1, given.n // 10))  # ends the process where it hangs
        if given.corpus is not None:
            own = given.corpus / name
            print(f"{name}: {replay(name, own if own.is_dir() else given.corpus)} inputs, none failed", flush=True)
            continue
        blind(name, given.n, given.seed)
        print(f"{name}: {given.n} inputs, none failed", flush=True)


if __name__ == "__main__":
    main()
