"""What a model was trained for: where it is stated, and which slides are within it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsi_chat
from tilers import open_slide
from wsi_chat.analysis.scope import checkpoint_folder, on_slide, read_scope
from wsi_chat.commands.analyze import _tell
from wsi_chat.datasets.render.export import render_fields
from wsi_chat.datasets.render.slide import render_slide
from wsi_chat.engines import ScriptedEngine, embedded_checkpoint
from wsi_chat.engines.model import Model
from wsi_chat.errors import SettingError
from wsi_chat.schema import ORIGIN, Ground, Remark, Scope
from wsi_chat.settings import Settings
from wsi_chat.terminology import load_system

STATED = {"statement": "For tests.", "specimens": {"cervix": "rendered", "blood-smear": "real"}}
SCOPE = Scope.model_validate(STATED)
RENDERED = {ORIGIN: "rendered"}


@pytest.mark.parametrize(
    ("specimen", "properties", "code"),
    [
        ("cervix", RENDERED, "verbatim"),
        ("pap", RENDERED, "verbatim"),  # another name of the same specimen
        ("cervix", {}, "scope.not_rendered"),
        ("blood-smear", {}, "verbatim"),
        ("blood-smear", RENDERED, "scope.rendered"),
        ("urine", RENDERED, "scope.other_specimen"),
        (None, RENDERED, "scope.no_specimen"),
    ],
)
def test_a_slide_is_within_the_scope_where_specimen_and_origin_are_listed(
    specimen: str | None, properties: dict[str, str], code: str
) -> None:
    scope = on_slide(SCOPE, load_system(specimen), properties, given=specimen is not None)
    assert scope is not None
    assert scope.outside.code == code
    assert bool(scope.outside) == (code != "verbatim")
    assert on_slide(None, load_system(specimen), properties, given=True) is None


def test_a_setting_goes_before_the_file_beside_the_checkpoint_and_that_before_the_manifest(tmp_path: Path) -> None:
    def statement(settings: Settings) -> str:
        scope = read_scope(settings, tmp_path)
        return "" if scope is None else scope.statement

    assert statement(Settings()) == ""
    (tmp_path / "manifest.json").write_text(json.dumps({"scope": {**STATED, "statement": "manifest"}}))
    assert statement(Settings()) == "manifest"
    (tmp_path / "scope.yaml").write_text("statement: beside\nspecimens: {cervix: any}\n")
    assert statement(Settings()) == "beside"
    (tmp_path / "mine.yaml").write_text("statement: mine\n")
    assert statement(Settings(scope=str(tmp_path / "mine.yaml"))) == "mine"


@pytest.mark.parametrize("text", ["specimens: {}", "statement: [1", "statement: x\nspecimens: {cervix: painted}", "7"])
def test_a_statement_that_cannot_be_read_is_named_and_not_passed_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "scope.yaml").write_text(text)
    with pytest.raises(SettingError, match="scope"):
        read_scope(Settings(), tmp_path)


def test_the_embedded_checkpoint_is_for_demonstration_and_a_strangers_engine_is_not_it() -> None:
    settings = Settings()
    folder = checkpoint_folder(settings, Model(settings))
    assert folder == embedded_checkpoint()
    scope = read_scope(settings, folder)
    assert scope is not None
    assert "not for real cervical slides" in scope.statement
    assert scope.specimens == {"cervix": "rendered", "blood-smear": "real"}
    assert checkpoint_folder(settings, Model(settings, given=ScriptedEngine({}))) is None


@pytest.mark.parametrize("name", ["slide.tiff", "slide.ome.zarr"])
def test_rendered_slides_say_so_in_the_file_and_every_reader_passes_it_on(name: str, tmp_path: Path) -> None:
    render_slide(tmp_path / name, seed=2, width_px=512, height_px=512)
    readers = ["omezarr"] if name.endswith("zarr") else ["openslide", "tiffslide", "tiff"]
    for reader in readers:
        with open_slide(tmp_path / name, reader=reader) as slide:
            assert slide.properties[ORIGIN] == "rendered", reader


def test_rendered_fields_say_so_and_no_other_text_of_a_file_is_kept(tmp_path: Path) -> None:
    render_fields(tmp_path, 3, 1)
    with open_slide(tmp_path / "field_0000003.png", mpp=0.5) as field:
        assert field.properties[ORIGIN] == "rendered"
    from PIL.PngImagePlugin import PngInfo

    note: Any = PngInfo()
    note.add_text("Description", "wsi-chat: rendered, not a specimen of Jane Doe")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "named.png", pnginfo=note)
    with open_slide(tmp_path / "named.png", mpp=0.5) as field:
        assert ORIGIN not in field.properties
        assert "Jane" not in str(field.properties)


def test_the_terminal_says_it_of_an_abnormal_slide_too_and_once(
    small_slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An abnormal verdict has no grounds, so that only page one said that the slide is none of the model's."""
    result = wsi_chat.analyze(
        small_slide, out=tmp_path, specimen="cervix", top_k=0, adequacy_tiles=0, gallery=0, format="json",
        engine=ScriptedEngine(lambda query: {query.choices[0]: 0.1, query.choices[-1]: 0.9}),
    )  # fmt: skip
    outside = SCOPE.model_copy(update={"outside": Remark("scope.not_rendered", specimen="cervix")})
    ground = Ground(rule="scope", headline=Remark("headline.scope"), reason=Remark("scope.no_specimen"), by_error=True)
    said = []
    for scope, status, grounds in ((outside, "abnormal", ()), (SCOPE, "abnormal", ()), (outside, "normal", (ground,))):
        verdict = result.report.verdict.model_copy(update={"status": status, "grounds": grounds})
        report = result.report.model_copy(update={"scope": scope, "verdict": verdict})
        capsys.readouterr()
        _tell(dataclasses.replace(result, report=report))
        said.append(" ".join(capsys.readouterr().out.split()))
    line = "scope The slide is outside what the model was made for: for cervix it was trained on rendered slides"
    assert [line in text for text in said] == [True, False, False]
