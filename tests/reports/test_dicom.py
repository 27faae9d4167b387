"""DICOM objects: read back with highdicom and dcmtk, boxes where they were, patient and study from the source."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from reports.dicom import ANNOTATIONS_NAME, SR_NAME, DicomUnavailable, write_dicom
from wsi_chat.schema import Box

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")


@pytest.fixture(scope="module")
def dicom_report(abnormal):
    """The flagged report as if of the 16 x 16 px DICOM slide of the shared data."""
    findings = tuple(
        finding.model_copy(update={"box": Box(0.5 + n / 8, 2, 4 + n / 8, 9.25)})
        for n, finding in enumerate(abnormal.report.verdict.findings)
    )
    return abnormal.report.model_copy(
        update={
            "slide": abnormal.report.slide.model_copy(update={"width": 16, "height": 16, "file_name": "boxes_0.dcm"}),
            "verdict": abnormal.report.verdict.model_copy(update={"findings": findings}),
        }
    )


@pytest.fixture(scope="module")
def written(dicom_report, shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    # the lesser file of the pair: its level-0 image is looked for beside it
    write_dicom(dicom_report, folder, source=shared_data / "slides" / "boxes_1.dcm")
    return folder


@pytest.fixture(scope="module")
def source(shared_data):
    return pydicom.dcmread(shared_data / "slides" / "boxes_0.dcm", stop_before_pixels=True)


def test_the_measurement_report_reads_back_with_its_regions(written, dicom_report, source):
    content = hd.sr.srread(written / SR_NAME).content
    groups = content.get_planar_roi_measurement_groups()
    by_id = {finding.id: finding for finding in dicom_report.verdict.findings}
    carrying = [name for name in dicom_report.verdict.carrying if name in by_id]
    assert [group.tracking_identifier for group in groups][: len(carrying)] == carrying
    for group in groups:
        finding = by_id[group.tracking_identifier]
        region = group.roi
        box = finding.box
        ring = [(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1), (box.x0, box.y0)]
        assert np.allclose(region.value, ring)
        assert region.PixelOriginInterpretation == "VOLUME"
        assert group.finding_type.meaning == f"Candidate: {finding.name}"
        (referenced,) = region.ContentSequence
        assert referenced.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        (measured,) = group.get_measurements()
        assert measured.value == pytest.approx(finding.score, abs=1e-6)


def test_the_slide_is_told_as_a_suggestion_with_its_score(written, dicom_report):
    (group,) = hd.sr.srread(written / SR_NAME).content.get_image_measurement_groups()
    told = {item.name.meaning: item.value.meaning for item in group.get_qualitative_evaluations()}
    verdict = dicom_report.verdict
    assert told["Slide verdict"] == "abnormal"
    assert told["Suggested category"] == f"suggestive of {verdict.category_name}"
    assert told["Intended use"].startswith("Research use only")
    score = next(m for m in group.get_measurements() if m.name.value == "SCORE")
    assert score.value == pytest.approx(verdict.score, abs=1e-6)


def test_bulk_annotations_hold_every_finding_in_level_0_pixels(written, dicom_report, source):
    made = hd.ann.annread(written / ANNOTATIONS_NAME)
    assert made.annotation_coordinate_type == hd.ann.AnnotationCoordinateTypeValues.SCOORD
    assert made.PixelOriginInterpretation == "VOLUME"
    assert made.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    found = [
        (group.label, *corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
        for group in made.get_annotation_groups()
        for corners in group.get_graphic_data(coordinate_type="2D")
    ]
    meant = [(f.name, f.box.x0, f.box.y0, f.box.x1, f.box.y1) for f in dicom_report.verdict.findings]
    assert len(found) == len(meant)
    for one, other in zip(sorted(found), sorted(meant), strict=True):
        assert one[0] == other[0]
        assert one[1:] == pytest.approx(other[1:], abs=1e-4)


@pytest.mark.parametrize("name", [SR_NAME, ANNOTATIONS_NAME])
def test_patient_and_study_come_from_the_source_and_series_are_new(name, written, source):
    made = pydicom.dcmread(written / name)
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate"):
        assert made.get(keyword) == source.get(keyword), keyword
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert made.SOPInstanceUID.startswith("2.25.")
    assert len(made.SOPInstanceUID) <= 64
    assert made.ContentDate == "20260302", "the run's date, not today's"
    assert made.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99WSICHAT"


def test_the_same_report_gives_the_same_files_and_another_result_other_uids(
    written, dicom_report, shared_data, tmp_path
):
    place = shared_data / "slides" / "boxes_0.dcm"
    again = write_dicom(dicom_report, tmp_path / "a", source=place)
    assert [path.read_bytes() for path in again] == [(written / path.name).read_bytes() for path in again]
    verdict = dicom_report.verdict.model_copy(update={"score": 0.77, "findings": (), "carrying": ()})
    other = write_dicom(dicom_report.model_copy(update={"verdict": verdict}), tmp_path / "a", source=place)
    assert [path.name for path in other] == [SR_NAME]
    assert not (tmp_path / "a" / ANNOTATIONS_NAME).exists(), "an earlier result's annotations do not stay"
    assert pydicom.dcmread(other[0]).SOPInstanceUID != pydicom.dcmread(written / SR_NAME).SOPInstanceUID


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dcmtk is not installed")
def test_dcmtk_reads_the_report(written):
    done = subprocess.run(["dsrdump", str(written / SR_NAME)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Imaging Measurement Report" in done.stdout
    assert "Error" not in done.stderr


def test_what_is_no_dicom_slide_is_named(dicom_report, shared_data, tmp_path):
    with pytest.raises(DicomUnavailable, match=r"small\.svs is no DICOM whole-slide image"):
        write_dicom(dicom_report, tmp_path, source=shared_data / "slides" / "small.svs")
    slide = dicom_report.slide.model_copy(update={"width": 17})
    with pytest.raises(DicomUnavailable, match="no level-0 image of 17 x 16 px"):
        write_dicom(
            dicom_report.model_copy(update={"slide": slide}), tmp_path, source=shared_data / "slides" / "boxes_0.dcm"
        )


def test_without_highdicom_the_way_out_is_named(dicom_report, shared_data, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(DicomUnavailable, match="not installed") as caught:
        write_dicom(dicom_report, tmp_path, source=shared_data / "slides" / "boxes_0.dcm")
    assert "wsi-chat[dicom]" in caught.value.hint


IDENTIFIERS = ("PatientName", "PatientID", "PatientBirthDate", "StudyID", "StudyDate", "AccessionNumber",
               "ReferringPhysicianName")  # fmt: skip


@pytest.mark.parametrize("removed", [IDENTIFIERS, ("PatientID",), (*IDENTIFIERS, "StudyInstanceUID")])
def test_identifiers_that_were_removed_are_written_empty(dicom_report, shared_data, tmp_path, removed):
    import pydicom

    image = pydicom.dcmread(shared_data / "slides" / "boxes_0.dcm")
    for keyword in removed:
        if keyword in image:
            delattr(image, keyword)
    image.save_as(tmp_path / "removed.dcm")
    for path in write_dicom(dicom_report, tmp_path / "out", source=tmp_path / "removed.dcm"):
        made = pydicom.dcmread(path)
        assert all(made.get(keyword, "") in ("", None) for keyword in removed if keyword != "StudyInstanceUID")
        assert made.StudyInstanceUID


def test_the_folder_of_a_series_is_a_source(dicom_report, shared_data, tmp_path):
    import shutil

    shutil.copy(shared_data / "slides" / "boxes_0.dcm", tmp_path / "IM0001")
    assert len(write_dicom(dicom_report, tmp_path / "out", source=tmp_path)) == 2
