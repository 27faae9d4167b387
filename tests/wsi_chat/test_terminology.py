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
from wsi_chat.terminology import System, check_file, load_system, specimens

PACKAGE = Path(terminology.__file__).parent


CERVIX = load_system("cervix").model_dump(mode="json")


@pytest.fixture
def raw() -> dict[str, Any]:
    return copy.deepcopy(CERVIX)


# ------------------------------------------------------------------------------------- what ships


def test_every_file_of_the_package_loads_and_is_found_by_its_specimen_codes():
    assert len(specimens()) == len(list(PACKAGE.glob("[!_]*.yaml"))) == 11
    for system in specimens():
        assert (PACKAGE / f"{system.code}.yaml").is_file()
        assert load_system(system.code) is system
        for code in system.specimens:
            assert load_system(code.upper()) is system


@pytest.mark.parametrize("system", specimens(), ids=lambda system: system.code)
def test_every_system_can_be_asked_and_worded(system):
    assert system.screen.positive in system.screen.options
    assert system.asked_labels, "something is grounded by default"
    assert len(system.never_claim) == len(system.prohibitions) >= 6
    assert system.questions
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
    assert {m.discretion for m in rule.minima} == {2000}
    assert (rule.abnormal_is_adequate, rule.obscuring.maximum) == (True, 0.75)
    assert rule.counted_labels == ("superficial", "intermediate", "parabasal", "metaplastic")
    (zone,) = rule.components
    assert (zone.count, zone.labels) == (10, ("endocervical", "metaplastic"))
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
    assert not any(label.ask for label in system.labels if label.axis != "generic"), "no model here knows these"
    drawn = [c for c in system.categories if c.from_labels]
    assert drawn, "a model of one's own can be mapped"
    for category in drawn:
        assert all(system.label(code).ask_if_known for code in category.from_labels)


def test_thyroid_adequacy_is_counted_in_groups():
    (minimum,) = load_system("thyroid").adequacy.minima
    assert (minimum.count, minimum.unit, minimum.cells_per_group) == (6, "groups", 10)
    assert minimum.labels == ("follicular-group",)
    assert load_system("thyroid").adequacy.abnormal_is_adequate, "atypia is never nondiagnostic"


