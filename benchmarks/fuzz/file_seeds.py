"""Sound files of every kind but slides, that the program reads: a run folder, data sets, settings, a checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aggregators.attention import GATE, HIDDEN, NAMES, AttentionHead, to_bytes
from aggregators.fitted import Aggregator, FittedAggregator, feature_names, feature_set
from wsi_chat.app.review import ReviewStore
from wsi_chat.chat.transcript import Reply, Transcript, write_transcript
from wsi_chat.schema import Box, LabelledBox

SETTINGS = """specimen: cervix
engine: transformers
mpp: 0.5
tile-px: 256
overlap: 0.25
top_k: 24
seed: 0
ancillary:
  - HPV 16 positive
threshold: 0.5
box_precision: hsil=0.7,lsil=0.6
language: en
mask: true
"""
SYSTEM = "extends: cervix-tbs2014\ncode: own\nname: Own system\nversion: '1'\nspecimens: [own]\nmpp: 0.4\n"
DIALECT = "extends: qwen2.5-vl\nname: own\nimage: {side: 448}\n"
VOC = """<annotation><filename>{}</filename><size><width>256</width><height>256</height><depth>3</depth></size>
<object><name>hsil</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>60</xmax><ymax>60</ymax></bndbox></object>
</annotation>"""


def make_files(folder: Path) -> None:
    """Writes them; what takes a model is made once and kept."""
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(str(find_spec("wsi_chat").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    if not (folder / "tiny.tiff").exists():
        _cli("synth", "slide", folder / "tiny.tiff", "--width", 512, "--height", 512, "--seed", 3)
        _cli("synth", "fields", folder / "fields", "-n", 6, "--seed", 1)
    if not (folder / "run/run.json").exists():
        _cli("analyze", folder / "tiny.tiff", "--specimen", "cervix", "-o", folder / "run", "--top-k", 2, "--limit", 6,
             "--adequacy-tiles", 0, "--features")  # fmt: skip
    if not (folder / "data").exists():
        _cli("dataset", "build", folder / "data", "--rendered", folder / "fields/truth.json", "--specimen", "cervix",
             "--split", "train=0.5,test=0.5", "--dialect", "embedded")  # fmt: skip
    if not (folder / "predictions.jsonl").exists():
        _cli("infer", "--dataset", "cytology_test", "--dataset-dir", folder / "data", "--save-name",
             folder / "predictions.jsonl", "--max-new-tokens", 48, "--max-samples", 12)  # fmt: skip
    if not (folder / "model").exists():
        shutil.copytree(package / "embedded", folder / "model")
        shutil.copytree(package / "embedded/aggregator", folder / "aggregator")
        _write_attention(folder)
    _write_small(folder, package)
    _write_review(folder)


def _cli(*words: object) -> None:
    command = [sys.executable, "-m", "wsi_chat", *map(str, words)]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 3):  # 3: finished, without a verdict
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}")


def _write_small(folder: Path, package: Path) -> None:
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "system-own.yaml").write_text(SYSTEM)
    (folder / "dialect-own.yaml").write_text(DIALECT)
    (folder / "ancillary.yaml").write_text("HPV 16: positive\np16: diffuse\nnote: 3\n")
    shutil.copy(package / "terminology/cervix-tbs2014.yaml", folder / "system.yaml")
    for name in ("cytochat", "json", "paligemma", "endochat"):
        shutil.copy(package / f"dialects/{name}.yaml", folder / f"dialect-{name}.yaml")
    rows = "".join(
        f"s{i},slides/s{i}.svs,{'0.25' if i % 2 else ''},{'abnormal' if i % 3 else 'normal'},p{i // 2},cervix,A\n"
        for i in range(12)
    )
    (folder / "manifest.csv").write_text("sample_id,image_path,mpp,label,patient,specimen,site\n" + rows)
    by_class = {name: {"found": 5, "precision": {"value": 0.7}} for name in ("hsil", "lsil")}
    (folder / "evaluation.json").write_text(json.dumps({"grounding": {"by_class": by_class}}))
    pictures = sorted(path.name for path in (folder / "fields").glob("*.png"))
    with Image.open(folder / "fields" / pictures[0]) as image:
        width, height = image.size
    boxes = [[10, 10, 40, 40], [50, 60, 30, 20]]
    images = [{"id": i, "file_name": name, "width": width, "height": height} for i, name in enumerate(pictures)]
    notes = [{"id": i, "image_id": i % len(pictures), "category_id": 1, "bbox": boxes[i % 2]} for i in range(8)]
    coco = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "hsil"}]}
    (folder / "coco.json").write_text(json.dumps(coco))
    voc = VOC.format(pictures[0]).replace("256", str(width), 1).replace("256", str(height), 1)
    (folder / "voc.xml").write_text(voc)
    shutil.copy(folder / "tiny.truth.geojson", folder / "annotations.geojson")
    captions = "".join(f"{name},What is it?,A cluster of cells\n" for name in pictures)
    (folder / "captions.csv").write_text("image,question,answer\n" + captions)


def _write_review(folder: Path) -> None:
    run = next(path.parent for path in (folder / "run").glob("*/report.json"))
    findings = [f["id"] for f in json.loads((run / "report.json").read_text())["verdict"]["findings"]]
    if not (run / "review.sqlite").exists():
        with ReviewStore(run) as store:
            store.draw("Ann", "hsil", Box(10, 10, 60, 60))
            for number, name in enumerate((findings or ["f0001"]) * 2):
                store.decide("Ann" if number % 2 else "Bo", name, "accept")
            store.decide("Bo", "t000001", "complete")
            store.undo("Bo")
    replies = (
        Reply(question="why?", text="Two cells.", source="record", cites=("f0001",)),
        Reply(question="here?", text="hsil", source="model", task="ground", region=Box(0, 0, 64, 64), mpp=0.5,
              boxes=(LabelledBox("hsil", Box(1, 2, 30, 40)),), probabilities={"normal": 0.2, "abnormal": 0.8}),
    )  # fmt: skip
    talk = Transcript(about=run.name, fingerprint="ab" * 32, model="embedded", dialect="embedded", replies=replies)
    write_transcript(talk, folder / "conversation.json")


def _write_attention(folder: Path) -> None:
    """A score with an attention head: random weights that are signed as they should be."""
    told: dict[str, Any] = json.loads((folder / "aggregator/aggregator.json").read_text())
    labels = tuple(told["labels"])
    width, classes = len(feature_names("attention", labels)), len(told["classes"])
    rng = np.random.default_rng(0)
    shapes = {
        "embed.weight": (HIDDEN, width), "embed.bias": (HIDDEN,), "v.weight": (GATE, HIDDEN), "v.bias": (GATE,),
        "u.weight": (GATE, HIDDEN), "u.bias": (GATE,), "gate.weight": (1, GATE), "out.weight": (classes, HIDDEN),
        "out.bias": (classes,),
    }  # fmt: skip
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items() if name in NAMES}
    head = AttentionHead(weights, np.zeros(width, np.float32), np.ones(width, np.float32), 1)
    told.pop("sha256")
    told |= {
        "head": "attention", "logistic": None, "features": feature_set("attention"),
        "feature_names": feature_names("attention", labels),
        "weights_sha256": hashlib.sha256(to_bytes(head)).hexdigest(),
    }  # fmt: skip
    FittedAggregator(Aggregator.model_validate(told), head).save(folder / "attention")
