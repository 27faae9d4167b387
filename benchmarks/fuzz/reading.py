"""What the program does with each kind of file; each function reads a damaged one as a command or the page would.

A function returns None where all went well, or a row with an outcome of its own: ``wrong`` where values that a checksum
could protect have changed and nobody noticed. WsiChatErrors and others are raised.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aggregators.features import Evidence
from aggregators.fitted import Aggregator, _digest, load_fitted
from benchmarks.fuzz.pool import Row
from wsi_chat import tasks
from wsi_chat.analysis.ancillary import read_ancillary
from wsi_chat.analysis.box_precision import read_box_precision
from wsi_chat.analysis.feature_store import FeatureStore, identity_of
from wsi_chat.analysis.manifest import read_manifest
from wsi_chat.analysis.result import load_result
from wsi_chat.analysis.run_folder import RunFolder, SlideFolder
from wsi_chat.analysis.summary import write_summary
from wsi_chat.app.reading import agreement, reviewed_cells, slide_label
from wsi_chat.app.review import ReviewStore
from wsi_chat.app.source import find_slides, tile_rows
from wsi_chat.app.talk import Talk
from wsi_chat.chat.conversation import Conversation
from wsi_chat.cohort.state import read_state
from wsi_chat.commands.models import describe_models
from wsi_chat.commands.report import run_report
from wsi_chat.commands.specimens import _check as check_system
from wsi_chat.datasets.build import build_dataset
from wsi_chat.datasets.check import check_file
from wsi_chat.datasets.collect import Sources, collect
from wsi_chat.datasets.info import find_data
from wsi_chat.datasets.rows import read_rows
from wsi_chat.datasets.wordings import Names
from wsi_chat.dialects import detect_dialect, get_dialect
from wsi_chat.engines import load_engine, sums
from wsi_chat.engines.sums import check_sums
from wsi_chat.errors import EngineError
from wsi_chat.evaluation.evaluate import evaluate
from wsi_chat.inference.output import AnswerFile
from wsi_chat.journal import Journal
from wsi_chat.schema import Answer
from wsi_chat.settings import resolve
from wsi_chat.terminology import load_system
from wsi_chat.training.data import find_dataset, pictures, read_conversations

DEFAULT_ANSWER = Answer("k" * 64, "screen", "A", probabilities={"A": 0.5, "B": 0.5})
QUESTIONS = ("why?", "how many hsil?", "which tiles are highest?", "journal", "adequacy", "tell me about f0001",
             "which model", "how large is the slide", "missing", "/find hsil")  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A case: the damaged ``file``, the ``folder`` that it lies in with what belongs to it, and pictures of fields.

    ``sound`` is kept from case to case: what a sound file says is put there while ``is_sound``.
    """

    folder: Path
    file: Path
    fields: Path
    sound: dict[str, Any]
    is_sound: bool = False


Reading = Callable[[Given], Row | None]


def _changed(given: Given, name: str, values: Mapping[Any, Any]) -> Row | None:
    """``wrong`` where a value is not what the sound file holds; what is missing is not held against it."""
    if given.is_sound:
        given.sound[name] = dict(values)
        return None
    sound = given.sound[name]
    wrong = [key for key, value in values.items() if key in sound and value != sound[key]]
    new = [key for key in values if key not in sound]
    if wrong or new:
        return {"outcome": "wrong", "kind": f"{name} changed", "why": f"{(wrong or new)[:3]}"}
    return None if len(values) == len(sound) else {"outcome": "partial"}


# ------------------------------------------------------------------------------------------ databases and tables


def journal(given: Given) -> Row | None:
    """Opened to write, read whole, written to, opened to read."""
    if given.is_sound:
        database = sqlite3.connect(given.file)
        given.sound["keys"] = [row[0] for row in database.execute("SELECT key FROM answers")]
        database.close()
    with Journal(given.file) as opened:
        opened.tally()
        found = opened.get_many(given.sound["keys"])
        told = _changed(given, "answers", found)
        opened.put(DEFAULT_ANSWER)
        len(opened)
    with Journal(given.file, read_only=True) as opened:
        opened.tally()
        if opened.get(DEFAULT_ANSWER.key) is None:
            return {"outcome": "wrong", "kind": "what was put is gone"}
    return told


def review(given: Given) -> Row | None:
    """The decisions, what they make of the findings, one more decision, and undo."""
    findings = SlideFolder(given.folder).read_report().verdict.findings
    with ReviewStore(given.folder) as store:
        told = _changed(given, "decisions", {one.number: one for one in store.history(undone=True)})
        reviewed_cells(findings, store)
        slide_label(store)
        agreement(findings, store, "Ann", "Bo")
        made = store.decide("Cy", "t000003", "complete")
        if made not in store.history():
            return {"outcome": "wrong", "kind": "what was decided is gone"}
        store.undo("Cy")
    return told