def test_urine_needs_five_cells_for_hguc_and_fewer_leave_shguc():
    system = load_system("urine")
    needs = {c.code: (c.from_labels, c.min_findings) for c in system.categories if c.from_labels}
    assert needs["hguc"] == (("hguc",), 5)
    assert needs["shguc"] == (("hguc",), 2)
    assert system.category("hguc").min_findings_source == "paris2022"


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
    raw |= {"code": "mine", "specimens": ["mine"], "preparations": {}, "mpp": 0.25}
    path = tmp_path / "eigenes System.yaml"
    path.write_text(json.dumps(raw), encoding="utf-8")
    system = load_system(str(path))
    assert (system.code, system.mpp) == ("mine", 0.25)
    assert system.code not in {s.code for s in specimens()}


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(TerminologyError, match=r"nowhere\.yaml cannot be read") as caught:
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
        ("code: [", "not YAML"),
        ("", "holds NoneType, not a mapping"),
        ("- a\n- b", "holds list, not a mapping"),
        ("code: a\ncode: b", "the key 'code' twice"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("code: a", "name: is missing"),
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
        ("labels.1.code", "ascus", r"labels\[1\]\.code: code listed twice: ascus"),
        ("labels.0.color", [300, 0, 0], r"labels\[0\]\.color\[0\]"),
        ("labels.0.source", "rumour", r"labels\[0\]\.source: .*without an entry under citations: rumour"),
        ("labels.0.axis", "squamos", r"labels\[0\]\.axis"),
        ("labels.0.colour", "red", r"labels\[0\]\.colour: is no field of a reporting system \('red'\).*Write 'color'"),
        ("screen.positive", "sick", r"screen\.positive: 'sick' is not among the options"),
        ("screen.options", ["normal", "Normal", "abnormal"], "options listed twice"),
        ("screen.options", [False, True], r"screen\.options\[0\]"),
        ("screen.about_abnormality", False, "needs a screen question that is about abnormality"),
        ("kind", "counts", "not about abnormality"),
        ("categories", [], "needs categories|negative_category"),
        ("categories.1.from_labels", ["asc"], r"categories\[1\]\.from_labels\[0\]: names an unknown label: asc "),
        ("categories.1.from_labels", ["candida"], "abnormal yet drawn from candida"),
        ("categories.1.order", 2, r"categories\[2\]\.order: .*share one order on an axis: squamous 2"),
        ("categories.1.risk", {"mean": 50, "source": "rumour"}, "citations: rumour"),
        ("label_map", {"koilocyte": "lsill"}, r"label_map\.koilocyte: names an unknown label: lsill"),
        ("label_map", {"HSIL": "lsil"}, "maps a label's own code"),
        ("label_map", {"Koilo": "lsil", "koilo": "lsil"}, "name mapped twice: koilo"),
        ("categories.2.cannot_exclude", {"categories": ["asc-us"], "source": "house"}, "no graver category"),
        ("categories.1.order", None, r"categories\[1\]\.order: .*got None"),
        ("adequacy.minima.0.labels", ["squamous"], r"adequacy\.minima\[0\]\.labels\[0\]: names an unknown label"),
        ("adequacy.minima.1.upper", 10, r"adequacy\.minima\[1\]\.upper: lies below count \(10\)"),
        ("adequacy.minima.0.discretion", 6000, r"adequacy\.minima\[0\]\.discretion: lies above count"),
        ("adequacy.obscuring.positive", "maybe", r"adequacy\.obscuring\.positive: is not among the options"),
        ("preparations", {"pap": "air-dried"}, r"preparations\.pap: has no minimum \('air-dried'\)"),
        ("preparations", {"smear": "conventional"}, "is none of the specimens"),
        ("prohibitions.0.patterns", ["("], r"prohibitions\[0\]\.patterns\[0\]: is no regular expression"),
        ("prohibitions.0.patterns", ["zzz"], r"\.example: is caught by none of the patterns"),
        ("categories.1.risk", {"mean": 50, "low": 60, "high": 70, "span": "range", "source": "house"}, "outside"),
        ("categories.1.risk", {"mean": 50, "low": 40, "source": "house"}, "or none of them"),
        ("negative_category", "hsil", "negative_category 'hsil' is not"),
        ("adequacy.minima", [], "needs at least one entry under minima"),
        ("adequacy.kind", "groups", "needs minima counted in groups"),
        ("mpp", 40, "mpp"),
        ("mpp", float("nan"), "mpp"),
        ("specimens", [], "specimens"),
        ("specimens", ["a b"], r"specimens\[0\]"),
        ("specimens", ["pap", "pap"], r"specimens\[1\]: code listed twice: pap"),
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


# ------------------------------------------------------------------------------------- what may never be claimed


@pytest.mark.parametrize("system", specimens(), ids=lambda system: system.code)
def test_every_prohibition_catches_its_example_and_no_template_sentence(system):
    said = [getattr(system.wording, name) for name in ("normal", "abnormal", "indeterminate", "unsatisfactory")]
    if system.kind == "counts":
        said = [system.wording.counted, system.wording.indeterminate, system.wording.unsatisfactory]
    for sentence in said:
        assert not system.violations(sentence), sentence
    for item in system.prohibitions:
        assert item in system.violations(item.example)
        assert (item not in system.violations(item.example, supplied=[item.code])) == item.ancillary


@pytest.mark.parametrize(
    ("specimen", "sentence", "code"),
    [
        ("cervix", "Positive for HPV 16.", "hpv"),
        ("cervix", "\u4eba\u4e73\u5934\u7624\u75c5\u6bd2HPV16\u9633\u6027", "hpv"),
        ("cervix", "p16/Ki-67 dual staining is positive.", "ihc"),
        ("cervix", "Stromal invasion cannot be seen.", "invasion"),
        ("thyroid", "Favour follicular carcinoma over adenoma.", "follicular-outcome"),
        ("thyroid", "A BRAF mutation is likely.", "molecular"),
        ("breast", "HER2 negative tumour.", "receptor"),
        ("lymph-node", "Hodgkin lymphoma.", "lymphoma-subtype"),
        ("serous", "Metastatic adenocarcinoma of ovarian origin.", "origin"),
        ("blood", "The smear is normal.", "normality"),
        (None, "Consistent with HSIL.", "category"),
    ],
)
def test_sentences_that_no_image_supports_are_caught(specimen, sentence, code):
    assert code in {item.code for item in load_system(specimen).violations(sentence)}


@pytest.mark.parametrize(
    ("specimen", "sentence"),
    [
        ("cervix", "Two groups of cells with enlarged, dark nuclei; the pattern is suggestive of HSIL."),
        ("cervix", "Cells in a row at the edge; general background of neutrophils."),
        ("thyroid", "The pattern is suggestive of a follicular neoplasm."),
        ("urine", "Cells suggestive of high-grade urothelial carcinoma."),
        ("blood", "12 white cells and 140 red cells were counted."),
    ],
)
def test_what_a_report_may_say_is_let_through(specimen, sentence):
    assert load_system(specimen).violations(sentence) == ()


# ------------------------------------------------------------------------------------- names of labels, what is asked


def test_other_names_of_a_label_are_read_and_unknown_ones_are_not(tmp_path, raw):
    system = load_system("cervix")
    assert [system.read_label(name) for name in ("hsil", "HSIL", "ASC-US", "Bacterial vaginosis")] == (
        ["hsil", "hsil", "ascus", "flora"]
    )
    assert (system.read_label("background"), system.read_label("rbc")) == ("", None)


def test_labels_are_asked_for_where_the_model_knows_them_or_the_age_makes_them_matter():
    urine = load_system("urine")
    assert [label.code for label in urine.labels_to_ask()] == ["abnormal"]
    assert [label.code for label in urine.labels_to_ask(["hguc", "auc"])] == ["abnormal", "auc", "hguc"]
    cervix = load_system("cervix")
    plain = [label.code for label in cervix.asked_labels]
    assert [label.code for label in cervix.labels_to_ask(age=44)] == plain
    assert [label.code for label in cervix.labels_to_ask(age=45)] == [*plain, "endometrial"]
    assert [label.code for label in cervix.labels_to_ask(["hsil"], age=45)] == plain, "the model has no such class"


def test_a_specimen_code_may_imply_its_preparation():
    cervix = load_system("cervix")
    assert cervix.preparation_of("Cervical_LBC") == "liquid-based"
    assert cervix.preparation_of("cervical-conventional") == "conventional"
    assert cervix.preparation_of("cervix") is None
    assert cervix.preparation_of(None) is None


# ------------------------------------------------------------------------------------- extends, all problems at once


MINE = {"extends": "cervix-tbs2014", "code": "mine", "name": "Mine", "version": "1", "specimens": ["mine"]}


def _written(folder: Path, content: dict[str, Any], name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def test_a_file_takes_from_the_one_it_extends_what_it_leaves_out(tmp_path):
    own = {**MINE, "label_map": {"koilocyte": "lsil"}, "labels": [{"code": "hsil", "plural": "high-grade cells"}]}
    system = load_system(str(_written(tmp_path, own)))
    base = load_system("cervix")
    assert system.code == "mine"
    assert [label.code for label in system.labels] == [label.code for label in base.labels]
    assert system.label("hsil").plural == "high-grade cells"
    assert system.label("hsil").name == "HSIL"
    assert (system.read_label("koilocyte"), system.read_label("herpes")) == ("lsil", "herps")
    assert system.preparations == {}, "which specimen code implies what is not taken over"
    below = _written(tmp_path, {**MINE, "extends": "mine.yaml", "code": "deeper", "mpp": 0.3}, "deeper.yaml")
    assert load_system(str(below)).label("hsil").plural == "high-grade cells"


def test_a_file_that_extends_another_must_say_itself_which_system_it_is(tmp_path):
    system, found = check_file(_written(tmp_path, {"extends": "cervix-tbs2014"}))
    assert system is None
    assert {problem.path for problem in found} == {"code", "name", "version", "specimens"}
    assert all(problem.hint for problem in found)


def test_files_that_extend_each_other_are_refused(tmp_path):
    _written(tmp_path, {**MINE, "extends": "b.yaml"}, "a.yaml")
    _written(tmp_path, {**MINE, "extends": "c.yaml"}, "b.yaml")
    _written(tmp_path, {**MINE, "extends": "a.yaml"}, "c.yaml")
    with pytest.raises(TerminologyError, match=r"leads back to itself \(a\.yaml -> b\.yaml -> c\.yaml -> a\.yaml\)"):
        load_system(str(tmp_path / "a.yaml"))
    with pytest.raises(TerminologyError, match="leads back to itself"):
        load_system(str(_written(tmp_path, {**MINE, "extends": "self.yaml"}, "self.yaml")))


@pytest.mark.parametrize(("base", "message"), [("cervics", "'cervics' is not known"), (["a"], "is no name")])
def test_an_unknown_base_is_named(tmp_path, base, message):
    with pytest.raises(TerminologyError, match=message):
        load_system(str(_written(tmp_path, {**MINE, "extends": base})))


def test_all_problems_of_a_file_are_told_with_the_code_of_the_entry(tmp_path):
    own = {**MINE, "labels": [{"code": "new", "color": [1, 2, 300]}], "screen": {"positve": "x"}}
    _, found = check_file(_written(tmp_path, own))
    by_path = {problem.path: problem for problem in found}
    assert by_path["labels[new].color[2]"].value == "got 300"
    assert by_path["screen.positve"].hint == "Write 'positive', or remove it."
    assert by_path["labels[new].axis"].message == "is missing"


def test_a_class_is_read_by_the_name_that_findings_and_geojson_show():
    for system in specimens():
        for label in system.labels:
            assert system.read_label(label.name) == label.code
