"""Classes are told apart by people who do not see red, green or blue: by shape, and among those of one shape by colour.

Colour blindness is simulated at its full degree by the model of Machado et al. 2009 and differences are measured in
CAM02-UCS (Luo et al. 2006), both as the library colorspacious has them. Differences of less than 1 are not seen.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from colorspacious import cspace_convert

import wsi_chat.terminology
from reports.figures import ABNORMAL, COUNTED, OTHER
from wsi_chat.app.parts import rgb_of
from wsi_chat.app.state import shape_of
from wsi_chat.terminology import load_system

SIGHTS = (None, "deuteranomaly", "protanomaly", "tritanomaly")
OF_ONE_SHAPE, OF_ALL, COUNTED_APART = 10.0, 6.0, 12.0
SYSTEMS = sorted(
    path.stem for path in Path(wsi_chat.terminology.__file__).parent.glob("*.yaml") if not path.stem.startswith("_")
)


def apart(colours: list[tuple[int, int, int]]) -> float:
    """The least difference between any two of the colours, to anybody."""
    least = np.inf
    for sight in SIGHTS:
        seen = np.asarray(colours) / 255
        if sight is not None:
            seen = cspace_convert(seen, {"name": "sRGB1+CVD", "cvd_type": sight, "severity": 100}, "sRGB1")
        places = cspace_convert(np.clip(seen, 0, 1), "sRGB1", "CAM02-UCS")
        least = min([least, *(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2))])
    return least


def test_red_and_green_of_one_lightness_are_one_colour_to_some() -> None:
    assert apart([(190, 90, 60), (130, 120, 60)]) < OF_ALL


def test_counted_classes_differ_by_mark_and_by_colour() -> None:
    assert len({mark for mark, _ in COUNTED}) == len(COUNTED)
    assert apart([rgb_of(colour) for _, colour in COUNTED]) >= COUNTED_APART
    assert apart([rgb_of(ABNORMAL), rgb_of(OTHER)]) >= 3 * OF_ONE_SHAPE


@pytest.mark.parametrize("name", SYSTEMS)
def test_classes_that_can_be_findings_differ(name: str) -> None:
    system = load_system(name)
    found = [label for label in system.labels if label.ask or label.ask_if_known or label.code == "abnormal"]
    shapes = {label.code: shape_of(label) for label in found}
    for shape in set(shapes.values()):
        same = [label.color for label in found if shapes[label.code] == shape]
        assert apart(same) >= OF_ONE_SHAPE, shape
    assert apart([label.color for label in found]) >= OF_ALL