def tiles(given: Given) -> Row | None:
    """The verdicts of all tiles, and the table as chat, page and notebooks read it."""
    found = SlideFolder(given.folder).read_tiles()
    table = SlideFolder(given.folder).tiles_table().to_pylist()
    tile_rows(load_result(given.folder))
    values = {("verdict", n): repr(one) for n, one in enumerate(found)}
    return _changed(given, "tiles", values | {("row", n): repr(one) for n, one in enumerate(table)})


def features(given: Given) -> Row | None:
    """Stored image features, as a run that goes on opens them."""
    files = SlideFolder(given.folder)
    report = files.read_report()
    of = identity_of(report.slide, report.provenance)
    if given.is_sound:
        told = json.loads((given.folder / "features.zarr/features/zarr.json").read_text())
        given.sound["shape"] = told["shape"]
    number, width = given.sound["shape"]
    with contextlib.suppress(TypeError):  # this report's identity need not be that of the features
        of = (
            json.loads((given.folder / "features.zarr/zarr.json").read_text())["attributes"]["of"]
            if given.is_sound
            else of
        )
    store = FeatureStore(files, of=given.sound.setdefault("of", of), tiles=number, width=width)
    index = np.flatnonzero(store._stored)
    rows = store.read().read(index)
    return _changed(given, "features", {int(n): row.tobytes() for n, row in zip(index, rows, strict=True)})


# ------------------------------------------------------------------------------------------ run folders


def conversation(given: Given) -> Row | None:
    """A saved conversation, as the page finds it again."""
    path = SlideFolder(given.folder).conversation_path
    shutil.move(given.file, path)
    with ThreadPoolExecutor(1) as thread:
        talk = Talk(lambda: Conversation(given.folder), given.folder, thread)
        if path.exists() == bool(talk.trouble):
            return {"outcome": "wrong", "kind": "a damaged conversation is not set aside"}
        talk.close()
    return {"outcome": "typed"} if talk.trouble else None


def run_folder(given: Given) -> Row | None:
    """run.json and summary.csv as a page opens a run and another run adds to it."""
    root = given.folder.parent
    for entry in find_slides(root).entries.values():
        if entry.folder.parent.resolve() != root.resolve():
            return {"outcome": "wrong", "kind": "a slide's folder lies elsewhere", "why": str(entry.folder)}
    run = RunFolder(root)
    run.write_record(config={}, origin={}, slides={"x": Path("x.svs")})
    if "x" not in RunFolder(root).slide_files:
        return {"outcome": "wrong", "kind": "what was recorded is gone"}
    write_summary(run, [{"slide_id": "x", "file": "x.svs"}])
    return None


def state(given: Given) -> Row | None:
    """The state of a slide of a cohort: used, or written anew."""
    return None if read_state(RunFolder(given.folder.parent), given.folder.name) else {"outcome": "typed"}


def report(given: Given) -> Row | None:
    """A report read back, and report.json written again."""
    _, lines, code = run_report(given.folder, formats="json")
    return {"outcome": "typed", "kind": lines[-1][:80]} if code else None


def report_written(given: Given) -> Row | None:
    """All documents written again."""
    _, lines, code = run_report(given.folder, formats="pdf,html,json", language="zh")
    return {"outcome": "typed", "kind": lines[-1][:80]} if code else None


def chat(given: Given) -> Row | None:
    """Questions that the record answers."""
    with Conversation(given.folder) as talk:
        for question in QUESTIONS:
            talk.say(question)
    return None


# ------------------------------------------------------------------------------------------ settings and systems


def settings(given: Given) -> Row | None:
    effective, _ = resolve({}, config=given.file, environ={})
    json.dumps(effective.model_dump(mode="json"), allow_nan=False)
    return None


def manifest(given: Given) -> Row | None:
    out = given.folder / "out"
    for sample in read_manifest(given.file):
        if (out / sample.slide_id).resolve().parent != out.resolve():
            return {"outcome": "wrong", "kind": "a slide id leaves the run folder", "why": sample.slide_id}
    return None


def system(given: Given) -> Row | None:
    check_system(given.file)
    found = load_system(str(given.file))
    assert found.labels
    assert found.mpp > 0
    return None


def dialect(given: Given) -> Row | None:
    """A dialect asks and reads."""
    spoken = get_dialect(str(given.file))
    picture = Image.new("RGB", (256, 256), "white")
    asks = [tasks.ground("hsil"), tasks.Ask("screen", topic="the field", options=("normal", "abnormal"))]
    for ask in asks:
        _, frame = spoken.build(ask, picture, model_id="m@0", decoding={})
    for text in ("hsil 1 is located at <region>1 2 30 40</region>.", "[1, 2, 3, 4]", "none", "<loc0001><loc0002> x"):
        spoken.read_boxes(Answer("k", "ground", text), frame, "hsil")
    spoken.read_choice(Answer("k", "screen", "B"), asks[1])
    return None


def ancillary(given: Given) -> Row | None:
    read_ancillary([str(given.file)])
    return None


def box_precision(given: Given) -> Row | None:
    read_box_precision(str(given.file), known=["hsil"])
    return None


# ------------------------------------------------------------------------------------------ data sets


