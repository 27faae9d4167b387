"""DICOM objects of a DICOM slide: a Measurement Report (SR, TID 1500) and Microscopy Bulk Simple Annotations.

Coordinates are those of the level-0 total pixel matrix (pixel origin interpretation VOLUME), in which (0, 0) is the
top left corner of its first pixel, as in every stored box. Patient and study are copied from the slide's own file,
as the standard asks, and go nowhere else; of a run under pseudonyms they carry the slide's pseudonym and no other
identifier, and UIDs that belong together still do, but are not the slide's own. UIDs follow from the slide and the
result: the same report gives the same files. Codes without a published concept are in the private scheme 99WSICHAT,
which the files declare.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilers.dicom import dicom_files
from wsi_chat._version import __version__
from wsi_chat.atomic import write_bytes
from wsi_chat.errors import OutputError
from wsi_chat.schema import Finding, Report

if TYPE_CHECKING:
    from pydicom import Dataset


SR_NAME = "report-sr.dcm"
ANNOTATIONS_NAME = "annotations.dcm"
SCHEME = "99WSICHAT"
WSI_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
MANUFACTURER = "wsi-chat"
REGIONS = 200  # regions of interest in the SR; all findings are in the bulk annotations
SERIES = {SR_NAME: 9100, ANNOTATIONS_NAME: 9101}
ORGANISM = ("410607006", "SCT", "Organism")


# Type 2 attributes of the patient and study modules (PS3.3, C.7.1.1 and C.7.2.1): present, but they may be empty.
REMOVABLE = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


class DicomUnavailable(OutputError):
    """No DICOM object can be made: highdicom is not installed, or the slide is not a DICOM whole-slide image."""


class HighdicomMissing(DicomUnavailable):
    """The library that makes DICOM objects is not installed."""

    def __init__(self) -> None:
        super().__init__("DICOM objects need highdicom, which is not installed.", hint="pip install 'wsi-chat[dicom]'.")


def write_dicom(report: Report, folder: Path | str, *, source: Path | str) -> list[Path]:
    """Write ``report-sr.dcm`` and, where there are findings, ``annotations.dcm``.

    Args:
        source: any file of the slide's DICOM series; its level-0 image is looked for beside it. No pixels are read.

    Raises:
        DicomUnavailable: highdicom is missing, or no level-0 image of this slide is there.
        OutputError: a file cannot be written.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise HighdicomMissing from error
    image = _with_identifiers(find_level0(Path(source), report))
    if report.provenance.config.get("pseudonymize"):
        image = _under_pseudonym(image, report.slide.id)
    try:
        return _write_objects(report, image, Path(folder))
    except AttributeError as error:  # an attribute that the objects must repeat and the slide does not have
        raise DicomUnavailable(
            f"The header of {Path(source).name} lacks what DICOM objects about it must repeat: {error}.",
            hint="Write the other documents alone, or restore the attribute.",
        ) from error


def _write_objects(report: Report, image: Dataset, folder: Path) -> list[Path]:
    written = [_write(measurement_report(report, image), folder / SR_NAME, report)]
    path = folder / ANNOTATIONS_NAME
    if report.verdict.findings:
        written.append(_write(bulk_annotations(report, image), path, report))
    else:
        path.unlink(missing_ok=True)
    return written


def _with_identifiers(image: Dataset) -> Dataset:
    """The header with what was removed to make it anonymous present but empty, as DICOM's type 2 allows."""
    for keyword in REMOVABLE:
        if keyword not in image:
            setattr(image, keyword, "")
    if not image.get("StudyInstanceUID"):
        image.StudyInstanceUID = _uid(str(image.SeriesInstanceUID), "study")
    return image


# what the objects repeat of the slide's header and says nothing of whose it is: PS3.15, table E.1-1
KEPT = frozenset({
    "SOPClassUID", "FrameOfReferenceUID", "ContainerIdentifier", "Modality", "ImageType", "Rows", "Columns",
    "NumberOfFrames", "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "SamplesPerPixel",
    "PhotometricInterpretation", "SpecificCharacterSet",
})  # fmt: skip


def _under_pseudonym(image: Dataset, pseudonym: str) -> Dataset:
    """The header of a slide that nobody can tell from it: what identifies is its pseudonym, or empty."""
    from pydicom import Dataset as Header

    made = Header()
    for keyword in KEPT:
        if keyword in image:
            setattr(made, keyword, image[keyword].value)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        if image.get(keyword):
            setattr(made, keyword, _uid(pseudonym, str(image.get(keyword))))
    for keyword in REMOVABLE:
        setattr(made, keyword, "")
    made.PatientID, made.PatientName, made.PatientIdentityRemoved = pseudonym, f"{pseudonym}^", "YES"
    if "ContainerIdentifier" in made:
        made.ContainerIdentifier = pseudonym
    made.file_meta = image.file_meta
    return made


