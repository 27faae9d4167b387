"""The parsers that read what a stranger, or a model, wrote: targets for fuzzing.

    python -m benchmarks.fuzz.parsers --n 5000 --seed 1           random damage of each target's samples
    python -m benchmarks.fuzz.guided boxes -runs=100000           the same targets, guided by coverage (atheris)

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


Samples = tuple[bytes, ...]
ANSWERS: Samples = (
    b"hsil 1 is located at <region>88.97 117.96 176.63 286.95</region>. hsil 2 is located at <region>1 2 3 4</region>.",
    b"<|object_ref_start|>cell<|object_ref_end|><|box_start|>(12,40),(300,480)<|box_end|>",
    b'```json\n[{"bbox_2d": [12, 40, 300, 480], "label": "hsil"}, {"bbox_2d": [1, 2, 3, 4], "label": "l\\u0073il"}]\n```',
    b"[0.1, 0.2, 0.35, 0.48]", b"<loc0001><loc0100><loc0400><loc1023> hsil ; <loc0001><loc0002><loc0030><loc0040> lsil",
    b"<ref>hsil</ref><box>[[10, 20, 300, 400], [1, 2, 3, 4]]</box>", b"There are no hsil cells.", b"I cannot see it.",
    b"<think>The nucleus is large. Boxes: [1, 2, 3, 4]</think>hsil is located at <region>10 20 30 40</region>.",
)  # fmt: skip
CHOICES: Samples = (
    b"B", b"The answer is **B**.", b"A. a cluster of squamous cells", b"It is not A, so B.", b"A cluster of cells",
    b"<think>A or B?</think>\n\\boxed{C}", "答案：C。".encode(), b"Neither A nor B; LSIL.", b"(D) a<|im_end|>",
)  # fmt: skip
QUESTIONS: Samples = (
    b"Locate all hsil.",
    b"how many lsil cells are there?",
    b"Is this abnormal?",
    "有多少 hsil?".encode(),
)
REPLIES: Samples = (
    b'{"choices": [{"message": {"content": "A"}, "finish_reason": "stop", "logprobs": {"content": [{"token": "A", "logprob": '
    b'-0.1, "top_logprobs": [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]}]}}], "usage": '
    b'{"prompt_tokens": 300, "completion_tokens": 1}, "model": "m"}',
    b'{"choices": [{"delta": {"content": "hsil"}, "finish_reason": null, "logprobs": null}], "usage": null}',
)
LINES: Samples = (b"1. HSIL cells are seen [f0001, t000042].\n+ Background is clean [t000001]\n2. No organisms.",)
JSONS: Samples = (b'{"a": [1, 2.5e3, null, true, "\\ud83d\\ude00"], "b": {"c": {}}}', b"[[[[[]]]]]", b'{"a": NaN}')
YAMLS: Samples = (
    b"a: [1, 2.5, ~]\nb: &x {c: 1}\nd: *x\n",
    b"- !!binary aGVsbG8=\n- 2001-12-14\n- 0x1F\n- 1:30\n<<: {a: 1}",
)
GEOJSONS: Samples = (
    b'{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": '
    b'[[[1, 2], [30, 2], [30, 40], [1, 2]]]}, "properties": {"objectType": "annotation", "classification": '
    b'{"name": "hsil", "color": [1, 2, 3]}}}]}',
    b'[{"type": "Feature", "geometry": {"type": "MultiPoint", "coordinates": [[1, 2]]}, "properties": {"classification": '
    b'{"names": ["lsil", "Positive"]}}}]',
)
COCOS: Samples = (
    b'{"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "annotations": [{"id": 1, "image_id": 1, '
    b'"category_id": 1, "bbox": [1, 2, 3, 4]}], "categories": [{"id": 1, "name": "hsil"}]}',
)
VOCS: Samples = (
    b"<annotation><filename>a.png</filename><size><width>256</width><height>256</height></size><object><name>hsil</name>"
    b"<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>60</xmax><ymax>60</ymax></bndbox></object></annotation>",
)
TABLES: Samples = (b"image,patient\na.png,p1\nb.png,p2\n", b'sep=;\r\nimage;caption\r\n"a";"b""c"\r\n')
MANIFESTS: Samples = (
    b"sample_id,image_path,mpp,label,patient,specimen,site\ns0,slides/s0.svs,0.25,abnormal,p0,cervix,A\n",
    b"\xef\xbb\xbfsep=;\nimage_path;specimen_id\na.png;x\nb.png;x\n",
)
INFOS: Samples = (
    b'{"cytology_test": {"file_name": "demo.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages", '
    b'"images": "images"}, "tags": {"role_tag": "role", "content_tag": "content"}}}',
)
PREDICTIONS: Samples = (
    b'{"prompt": "<image>Locate all hsil.", "predict": "none", "label": "hsil 1 is located at <region>1 2 3 4</region>."}\n',
)
SETTINGS: Samples = (
    b"specimen: cervix\nmpp: 0.5\ntile-px: 256\ntop_k: 24\nancillary:\n  - HPV 16 positive\nformat: pdf\n",
)
SYSTEMS: Samples = (b"extends: cervix-tbs2014\ncode: own\nname: Own\nversion: '1'\nspecimens: [own]\nmpp: 0.4\n",)
DIALECTS: Samples = (b"extends: qwen2.5-vl\nname: own\nimage: {side: 448}\nprompts: {ground: 'Find {target}.'}\n",)
OMES: Samples = (
    b'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0" Name="a"><Pixels SizeX="9" SizeY="9" '
    b'SizeC="3" SizeZ="1" SizeT="1" Type="uint8" PhysicalSizeX="0.5" PhysicalSizeXUnit="um" DimensionOrder="XYCZT">'
    b'<Channel Color="-1" SamplesPerPixel="1"/><TiffData FirstC="0" IFD="0" PlaneCount="3"/></Pixels></Image></OME>',
)
TIFFS: Samples = (
    b"II*\0\x08\0\0\0\x05\0\0\x01\x04\0\x01\0\0\0\0\x02\0\0\x01\x01\x04\0\x01\0\0\0\0\x02\0\0\x42\x01\x04\0\x01\0\0\0\0\x01\0\0"
    b"\x43\x01\x04\0\x01\0\0\0\0\x01\0\0\x44\x01\x04\0\x04\0\0\0\x50\0\0\0\0\0\0\0" + bytes(32),
)
TARGETS: dict[str, tuple[Callable[[bytes], None], Samples]] = {
    "reply": (reply, REPLIES),
    "boxes": (boxes, ANSWERS), "choice": (choice, CHOICES), "question": (question, QUESTIONS),
    "narrative": (narrative, LINES), "json": (json_text, JSONS), "yaml": (yaml_text, YAMLS), "geojson": (geojson, GEOJSONS),
    "coco": (coco, COCOS), "voc": (voc, VOCS), "table": (table, TABLES), "manifest": (manifest, MANIFESTS),
    "dataset-info": (dataset_info, INFOS), "predictions": (predictions, PREDICTIONS), "settings": (settings, SETTINGS),
    "ancillary": (ancillary, (b"HPV 16: positive\nnote: 3\n",)), "system": (system, SYSTEMS), "dialect": (dialect, DIALECTS),
    "ome": (ome, OMES), "tiff": (tiff, TIFFS),
}  # fmt: skip


def judge(name: str, data: bytes) -> None:
    """One input of a target. Raises what should not have been raised."""
    try:
        TARGETS[name][0](data)
    except WsiChatError as error:
        if not error.hint:
            raise AssertionError(f"{type(error).__name__} without a way out: {error.message[:200]}") from error


def blind(name: str, n: int, seed: int) -> None:
    """``n`` inputs made of a target's samples at random. Raises for the first that fails, naming it."""
    for number in range(n):
        rng = random.Random(f"{seed}/{name}/{number}")
        data = rng.choice(TARGETS[name][1])
        for _ in range(rng.choice([1, 1, 2, 5])):
            data = damaged_bytes(data, rng)[0][:20_000]
        try:
            judge(name, data)
        except BaseException as error:
            error.add_note(f"{name}, seed {seed}, number {number}: {data[:300]!r}")
            raise


def main() -> None:
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", default=list(TARGETS), help="Default: all.")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for name in given.target:
        signal.alarm(SECONDS * max(1, given.n // 10))  # ends the process where it hangs
        blind(name, given.n, given.seed)
        print(f"{name}: {given.n} inputs, none failed", flush=True)


if __name__ == "__main__":
    main()
