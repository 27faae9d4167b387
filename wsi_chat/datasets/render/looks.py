"""The measurements of each kind of cell, drawn at random within published limits.

Sources: Nayar R, Wilbur DC (eds.), The Bethesda System for Reporting Cervical Cytology, 3rd ed. 2015 (Bethesda 2014):
reference sizes (intermediate nucleus about 35 um2, superficial pyknotic nucleus 5 um, parabasal nucleus about 50 um2) and
the criteria of ASC-US (nucleus 2.5-3x), LSIL (more than 3x, koilocytosis), ASC-H (1.5-2.5x, small cells), HSIL, SCC and AGC,
and of the benign mimics (repair, atrophy, inflammatory halo). Ranges overlap on purpose: one measurement alone decides
nothing, as in practice; contour and chromatin have to be read with size and cytoplasm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wsi_chat.datasets.render.cells import Look, Nucleus

Rng = np.random.Generator
INTERMEDIATE_NUCLEUS = 35.0  # um2, the yardstick of every ratio below
Tint = tuple[float, float, float]


def _tint(rng: Rng, green: float, pink: float, orange: float) -> Tint:
    """One dye leads, the others are mixed in; the weights are the chances of leading."""
    chance = np.array([green, pink, orange])
    lead = int(rng.choice(3, p=chance / chance.sum()))
    mix = rng.dirichlet((0.6, 0.6, 0.3)) * rng.uniform(0.05, 0.4)
    mix[lead] += 1
    return float(mix[0]), float(mix[1]), float(mix[2])


def _turn(rng: Rng) -> float:
    return float(rng.uniform(0, 2 * np.pi))


def _off(rng: Rng, spread: float) -> tuple[float, float]:
    x, y = rng.normal(0, spread, 2).clip(-2 * spread, 2 * spread)
    return float(x), float(y)


def superficial(rng: Rng) -> Look:
    """About 50 um, polygonal, orange/pink or green, pyknotic nucleus of about 5 um."""
    size = rng.uniform(40, 58)
    nucleus = Nucleus(
        area=float(rng.uniform(12, 25)), dark=float(rng.uniform(0.9, 1.9)), aspect=float(rng.uniform(1.0, 1.3)),
        angle=_turn(rng), coarse=float(rng.uniform(0.0, 0.1)), rim=0.0, at=_off(rng, 3.0),
    )  # fmt: skip
    halo = float(rng.uniform(3.2, 6.0)) if rng.random() < 0.2 else 0.0
    return Look(
        "superficial", float(size), float(size * rng.uniform(0.7, 1.0)), "polygon",
        density=float(rng.uniform(0.14, 0.42)), tint=_tint(rng, 0.3, 0.45, 0.25), nuclei=(nucleus,), angle=_turn(rng),
        mottle=float(rng.uniform(0.05, 0.16)), gradient=float(rng.uniform(0, 0.5)), rim=float(rng.uniform(0.0, 0.12)),
        folds=int(rng.integers(0, 3)), granules=int(rng.integers(5, 22)) if rng.random() < 0.3 else 0,
        halo=halo, halo_depth=float(rng.uniform(0.2, 0.6)) if halo else 0.0, halo_soft=0.5,
    )  # fmt: skip


def intermediate(rng: Rng) -> Look:
    """40-50 um, polygonal or navicular, mostly green, vesicular nucleus of about 35 um2."""
    size = rng.uniform(34, 52)
    aspect = rng.uniform(0.45, 1.0) if rng.random() < 0.3 else rng.uniform(0.75, 1.0)
    nucleus = Nucleus(
        area=float(INTERMEDIATE_NUCLEUS * rng.lognormal(0.05, 0.22)), dark=float(rng.uniform(0.5, 1.25)),
        aspect=float(rng.uniform(1.0, 1.45)), angle=_turn(rng), rough=float(rng.uniform(0.005, 0.025)),
        coarse=float(rng.uniform(0.06, 0.22)), rim=float(rng.uniform(0.1, 0.3)), pale=float(rng.uniform(0, 0.2)),
        at=_off(rng, 2.5),
    )  # fmt: skip
    halo = float(rng.uniform(5, 9)) if rng.random() < 0.22 else 0.0  # inflammatory or glycogen: soft, no thick edge
    return Look(
        "intermediate", float(size), float(size * aspect), "polygon" if rng.random() < 0.75 else "round",
        density=float(rng.uniform(0.13, 0.42)), tint=_tint(rng, 0.68, 0.25, 0.07), nuclei=(nucleus,), angle=_turn(rng),
        rough=0.05, mottle=float(rng.uniform(0.06, 0.2)), gradient=float(rng.uniform(-0.2, 0.5)),
        rim=float(rng.uniform(0.0, 0.18)), folds=int(rng.integers(0, 3)),
        halo=halo, halo_depth=float(rng.uniform(0.25, 0.7)) if halo else 0.0, halo_soft=float(rng.uniform(0.8, 1.8)),
    )  # fmt: skip


def reactive(rng: Rng) -> Look:
    """A benign look-alike: nucleus 1.5-3x, smooth and round, pale fine chromatin, nucleoli; sometimes two nuclei."""
    size = rng.uniform(30, 52)
    area = INTERMEDIATE_NUCLEUS * rng.uniform(1.5, 3.0)
    two = rng.random() < 0.15
    offset = float(np.sqrt(area / np.pi)) * 1.05
    made = tuple(
        Nucleus(
            area=float(area * (0.7 if two else 1.0)), dark=float(rng.uniform(0.45, 1.0)),
            aspect=float(rng.uniform(1.0, 1.35)), angle=_turn(rng), rough=0.008, coarse=float(rng.uniform(0.04, 0.14)),
            rim=float(rng.uniform(0.2, 0.4)), pale=float(rng.uniform(0.1, 0.35)), nucleoli=int(rng.integers(1, 4)),
            nucleolus=float(rng.uniform(1.2, 2.4)), at=(side * offset, float(rng.normal(0, 1))) if two else _off(rng, 2),
        )
        for side in ((-1, 1) if two else (0,))
    )  # fmt: skip
    halo = float(np.sqrt(area / np.pi) + rng.uniform(1.5, 3.5)) if rng.random() < 0.35 else 0.0
    return Look(
        "intermediate", float(size), float(size * rng.uniform(0.55, 0.95)), "round" if rng.random() < 0.5 else "polygon",
        density=float(rng.uniform(0.2, 0.5)), tint=_tint(rng, 0.55, 0.38, 0.07), nuclei=made, angle=_turn(rng), rough=0.05,
        mottle=float(rng.uniform(0.08, 0.22)), gradient=0.3, rim=float(rng.uniform(0, 0.15)),
        vacuoles=tuple(rng.uniform(1, 2.5, int(rng.integers(0, 4)))),
        halo=halo, halo_depth=0.5 if halo else 0.0, halo_soft=1.5,
    )  # fmt: skip


def parabasal(rng: Rng) -> Look:
    """15-25 um, round, nucleus about 50 um2, dense green cytoplasm."""
    size = rng.uniform(15, 26)
    nucleus = Nucleus(
        area=float(50 * rng.lognormal(0.0, 0.16)), dark=float(rng.uniform(0.6, 1.35)), aspect=float(rng.uniform(1.0, 1.3)),
        angle=_turn(rng), rough=0.012, coarse=float(rng.uniform(0.06, 0.18)), rim=float(rng.uniform(0.1, 0.25)),
        at=_off(rng, 1.0),
    )  # fmt: skip
    return Look(
        "parabasal", float(size), float(size * rng.uniform(0.78, 1.0)), "round", density=float(rng.uniform(0.25, 0.6)),
        tint=_tint(rng, 0.7, 0.25, 0.05), nuclei=(nucleus,), angle=_turn(rng), rough=0.03, mottle=0.1, gradient=-0.1,
        rim=float(rng.uniform(0, 0.12)),
    )  # fmt: skip


def atrophic(rng: Rng) -> Look:
    """A benign look-alike: parabasal cell of atrophy, high N/C, dark but smooth and evenly stained nucleus."""
    size = rng.uniform(11, 19)
    area = min(60 * rng.lognormal(0.0, 0.22), 0.62 * np.pi / 4 * size**2)
    nucleus = Nucleus(
        area=float(area), dark=float(rng.uniform(0.8, 1.8)), aspect=float(rng.uniform(1.0, 1.45)), angle=_turn(rng),
        rough=0.012, coarse=float(rng.uniform(0.03, 0.12)), rim=float(rng.uniform(0.0, 0.12)), at=_off(rng, 0.6),
    )  # fmt: skip
    return Look(
        "parabasal", float(size), float(size * rng.uniform(0.75, 1.0)), "round", density=float(rng.uniform(0.2, 0.6)),
        tint=_tint(rng, 0.55, 0.35, 0.1), nuclei=(nucleus,), angle=_turn(rng), rough=0.04, gradient=-0.1,
    )  # fmt: skip


def metaplastic(rng: Rng) -> Look:
    """15-30 um, dense cytoplasm with sharp, at times spidery edges, nucleus about 50 um2."""
    size = rng.uniform(16, 30)
    nucleus = Nucleus(
        area=float(50 * rng.lognormal(0.05, 0.2)), dark=float(rng.uniform(0.6, 1.3)), aspect=float(rng.uniform(1.0, 1.4)),
        angle=_turn(rng), rough=0.015, coarse=float(rng.uniform(0.08, 0.2)), rim=float(rng.uniform(0.1, 0.3)),
        nucleoli=int(rng.random() < 0.35), nucleolus=1.2, at=_off(rng, 1.6),
    )  # fmt: skip
    return Look(
        "metaplastic", float(size), float(size * rng.uniform(0.65, 1.0)), "round", density=float(rng.uniform(0.35, 0.75)),
        tint=_tint(rng, 0.7, 0.27, 0.03), nuclei=(nucleus,), angle=_turn(rng), rough=float(rng.uniform(0.04, 0.12)),
        ragged=0.2, mottle=0.08, gradient=-0.25, rim=0.12, vacuoles=tuple(rng.uniform(0.8, 2.0, int(rng.integers(0, 3)))),
    )  # fmt: skip


def endocervical(rng: Rng) -> Look:
    """Columnar, 20-30 um long, basal nucleus about 50 um2, pale vacuolated cytoplasm."""
    length = rng.uniform(18, 30)
    nucleus = Nucleus(
        area=float(50 * rng.lognormal(0.0, 0.16)), dark=float(rng.uniform(0.55, 1.2)), aspect=float(rng.uniform(1.05, 1.4)),
        rough=0.012, coarse=float(rng.uniform(0.06, 0.2)), rim=float(rng.uniform(0.1, 0.3)),
        nucleoli=int(rng.random() < 0.4), nucleolus=1.1, at=(float(rng.uniform(0.08, 0.28) * length), 0.0),
    )  # fmt: skip
    return Look(
        "endocervical", float(length), float(rng.uniform(8.5, 12.5)), "column", density=float(rng.uniform(0.15, 0.45)),
        tint=_tint(rng, 0.65, 0.3, 0.05), nuclei=(nucleus,), angle=_turn(rng), mottle=0.25, gradient=0.0,
        vacuoles=tuple(rng.uniform(0.8, 2.2, int(rng.integers(0, 4)))), rim=0.08,
    )  # fmt: skip


def ascus(rng: Rng) -> Look:
    """Mature cell whose nucleus is 2.5-3x an intermediate one, slightly dark and slightly irregular; no clear halo."""
    size = rng.uniform(34, 56)
    nucleus = Nucleus(
        area=float(INTERMEDIATE_NUCLEUS * rng.uniform(2.3, 3.1)), dark=float(rng.uniform(0.75, 1.45)),
        aspect=float(rng.uniform(1.05, 1.5)), angle=_turn(rng), rough=float(rng.uniform(0.03, 0.055)),
        notches=int(rng.random() < 0.35), coarse=float(rng.uniform(0.16, 0.32)), rim=float(rng.uniform(0.0, 0.15)),
        at=_off(rng, 2.5),
    )  # fmt: skip
    halo = float(rng.uniform(7, 11)) if rng.random() < 0.3 else 0.0
    return Look(
        "ascus", float(size), float(size * rng.uniform(0.65, 1.0)), "polygon" if rng.random() < 0.8 else "round",
        density=float(rng.uniform(0.13, 0.42)), tint=_tint(rng, 0.55, 0.3, 0.15), nuclei=(nucleus,), angle=_turn(rng),
        mottle=0.12, gradient=float(rng.uniform(0, 0.5)), rim=float(rng.uniform(0, 0.15)), folds=int(rng.integers(0, 3)),
        halo=halo, halo_depth=float(rng.uniform(0.2, 0.5)) if halo else 0.0, halo_soft=1.0,
    )  # fmt: skip


def lsil(rng: Rng) -> Look:
    """Large mature cell, nucleus more than 3x, often two; most with a sharp halo and a thickened edge (koilocyte)."""
    size = rng.uniform(40, 62)
    two = rng.random() < 0.35
    koilocyte = rng.random() < 0.72
    area = INTERMEDIATE_NUCLEUS * rng.uniform(3.0, 4.8) * (0.62 if two else 1.0)
    offset = float(np.sqrt(area / np.pi)) * 0.98
    smudged = rng.random() < 0.4
    made = tuple(
        Nucleus(
            area=float(area * rng.uniform(0.85, 1.1)), dark=float(rng.uniform(0.7, 1.6)), aspect=float(rng.uniform(1.05, 1.6)),
            angle=_turn(rng), rough=float(rng.uniform(0.04, 0.08)), notches=int(rng.integers(0, 3)),
            coarse=float(rng.uniform(0.02, 0.08) if smudged else rng.uniform(0.2, 0.4)), rim=0.05,
            at=(side * offset, float(rng.normal(0, 1))) if two else _off(rng, 2.5),
        )
        for side in ((-1, 1) if two else (0,))
    )  # fmt: skip
    halo = float((offset * 2 if two else offset) + rng.uniform(3, 8)) if koilocyte else 0.0
    return Look(
        "lsil", float(size), float(size * rng.uniform(0.7, 1.0)), "polygon" if rng.random() < 0.65 else "round",
        density=float(rng.uniform(0.18, 0.5)), tint=_tint(rng, 0.5, 0.35, 0.15), nuclei=made, angle=_turn(rng), rough=0.05,
        mottle=0.12, gradient=0.2, rim=float(rng.uniform(0, 0.15)), folds=int(rng.integers(0, 2)),
        halo=min(halo, float(size) * 0.36), halo_depth=float(rng.uniform(0.65, 0.95)) if koilocyte else 0.0,
        halo_rim=float(rng.uniform(0.1, 0.32)) if koilocyte else 0.0, halo_soft=0.25,
    )  # fmt: skip


def asch(rng: Rng) -> Look:
    """Metaplastic-sized (14-22 um), nucleus 1.5-2.5x, N/C up, some irregularity; short of HSIL."""
    size = rng.uniform(14, 22)
    area = min(INTERMEDIATE_NUCLEUS * rng.uniform(1.5, 2.6), 0.6 * np.pi / 4 * size**2)
    nucleus = Nucleus(
        area=float(area), dark=float(rng.uniform(0.75, 1.5)), aspect=float(rng.uniform(1.05, 1.5)), angle=_turn(rng),
        rough=float(rng.uniform(0.03, 0.06)), notches=int(rng.integers(0, 2)), coarse=float(rng.uniform(0.18, 0.34)),
        rim=0.05, at=_off(rng, 0.8),
    )  # fmt: skip
    return Look(
        "asch", float(size), float(size * rng.uniform(0.75, 1.0)), "round", density=float(rng.uniform(0.25, 0.7)),
        tint=_tint(rng, 0.65, 0.3, 0.05), nuclei=(nucleus,), angle=_turn(rng), rough=0.06, ragged=0.25, mottle=0.1,
        gradient=-0.15, rim=0.06,
    )  # fmt: skip


def hsil(rng: Rng) -> Look:
    """12-22 um, N/C above 0.6, coarse dark chromatin, notched membrane, a rim of cytoplasm; some are small and pale."""
    size = rng.uniform(12, 22)
    ratio = rng.uniform(0.58, 0.82)
    pale = rng.random() < 0.22
    nucleus = Nucleus(
        area=float(ratio * np.pi / 4 * size**2 * 0.85), dark=float(rng.uniform(0.65, 1.0) if pale else rng.uniform(0.95, 1.9)),
        aspect=float(rng.uniform(1.05, 1.55)), angle=_turn(rng) if rng.random() < 0.3 else 0.0,
        rough=float(rng.uniform(0.04, 0.085)), notches=int(rng.integers(1, 4)), coarse=float(rng.uniform(0.28, 0.55)),
        rim=0.08, at=_off(rng, 0.7),
    )  # fmt: skip
    return Look(
        "hsil", float(size), float(size * rng.uniform(0.72, 1.0)), "round", density=float(rng.uniform(0.2, 0.7)),
        tint=_tint(rng, 0.6, 0.32, 0.08), nuclei=(nucleus,), angle=_turn(rng), rough=0.06, ragged=0.25, mottle=0.1, rim=0.05,
    )  # fmt: skip


def scc(rng: Rng) -> Look:
    """Pleomorphic: spindle, tadpole or bizarre, often keratinised and orange; irregular clearing, macronucleoli."""
    kind = float(rng.random())
    keratin = rng.random() < 0.55
    if kind < 0.35:
        form, length, width = "spindle", rng.uniform(30, 60), rng.uniform(9, 15)
    elif kind < 0.6:
        form, length, width = "tadpole", rng.uniform(32, 62), rng.uniform(12, 20)
    else:
        form, length, width = "round", rng.uniform(18, 38), rng.uniform(15, 28)
    slim = form != "round"
    area = min(rng.uniform(50, 170), 0.6 * np.pi / 4 * width**2 * (2.2 if slim else 1.3))
    nucleus = Nucleus(
        area=float(area), dark=float(rng.uniform(0.9, 2.1)), aspect=float(rng.uniform(1.5, 2.6) if slim else rng.uniform(1, 1.7)),
        angle=0.0 if slim else _turn(rng), rough=float(rng.uniform(0.05, 0.1)), notches=int(rng.integers(1, 4)),
        coarse=float(rng.uniform(0.05, 0.15) if keratin and rng.random() < 0.5 else rng.uniform(0.35, 0.65)), rim=0.1,
        nucleoli=0 if keratin else int(rng.integers(0, 3)), nucleolus=float(rng.uniform(2.0, 3.2)),
        at=(-0.27 * float(length), 0.0) if form == "tadpole" else (float(rng.normal(0, 2)) if slim else 0.0, 0.0),
    )  # fmt: skip
    return Look(
        "scc", float(length), float(width), form, density=float(rng.uniform(0.45, 0.95) if keratin else rng.uniform(0.25, 0.6)),
        tint=_tint(rng, 0.1, 0.3, 0.6) if keratin else _tint(rng, 0.7, 0.3, 0.0), nuclei=(nucleus,), angle=_turn(rng),
        rough=0.1 if form == "round" else 0.05, ragged=0.25, mottle=0.12, rim=0.06,
    )  # fmt: skip


def glandular(rng: Rng) -> Look:
    """One cell of an AGC group: elongated nucleus 1.5-2.6x, crowded, coarse, scant columnar cytoplasm."""
    area = INTERMEDIATE_NUCLEUS * rng.uniform(1.5, 2.6)
    nucleus = Nucleus(
        area=float(area), dark=float(rng.uniform(0.75, 1.5)), aspect=float(rng.uniform(1.4, 2.3)),
        rough=float(rng.uniform(0.025, 0.06)), notches=int(rng.random() < 0.35), coarse=float(rng.uniform(0.2, 0.42)),
        rim=0.08, nucleoli=int(rng.random() < 0.3), nucleolus=1.4, at=(float(rng.uniform(0, 3)), 0.0),
    )  # fmt: skip
    return Look(
        "", float(rng.uniform(17, 25)), float(rng.uniform(7.5, 11)), "column", density=float(rng.uniform(0.15, 0.4)),
        tint=_tint(rng, 0.6, 0.35, 0.05), nuclei=(nucleus,), mottle=0.2, gradient=0.0,
    )  # fmt: skip


def naked(rng: Rng) -> Look:
    """A degenerated bare nucleus: smooth, dark, structureless; clutter, not annotated."""
    nucleus = Nucleus(
        area=float(rng.uniform(35, 95)), dark=float(rng.uniform(0.6, 1.6)), aspect=float(rng.uniform(1.0, 1.5)),
        angle=_turn(rng), rough=0.015, coarse=float(rng.uniform(0, 0.08)), rim=0.0,
    )  # fmt: skip
    return Look("", 4.0, 4.0, "round", density=0.0, tint=(1.0, 0.0, 0.0), nuclei=(nucleus,))


LOOKS: dict[str, Callable[[Rng], Look]] = {
    "superficial": superficial, "intermediate": intermediate, "reactive": reactive, "parabasal": parabasal,
    "atrophic": atrophic, "metaplastic": metaplastic, "endocervical": endocervical, "ascus": ascus, "lsil": lsil,
    "asch": asch, "hsil": hsil, "scc": scc, "glandular": glandular, "naked": naked,
}  # fmt: skip
