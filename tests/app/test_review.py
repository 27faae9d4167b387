"""The review: what is kept, who and when, undo, two readers who do not see each other, and their agreement."""

from __future__ import annotations

import errno
import fcntl
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi_chat.analysis.result import SlideResult
from wsi_chat.app.reading import agreement, progress, reviewed_cells, slide_label
from wsi_chat.app.review import Decision, ReviewStore, reviewer_name
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.schema import Box


def test_a_decision_is_kept_with_name_and_time_and_read_by_another_opening(folder: Path) -> None:
    with ReviewStore(folder) as store:
        store.decide("Ann", "f0001", "accept")
        store.decide("Ann", "f0002", "relabel", label="lsil")
    with ReviewStore(folder) as again:
        own = again.by("Ann")
    assert own["f0001"].action == "accept"
    assert own["f0002"].label == "lsil"
    assert own["f0001"].at.endswith("+00:00")


def test_looking_makes_no_file(folder: Path) -> None:
    with ReviewStore(folder) as store:
        assert store.history() == []
        assert store.undo("Ann") is None
    assert not (folder / "review.sqlite").exists()


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS"])
def test_a_folder_without_locks_keeps_decisions_with_a_warning(
    folder: Path, code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect, opened = sqlite3.connect, []

    def flock(file: object, operation: int) -> None:
        raise OSError(getattr(errno, code), "no locks here")

    def connected(place: str, **options: object) -> sqlite3.Connection:
        opened.append(place)
        return connect(place, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(sqlite3, "connect", connected)
    with ReviewStore(folder) as store:
        store.decide("Ann", "f0001", "accept")
    assert [place.endswith("review.sqlite?nolock=1") for place in opened] == [True]  # SQLite asks the system itself
    assert "has no locks" in caplog.text
    monkeypatch.undo()
    with ReviewStore(folder) as again:
        assert again.by("Ann")["f0001"].action == "accept"


def test_undo_takes_ones_own_last_decision_back_and_keeps_the_row(store: ReviewStore) -> None:
    store.decide("Ann", "f0001", "accept")
    store.decide("Ann", "f0001", "reject")
    store.decide("Bob", "f0001", "accept")
    gone = store.undo("Ann")
    assert gone is not None
    assert gone.action == "reject"
    assert store.by("Ann")["f0001"].action == "accept"
    assert store.by("Bob")["f0001"].action == "accept"
    assert [d.undone_at is not None for d in store.history(undone=True)] == [False, True, False]
    store.undo("Ann")
    assert store.undo("Ann") is None


def test_drawn_cells_have_ids_that_are_never_given_twice(store: ReviewStore) -> None:
    first = store.draw("Ann", "hsil", Box(1, 2, 30, 40))
    assert first.about == "r0001"
    store.undo("Ann")
    assert store.draw("Ann", "lsil", Box(5, 5, 9, 9)).about == "r0002"
    assert list(store.drawn()) == ["r0002"]


@pytest.mark.parametrize("name", ["", "  ", "=cmd", "<b>x</b>", "a" * 61, "tab\x00"])
def test_a_name_that_is_none_is_refused(store: ReviewStore, name: str) -> None:
    with pytest.raises(SettingError, match="no reviewer's name"):
        store.decide(name, "f0001", "accept")
    assert store.history() == []


@pytest.mark.parametrize("name", ["Ann", "李明", "J. O'Hara-Smith", "Müller, K."])
def test_names_of_people_are_names(name: str) -> None:
    assert reviewer_name(f"  {name} ") == name


def test_what_an_action_needs_is_asked_for(store: ReviewStore) -> None:
    with pytest.raises(SettingError, match="names no class"):
        store.decide("Ann", "f0001", "relabel")
    with pytest.raises(SettingError, match="only a drawn cell has a box"):
        store.decide("Ann", "f0001", "accept", box=Box(0, 0, 1, 1))


def test_another_programs_database_is_left_alone(folder: Path) -> None:
    with sqlite3.connect(folder / "review.sqlite") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(OutputError, match="another program"):
        ReviewStore(folder)


def test_progress_counts_the_models_findings_alone(result: SlideResult, store: ReviewStore) -> None:
    ids = [finding.id for finding in result.findings]
    store.decide("Ann", ids[0], "accept")
    store.decide("Ann", ids[0], "reject")
    store.draw("Ann", "hsil", Box(1, 1, 9, 9))
    store.decide("Bob", ids[1], "accept")
    done = progress(result.findings, store.by("Ann"))
    assert (done.done, done.of) == (1, len(ids))


def test_readers_who_agree_give_a_class_and_others_a_dispute(result: SlideResult, store: ReviewStore) -> None:
    hsil = [f.id for f in result.findings if f.label == "hsil"][:3]
    store.decide("Ann", hsil[0], "accept")
    store.decide("Bob", hsil[0], "accept")
    store.decide("Ann", hsil[1], "relabel", label="lsil")
    store.decide("Bob", hsil[1], "reject")
    store.decide("Ann", hsil[2], "reject")
    cells = {cell.id: cell for cell in reviewed_cells(result.findings, store)}
    assert (cells[hsil[0]].outcome, cells[hsil[0]].label) == ("accepted", "hsil")
    assert (cells[hsil[1]].outcome, cells[hsil[1]].label) == ("disputed", None)
    assert (cells[hsil[2]].outcome, cells[hsil[2]].label) == ("rejected", None)
    rest = [f.id for f in result.findings if f.id not in hsil]
    assert {cells[name].outcome for name in rest} == {"unreviewed"}
    assert all(cells[f.id].model == f.label for f in result.findings)  # the model's answer stays


def test_one_cell_drawn_by_two_is_one(result: SlideResult, store: ReviewStore) -> None:
    store.draw("Ann", "hsil", Box(100, 100, 140, 140))
    store.draw("Bob", "hsil", Box(102, 101, 141, 142))
    store.draw("Bob", "lsil", Box(102, 101, 141, 142))
    drawn = [cell for cell in reviewed_cells(result.findings, store) if cell.model is None]
    assert [(cell.label, sorted(cell.said)) for cell in drawn] == [("hsil", ["Ann", "Bob"]), ("lsil", ["Bob"])]


def test_kappa_of_two_readers(result: SlideResult, store: ReviewStore) -> None:
    ids = [finding.id for finding in result.findings][:6]
    assert len(ids) == 6
    for name, ann, bob in zip(ids, "aaaarr", "aaarrr", strict=True):
        store.decide("Ann", name, "accept" if ann == "a" else "reject")
        store.decide("Bob", name, "accept" if bob == "a" else "reject")
    labels = {finding.id: finding.label for finding in result.findings}
    found = agreement(result.findings, store, "Ann", "Bob")
    assert (found.common, found.same, found.apart) == (6, 5, (ids[3],))
    # by hand: the classes are the labels of accepted findings and a rejection
    a = [labels[n] if v == "a" else "" for n, v in zip(ids, "aaaarr", strict=True)]
    b = [labels[n] if v == "a" else "" for n, v in zip(ids, "aaarrr", strict=True)]
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / 6
    expected = sum(a.count(c) * b.count(c) for c in {*a, *b}) / 36
    assert found.kappa == pytest.approx((observed - expected) / (1 - expected))


def test_kappa_is_undefined_without_common_or_varied_decisions(result: SlideResult, store: ReviewStore) -> None:
    hsil = next(f.id for f in result.findings if f.label == "hsil")
    store.decide("Ann", hsil, "accept")
    assert agreement(result.findings, store, "Ann", "Bob").kappa is None
    store.decide("Bob", hsil, "accept")
    found = agreement(result.findings, store, "Ann", "Bob")
    assert (found.common, found.same, found.kappa) == (1, 1, None)


def test_the_slide_has_a_class_where_its_readers_agree(store: ReviewStore) -> None:
    assert slide_label(store) == (None, {})
    store.decide("Ann", "slide", "label", label="HSIL")
    assert slide_label(store) == ("HSIL", {"Ann": "HSIL"})
    store.decide("Bob", "slide", "label", label="LSIL")
    assert slide_label(store)[0] is None


# ---------------------------------------------------------------------------------------------- a damaged file


def decided(folder: Path) -> list[Decision]:
    with ReviewStore(folder) as store:
        store.draw("Ann", "hsil", Box(10, 10, 60, 60))
        for number in range(30):
            store.decide("Ann" if number % 3 else "Bo", f"f{number:04d}", "relabel", label="lsil")
        store.undo("Ann")
        return store.history(undone=True)


def test_a_changed_decision_is_left_out_and_the_file_set_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = decided(folder)
    path = folder / "review.sqlite"
    path.write_bytes(path.read_bytes().replace(b"f0007relabellsil", b"f0007relabelhsil"))
    with ReviewStore(folder) as store:
        kept = store.history(undone=True)
        assert kept == [one for one in made if one.about != "f0007"]
        new = store.decide("Bo", "f0001", "accept")
        assert new.number > max(one.number for one in made)
    assert "checksum of 1 of 31 decisions is wrong" in caplog.text
    assert (folder / "review.sqlite.damaged-1").is_file()
    with ReviewStore(folder) as store:  # the new file is whole
        assert store.history(undone=True) == [*kept, new]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Decision]]:
    folder = tmp_path_factory.mktemp("sound")
    made = decided(folder)
    return (folder / "review.sqlite").read_bytes(), made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_changes_a_decision(tmp_path: Path, sound: tuple[bytes, list[Decision]], data: st.DataObject) -> None:
    for file in tmp_path.glob("review.sqlite*"):
        file.unlink()
    content, made = bytearray(sound[0]), sound[1]
    at = data.draw(st.integers(0, len(content) - 1))
    size = data.draw(st.sampled_from([1, 1, 16, 512, 4096]))
    content[at : at + size] = data.draw(st.sampled_from([b"\x00", b"\xff", b"1"])) * len(content[at : at + size])
    (tmp_path / "review.sqlite").write_bytes(content)
    try:
        with ReviewStore(tmp_path) as store:
            kept = store.history(undone=True)
    except OutputError:  # the header names another program or version
        assert not list(tmp_path.glob("*.damaged*"))
    else:
        assert all(one in made for one in kept)


def test_a_file_of_the_first_version_goes_on(folder: Path) -> None:
    made = decided(folder)
    database = sqlite3.connect(folder / "review.sqlite")
    database.executescript("ALTER TABLE decisions DROP COLUMN checksum; PRAGMA user_version=1;")
    database.close()
    with ReviewStore(folder) as store:
        assert store.history(undone=True) == made
        assert store.undo("Bo") is not None
    with ReviewStore(folder) as store:
        assert len(store.history()) == len(made) - 2
