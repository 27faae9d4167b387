"""Reporting systems: the figures as published, the contract of the loader, and files that must be refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import wsi_chat.terminology as terminology
from wsi_chat.errors import SettingError, TerminologyError
from wsi_chat.terminology import System, load_system, specimens

PACKAGE = Path(terminology.__file__).parent


CERVIX = yaml.safe_load((PACKAGE / "cervix-tbs2014.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def raw() -> dict[str, Any]:
    return copy.deepcopy(CERVIX)


# ------------------------------------------------------------------------------------- what ships


def test_every_file_of_the_package_loads_and_is_found_by_its_specimen_codes():
    assert len(specimens()) == len(list(PACKAGE.glob("*.yaml"))) == 11
    for system in specimens():
        assert (PACKAGE / f"{system.code}.yaml").is_file()
        assert load_system(system.code) is system
        for code in system.specimens:
            assert load_system(code.upper()) is system


@pytest.mark.parametrize("system", specimens(), ids=lambda system: system.code)
def test_every_system_can_be_asked_and_worded(system):
    assert system.screen.positive in system.screen.options
    assert system.asked_labels, "something is grounded by default"
    assert system.never_claim
    assert len({label.color for label in system.labels}) == len(system.labels)
    assert "house" not in system.sources
    if system.kind == "categories":
        assert system.sources
    assert System.model_validate_json(system.model_dump_json()) == system


@pytest.mark.parametrize(
    ("specimen", "mpp", "kind", "options", "positive", "about"),
    [
        (None, 0.5, "generic", ("normal", "abnormal"), "abnormal", True),
        ("cervix", 0.5, "categories", ("normal", "abnormal"), "abnormal", True),
        ("blood-smear", 0.15, "counts", ("no", "yes"), "yes", False),
    ],
)
def test_what_is_asked_of_the_three_main_specimens(specimen, mpp, kind, options, positive, about):
    system = load_system(specimen)
    assert (system.mpp, system.kind) == (mpp, kind)
    assert system.screen.options == options
    assert (system.screen.positive, system.screen.about_abnormality) == (positive, about)


def test_cervix_asks_for_the_released_class_tokens_in_order():
    system = load_system("cervix")
    assert [label.code for label in system.asked_labels] == (
        ["ascus", "lsil", "asch", "hsil", "scc", "agc", "trichomonas", "candida", "flora", "actinomyces", "herps"]
    )
    assert system.label("herps").name == "HSV"
    assert {label.code for label in system.labels if label.abnormal} == (
        {"ascus", "lsil", "asch", "hsil", "scc", "agc", "abnormal"}
    )
    assert not any(label.abnormal for label in load_system("blood").labels)


def test_cervical_severity_and_both_axes():
    system = load_system("cervix")
    codes = ["candida", "abnormal", "ascus", "lsil", "asch", "hsil", "scc"]
    assert [system.severity(code) for code in codes] == [0, 1, 2, 3, 4, 5, 6]
    squamous = [c.code for c in sorted(system.categories, key=lambda c: c.order) if c.axis == "squamous"]
    glandular = [c.code for c in sorted(system.categories, key=lambda c: c.order) if c.axis == "glandular"]
    assert squamous == ["asc-us", "lsil", "asc-h", "hsil", "scc"]
    assert glandular == ["agc", "ais", "adenocarcinoma"]
    assert system.category("ais").from_labels == ()
    assert system.negative_category == "nilm"


def test_cervical_adequacy_is_the_published_rule():
    rule = load_system("cervix").adequacy
    minima = {m.preparation: (m.count, m.upper, m.unit) for m in rule.minima}
    assert minima == {"liquid-based": (5000, None, "cells"), "conventional": (8000, 12000, "cells")}
    assert (rule.abnormal_is_adequate, rule.max_obscured) == (True, 0.75)
    assert all(figure in rule.text for figure in ("5,000", "8,000 to 12,000", "2,000", "75 %", "10 endocervical"))


@pytest.mark.parametrize(
    ("specimen", "risks", "span"),
    [
        (
            "thyroid",
            [(13, 5, 20), (4, 2, 7), (22, 13, 30), (30, 23, 34), (74, 67, 83), (97, 97, 100)],
            "range",
        ),
        ("serous", [(27, 16, 41), (11, 7, 18), (49, 37, 61), (90, 81, 95), (100, 98, 100)], "95% CI"),
    ],
)
def test_risks_of_malignancy_are_the_published_ones(specimen, risks, span):
    categories = sorted(load_system(specimen).categories, key=lambda c: c.order)
    assert [(c.risk.mean, c.risk.low, c.risk.high) for c in categories] == risks
    assert {c.risk.span for c in categories} == {span}


def test_no_other_system_states_a_risk():
    stating = {s.code for s in specimens() if any(c.risk for c in s.categories)}
    assert stating == {"thyroid-tbsrtc2023", "serous-tis2020"}


@pytest.mark.parametrize(
    ("specimen", "names"),
    [
        ("urine", ["Nondiagnostic", "NHGUC", "AUC", "SHGUC", "HGUC", "Other malignancy"]),
        ("salivary", ["I ", "II ", "III AUS", "IVA ", "IVB SUMP", "V SM", "VI "]),
        ("lung", ["Insufficient", "Benign", "Atypical", "Suspicious", "Malignant"]),
        ("pancreas", ["Insufficient", "Benign", "Atypical", "PaN-low", "PaN-high", "Suspicious", "Malignant"]),
        ("breast", ["Insufficient", "Benign", "Atypical", "Suspicious", "Malignant"]),
        ("lymph-node", ["L1", "L2", "L3", "L4", "L5"]),
    ],
)
def test_categories_of_the_other_systems_in_their_order(specimen, names):
    system = load_system(specimen)
    ordered = [c.name for c in sorted(system.categories, key=lambda c: c.order)]
    assert len(ordered) == len(names)
    assert all(name.startswith(start) for name, start in zip(ordered, names, strict=True))
    assert system.category(system.inadequate_category).order == 0
    assert not any(c.from_labels for c in system.categories), "no class token means these"


def test_thyroid_adequacy_is_counted_in_groups():
    (minimum,) = load_system("thyroid").adequacy.minima
    assert (minimum.count, minimum.unit, minimum.cells_per_group) == (6, "groups", 10)


def test_unknown_codes_name_the_choices():
    system = load_system("blood-smear")
    with pytest.raises(TerminologyError, match=r"no label 'hsil'.*wbc, rbc, platelet"):
        system.label("hsil")
    with pytest.raises(TerminologyError, match=r"no category 'nilm'.*none"):
        system.category("nilm")


# ------------------------------------------------------------------------------------- the loader


def test_an_unknown_specimen_lists_the_choices_and_the_nearest():
    with pytest.raises(SettingError, match=r"'cervx' is not known \(did you mean 'cervix'\?\).*blood-smear") as caught:
        load_system("cervx")
    assert caught.value.exit_code == 2


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=12))
def test_any_text_gives_a_system_or_a_defined_error(text):
    known = {code for system in specimens() for code in (system.code, *system.specimens)}
    if text.strip().lower() in known:
        assert load_system(text) in specimens()
    else:
        with pytest.raises((SettingError, TerminologyError)) as caught:
            load_system(text)
        assert caught.value.hint


def test_the_list_of_systems_cannot_be_spoilt_by_its_reader():
    specimens().clear()
    assert specimens()


def test_a_users_own_file_is_accepted(tmp_path, raw):
    raw |= {"code": "mine", "specimens": ["mine"], "mpp": 0.25}
    path = tmp_path / "eigenes System.yaml"
    path.write_text(json.dumps(raw), encoding="utf-8")
    system = load_system(str(path))
    assert (system.code, system.mpp) == ("mine", 0.25)
    assert system.code not in {s.code for s in specimens()}


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(TerminologyError, match=r"nowhere\.yaml: cannot be read") as caught:
        load_system(str(tmp_path / "nowhere.yaml"))
    assert caught.value.exit_code == 2
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(TerminologyError, match="cannot be read"):
        load_system(str(folder))
    binary = tmp_path / "binary.yml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(TerminologyError, match="cannot be read"):
        load_system(str(binary))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code: [", "not valid YAML"),
        ("", "holds NoneType, not a mapping"),
        ("- a\n- b", "holds list, not a mapping"),
        ("code: a\ncode: b", "'code' is given twice"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("code: a", "name: Field required"),
    ],
)
def test_files_that_are_no_system_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TerminologyError, match=message):
        load_system(str(path))


def _set(raw: dict[str, Any], place: str, value: Any) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target: Any = raw
    for part in parents:
        target = target[part]
    target[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("labels.1.code", "ascus", "label codes listed twice: ascus"),
        ("labels.0.color", [300, 0, 0], r"labels\[0\]\.color\[0\]"),
        ("labels.0.source", "rumour", "without an entry under citations: rumour"),
        ("labels.0.axis", "squamos", r"labels\[0\]\.axis"),
        ("labels.0.colour", "red", r"labels\[0\]\.colour: Extra inputs"),
        ("screen.positive", "sick", "'sick' is not among the options"),
        ("screen.options", ["normal", "Normal", "abnormal"], "options listed twice"),
        ("screen.options", [False, True], r"screen\.options\[0\]"),
        ("screen.about_abnormality", False, "needs a screen question about abnormality"),
        ("kind", "counts", "not about abnormality"),
        ("categories", [], "needs categories|negative_category"),
        ("categories.1.from_labels", ["asc"], "asc-us names unknown labels: asc"),
        ("categories.1.from_labels", ["candida"], "abnormal yet drawn from candida"),
        ("categories.1.order", 2, "share one order on an axis: squamous 2"),
        ("categories.1.risk", {"mean": 50, "source": "rumour"}, "citations: rumour"),
        ("categories.1.risk", {"mean": 50, "low": 60, "high": 70, "span": "range", "source": "house"}, "outside"),
        ("categories.1.risk", {"mean": 50, "low": 40, "source": "house"}, "or none of them"),
        ("negative_category", "hsil", "negative_category 'hsil' is not"),
        ("adequacy.minima", [], "needs at least one entry under minima"),
        ("adequacy.kind", "groups", "needs minima counted in groups"),
        ("mpp", 40, "mpp"),
        ("mpp", float("nan"), "mpp"),
        ("specimens", [], "specimens"),
        ("specimens", ["a b"], r"specimens\[0\]"),
        ("specimens", ["pap", "pap"], "specimen codes listed twice: pap"),
    ],
)
def test_a_system_that_does_not_hang_together_is_refused(tmp_path, raw, place, value, message):
    _set(raw, place, value)
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(TerminologyError, match=message) as caught:
        load_system(str(path))
    assert "bad.yaml" in caught.value.message


def test_a_loaded_system_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_system("cervix").mpp = 1.0  # type: ignore[misc]