def find_level0(source: Path, report: Report) -> Dataset:
    """The header of the series' level-0 image: of this size, and neither label, overview nor thumbnail.

    Raises:
        DicomUnavailable: there is none beside ``source``.
    """
    if source.is_dir():
        source = next(iter(dicom_files(source)), source)
    first: Dataset | None = _header(source)
    series = getattr(first, "SeriesInstanceUID", None)
    if first is None or getattr(first, "SOPClassUID", "") != WSI_STORAGE:
        raise DicomUnavailable(
            f"{source.name} is no DICOM whole-slide image.", hint="DICOM objects are made for DICOM slides alone."
        )
    size = (report.slide.width, report.slide.height)
    for path in [source, *sorted(source.parent.glob("*"))]:
        found = first if path == source else _header(path) if path.is_file() else None
        if found is None or getattr(found, "SeriesInstanceUID", None) != series:
            continue
        shown = (found.get("TotalPixelMatrixColumns"), found.get("TotalPixelMatrixRows"))
        kind = [str(value) for value in found.get("ImageType", [])]
        if shown == size and "VOLUME" in kind:
            return found
    raise DicomUnavailable(
        f"The series of {source.name} has no level-0 image of {size[0]} x {size[1]} px beside it.",
        hint="Keep all files of the series in one folder.",
    )


def _header(path: Path) -> Dataset | None:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(path, stop_before_pixels=True)
    except (OSError, InvalidDicomError, ValueError, EOFError):
        return None


def measurement_report(report: Report, image: Dataset) -> Dataset:
    """The SR: the slide's verdict, category and score, and the findings that carry it as regions of interest."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=_uid("device", __version__), manufacturer_name=MANUFACTURER, model_name=MANUFACTURER, name=MANUFACTURER
    )
    context = hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )
    content = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=_concept("procedure", "Whole-slide cytology analysis, research use only"),
        imaging_measurements=[_slide_group(report, image), *_regions(report, image)],
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(
            hd.sr.CodedConcept("eng", "RFC5646", "English")
        ),
    )
    made: Dataset = hd.sr.Comprehensive3DSR(
        evidence=[image],
        content=content[0],
        series_number=SERIES[SR_NAME],
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        series_instance_uid=_uid(str(image.SeriesInstanceUID), SR_NAME),
        sop_instance_uid=_uid(_identity(report, image), SR_NAME),
    )
    return made


def _slide_group(report: Report, image: Dataset) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    verdict = report.verdict
    evaluations = [
        hd.sr.QualitativeEvaluation(_concept("verdict", "Slide verdict"), _concept(verdict.status, verdict.status)),
        hd.sr.QualitativeEvaluation(
            _concept("use", "Intended use"), _concept("research", "Research use only; not a diagnosis")
        ),
    ]
    if verdict.category:
        name = verdict.category_name or verdict.category
        value = _concept(verdict.category, f"suggestive of {name}" if verdict.status == "abnormal" else name)
        evaluations.append(hd.sr.QualitativeEvaluation(_concept("category", "Suggested category"), value))
    measured = []
    if verdict.score is not None:
        measured.append(_measurement("score", f"Slide score, {verdict.score_kind}", verdict.score))
    measured.append(_measurement("coverage", "Share of selected tiles that were screened", verdict.coverage))
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=_uid(report.slide.fingerprint, "slide"), identifier="slide"),
        finding_type=codes.DCM.Finding,
        algorithm_id=_algorithm(report),
        measurements=measured,
        qualitative_evaluations=evaluations,
        source_images=[hd.sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )


def _regions(report: Report, image: Dataset) -> Iterator[Any]:
    """The carrying findings first, then the other abnormal ones, as polygons; at most `REGIONS`."""
    import highdicom as hd

    by_id = {finding.id: finding for finding in report.verdict.findings}
    first = [by_id[name] for name in report.verdict.carrying if name in by_id]
    rest = [finding for finding in report.verdict.findings if finding.abnormal and finding not in first]
    for finding in [*first, *rest][:REGIONS]:
        corners = _corners(finding)
        region = hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=np.concatenate([corners, corners[:1]]),
            source_image=hd.sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID),
            pixel_origin_interpretation=hd.sr.PixelOriginInterpretationValues.VOLUME,
        )
        measured = []
        if finding.score is not None:
            measured.append(_measurement("p_screen", "Screening probability of its tile, uncalibrated", finding.score))
        yield hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(
                uid=_uid(report.slide.fingerprint, finding.id, str(finding.box)), identifier=finding.id
            ),
            referenced_region=region,
            finding_type=_concept(finding.label, f"Candidate: {finding.name}"),
            finding_category=_category(finding, coded=True),
            algorithm_id=_algorithm(report),
            measurements=measured or None,
        )


def bulk_annotations(report: Report, image: Dataset) -> Dataset:
    """Every finding as a rectangle, one annotation group for each class."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    groups = []
    for number, label in enumerate(dict.fromkeys(f.label for f in report.verdict.findings), start=1):
        findings = [finding for finding in report.verdict.findings if finding.label == label]
        scores = np.asarray([np.nan if f.score is None else f.score for f in findings], dtype=np.float32)
        kind, family = hd.ann.AnnotationGroupGenerationTypeValues.AUTOMATIC, codes.cid7162.ArtificialIntelligence
        model = report.provenance.model
        groups.append(
            hd.ann.AnnotationGroup(
                number=number,
                uid=_uid(_identity(report, image), "group", label),
                label=findings[0].name[:64],
                annotated_property_category=_category(findings[0], coded=True),
                annotated_property_type=_concept(label, f"Candidate: {findings[0].name}"),
                graphic_type=hd.ann.GraphicTypeValues.RECTANGLE,
                graphic_data=[_corners(finding) for finding in findings],
                algorithm_type=kind,
                algorithm_identification=hd.AlgorithmIdentificationSequence(
                    name=model.name[:64], family=family, version=model.revision[:64]
                ),
                measurements=[
                    hd.ann.Measurements(
                        name=_concept("p_screen", "Screening probability of its tile, uncalibrated"),
                        values=scores,
                        unit=codes.UCUM.NoUnits,
                    )
                ],
                description="Boxes of a model; hints for review, research use only",
            )
        )
    made: Dataset = hd.ann.MicroscopyBulkSimpleAnnotations(
        source_images=[image],
        annotation_coordinate_type=hd.ann.AnnotationCoordinateTypeValues.SCOORD,
        annotation_groups=groups,
        series_number=SERIES[ANNOTATIONS_NAME],
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=__version__,
        device_serial_number="0",
        content_description="Candidate findings, research use only",
        content_label="FINDINGS",
        series_instance_uid=_uid(str(image.SeriesInstanceUID), ANNOTATIONS_NAME),
        sop_instance_uid=_uid(_identity(report, image), ANNOTATIONS_NAME),
    )
    return made


