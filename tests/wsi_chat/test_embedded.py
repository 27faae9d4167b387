"""The checkpoint that ships with the package loads as any Qwen3-VL does and gives answers of its own."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_chat.engines.sums import SUFFIXES

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

FOLDER = Path(str(importlib.resources.files("wsi_chat") / "embedded"))


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    from wsi_chat.training.embedded.evaluate import load

    return load(FOLDER)


@pytest.fixture(scope="module")
def fields() -> list[Any]:
    from wsi_chat.training.embedded.fields import held_out

    return held_out(24)


def test_loads_without_torchvision_and_stays_small(loaded: tuple[Any, Any]) -> None:
    from transformers import Qwen2VLImageProcessorPil

    from wsi_chat.training.embedded.architecture import parameter_count

    model, _ = loaded
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert parameter_count(model) <= 12_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 30_000_000
    processor = Qwen2VLImageProcessorPil.from_pretrained(FOLDER)
    out = processor(images=[np.zeros((256, 256, 3), dtype=np.uint8)], return_tensors="pt")
    assert out["image_grid_thw"].tolist() == [[1, 16, 16]]


def test_its_sums_are_those_of_its_files() -> None:
    said = dict(reversed(line.split("  ")) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    files = [path for path in FOLDER.iterdir() if path.suffix in SUFFIXES]
    assert said == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_manifest_states_what_a_pipeline_needs() -> None:
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert manifest["dialect"] == "embedded"
    assert manifest["tile_px"] == 256
    assert manifest["mpp"] == {"cervix": 0.5, "blood-smear": 0.15, "default": 0.5}
    assert "hsil" in manifest["labels"]["cervix"]
    types = ["neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte", "ig", "erythroblast"]
    assert manifest["labels"]["blood-smear"] == ["rbc", "wbc", "platelet", *types]
    assert manifest["scope"]["specimens"] == {"cervix": "rendered", "blood-smear": "real"}
    assert "not for real cervical slides" in manifest["scope"]["statement"]
    assert manifest["training"]["state"] == "trained"


def test_grounding_answers_parse_and_find_cells(loaded: tuple[Any, Any], fields: list[Any]) -> None:
    from wsi_chat.training.embedded import wording
    from wsi_chat.training.embedded.evaluate import Speaker, ask_truths, parse_boxes
    from wsi_chat.training.embedded.scores import f1, matches

    asked = ask_truths(fields[:6], wording.CERVIX)
    texts = Speaker(*loaded).answer([s.image for s, _ in asked], [wording.GROUND.format(name=n) for _, n in asked])
    hit = found = truth = 0
    for (sample, name), text in zip(asked, texts, strict=True):
        boxes = parse_boxes(text)
        assert boxes or text == f"No {name} is found."
        assert all(said == name for said, _ in boxes)
        real = [(name, list(b)) for label, b in zip(sample.labels, sample.boxes, strict=True) if label == name]
        hit, found, truth = hit + matches(boxes, real), found + len(boxes), truth + len(real)
    assert f1(hit, found, truth) > 0.85


def test_screening_separates_the_fields(loaded: tuple[Any, Any], fields: list[Any]) -> None:
    from wsi_chat.training.embedded.evaluate import Speaker, screening

    report = screening(Speaker(*loaded), fields)
    assert 0 < report["positives"] < 1
    assert report["auc"] > 0.98


def test_white_cells_on_real_pictures_get_their_types(loaded: tuple[Any, Any], shared_data: Path) -> None:
    from wsi_chat.training.embedded.evaluate import Speaker
    from wsi_chat.training.embedded.pbc import Pbc
    from wsi_chat.training.embedded.typed import FIVE, confusion, in_fields

    folder = shared_data / "pbc"
    if not folder.is_dir():
        pytest.skip(f"the typed blood smears are not here: {folder} is absent")
    test = Pbc(folder, "test")
    speaker = Speaker(*loaded)
    fields = [view for view in test.tiles() if view.domain == "blood-typed"]
    chosen = [next(f for f in fields if kind in f.labels) for kind in FIVE]
    found = in_fields(speaker, chosen)
    assert set(found["by_type"]) == set(FIVE)
    assert found["balanced_accuracy"] >= 0.8  # measured on the whole split: 1.000
    rare = [sample for kind in ("ig", "erythroblast") for sample in test.singles(kind, 12)]
    table = confusion(speaker, rare)
    assert all(table[kind].get(kind, 0) >= 9 for kind in table)  # measured: .967 and .942