def dataset(given: Given) -> Row | None:
    """Checked, read for inference, read for training."""
    file = given.folder / "cytology_train.jsonl"
    check_file(file)
    check_file("cytology_train", folder=given.folder)
    for name in ("cytology_train", str(file)):
        list(read_rows(find_data(name, given.folder)))
    spoken = get_dialect("embedded")
    talks, _ = read_conversations(find_dataset("cytology_train", given.folder), spoken, skip_bad=True)
    for talk in talks[:2]:
        pictures(talk, spoken)
    return None


def predictions(given: Given) -> Row | None:
    """Scored, and gone on with as a file of answers."""
    shutil.copy(given.file, given.folder / "again.jsonl")
    result = evaluate(given.file, resamples=5)
    json.dumps(result.model_dump(mode="json"), allow_nan=False)
    with AnswerFile(given.folder / "again.jsonl") as answers:
        len(answers)
        answers.put_in_order()
    return None


def _collected(given: Given, sources: Sources) -> Row | None:
    spoken = get_dialect("cytochat")
    found = collect(sources, dialect=spoken, tile_px=128, tile_mpp=0.5)
    found = [one for one in found if one.size[0] * one.size[1] < 4_000_000][:3]
    names = Names(load_system("cervix"))
    build_dataset(found, given.folder / "built", dialect=spoken, names=names, fractions={"train": 1.0})
    return None


def coco(given: Given) -> Row | None:
    return _collected(given, Sources(coco=(given.file,), images=given.fields))


def voc(given: Given) -> Row | None:
    picture = sorted(given.fields.glob("*.png"))[0]
    place = given.folder / "voc"
    place.mkdir()
    shutil.copy(given.file, place / f"{picture.stem}.xml")
    shutil.copy(picture, place / picture.name)
    return _collected(given, Sources(voc=(place,)))


def geojson(given: Given) -> Row | None:
    return _collected(given, Sources(geojson=(given.file,), slides=(given.fields.parent / "tiny.tiff",)))


def captions(given: Given) -> Row | None:
    for picture in given.fields.glob("*.png"):
        (given.folder / picture.name).symlink_to(picture)
    return _collected(given, Sources(captions=(given.file,)))


# ------------------------------------------------------------------------------------------ models


def _evidence() -> Evidence:
    rng = np.random.default_rng(0)
    known = {"hsil": 3}, {"hsil": np.zeros(40)}, frozenset({"hsil"})
    return Evidence(rng.random(40), rng.random(40), rng.random(40), rng.random(40) < 0.5, *known)


def aggregator(given: Given) -> Row | None:
    """A fitted slide score, loaded and applied."""
    fitted = load_fitted(given.folder)
    found = fitted.probabilities([_evidence()])
    if not np.isfinite(found).all() or (found < 0).any() or (found > 1).any() or abs(found.sum() - 1) > 1e-6:
        return {"outcome": "wrong", "kind": "probabilities that are none", "why": str(found)}
    fitted.thresholds(miss_rate=None, false_alarm_rate=None)
    fitted.unlike(_evidence())
    return None


def signed_aggregator(given: Given) -> Row | None:
    """As `aggregator`, of a file whose hash was made anew by somebody who knows how."""
    with contextlib.suppress(Exception):
        payload = json.loads(given.file.read_bytes())
        payload.pop("sha256", None)
        payload["sha256"] = _digest(Aggregator.model_validate(payload))
        given.file.write_text(json.dumps(payload))
    return aggregator(given)


def model_config(given: Given) -> Row | None:
    """What `wsi-chat models` says of a checkpoint; no weights are read."""
    describe_models([given.folder])
    get_dialect(detect_dialect(given.folder))
    return None


def model(given: Given) -> Row | None:
    """A checkpoint loaded and asked one question; what its sums refuse is loaded without them all the same."""
    refused = False
    try:
        check_sums(given.folder)
    except EngineError:
        (given.folder / sums.FILE).unlink()
        refused = True
    told = _asked(given)
    changed = told is not None and told.get("kind") == "probabilities changed"
    return {"outcome": "typed", "kind": sums.FILE} if refused and (told is None or changed) else told


def _asked(given: Given) -> Row | None:
    spoken = get_dialect(detect_dialect(given.folder))
    engine = load_engine(given.folder, engine="transformers", device="cpu")
    try:
        image = Image.open(sorted(given.fields.glob("*.png"))[0]).convert("RGB")
        ask = tasks.Ask("screen", topic="the field", options=("normal", "abnormal"))
        query, _ = spoken.build(ask, image, model_id=engine.model_id, decoding={})
        (answer,) = list(engine.answer([query]))
        if answer.status == "failed":
            return {"outcome": "typed", "kind": "answer failed"}
        p = dict(answer.probabilities or {})
        if not p or not all(0 <= v <= 1 for v in p.values()) or abs(sum(p.values()) - 1) > 1e-3:
            return {"outcome": "wrong", "kind": "probabilities that are none", "why": str(p)}
        return _changed(given, "probabilities", {"p": {k: round(v, 4) for k, v in p.items()}})
    finally:
        engine.close()