# ---------------------------------------------------------------------------------------------- small parts


def _corners(finding: Finding) -> Any:
    """The box as [4, 2] float32 (column, row), from the top left clockwise."""

    box = finding.box
    corners = [(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)]
    return np.asarray(corners, dtype=np.float32)


def _category(finding: Finding, *, coded: bool) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if finding.abnormal:
        return codes.SCT.MorphologicallyAbnormalStructure
    return codes.SCT.AnatomicalStructure if coded and finding.label in CELLS else hd.sr.CodedConcept(*ORGANISM)


CELLS = frozenset(
    {"wbc", "rbc", "platelet", "neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte", "ig", "erythroblast"}
)


def _concept(code: str, meaning: str) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(code.upper()[:16], SCHEME, meaning[:64])


def _measurement(code: str, name: str, value: float) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.sr.Measurement(name=_concept(code, name), value=round(value, 6), unit=codes.UCUM.NoUnits)


def _algorithm(report: Report) -> Any:
    import highdicom as hd

    model = report.provenance.model
    return hd.sr.AlgorithmIdentification(name=f"wsi-chat {__version__}, {model.name}"[:64], version=model.revision[:64])


def _identity(report: Report, image: Dataset) -> str:
    """A hash of the slide's instance and of all that the report says but for its timings."""
    content = json.dumps(report.model_dump(mode="json", exclude={"timings"}), sort_keys=True)
    return hashlib.sha256(f"{image.SOPInstanceUID}\n{content}".encode()).hexdigest()


def _uid(*parts: str) -> str:
    """A UID under 2.25 (from a UUID of the parts' hash), as the standard allows for anyone."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(('wsi-chat', *parts))).int}"


def _write(made: Dataset, path: Path, report: Report) -> Path:
    """Write an object with the run's time in place of this moment's, and its private scheme declared."""
    from pydicom import Dataset as Item
    from pydicom import dcmwrite

    try:
        moment = datetime.fromisoformat(report.timings.started).astimezone(UTC)
    except (ValueError, OverflowError):
        moment = datetime(1970, 1, 1, tzinfo=UTC)
    for name in ("InstanceCreation", "Content"):
        setattr(made, f"{name}Date", moment.strftime("%Y%m%d"))
        setattr(made, f"{name}Time", moment.strftime("%H%M%S"))
    for equipment in made.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S")
    made.SeriesDescription = "wsi-chat, RESEARCH USE ONLY"
    scheme = Item()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "wsi-chat private codes"
    scheme.CodingSchemeResponsibleOrganization = "wsi-chat"
    made.CodingSchemeIdentificationSequence = [scheme]
    buffer = io.BytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    return write_bytes(path, buffer.getvalue())
