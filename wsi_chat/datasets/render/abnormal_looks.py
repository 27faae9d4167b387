"""Abnormal cells, ASC-US to carcinoma; see `looks` for the sources."""

from __future__ import annotations

import numpy as np

from wsi_chat.datasets.render.cells import Look, Nucleus
from wsi_chat.datasets.render.chance import Rng, between, offset, tint, turn
from wsi_chat.datasets.render.shapes import Form

INTERMEDIATE_NUCLEUS = 35.0  # um2, the yardstick of every ratio below


def ascus(rng: Rng) -> Look:
    """Mature cell whose nucleus is 2.5-3x an intermediate one, slightly dark and slightly irregular; no clear halo."""
    size = between(rng, 34, 56)
    nucleus = Nucleus(
        area=float(INTERMEDIATE_NUCLEUS * between(rng, 2.3, 3.1)),
        dark=between(rng, 0.6, 1.35),
        aspect=between(rng, 1.05, 1.5),
        angle=turn(rng),
        rough=between(rng, 0.03, 0.055),
        notches=int(rng.random() < 0.35),
        coarse=between(rng, 0.16, 0.32),
        rim=between(rng, 0.0, 0.15),
        at=offset(rng, 2.5),
    )
    halo = between(rng, 7, 11) if rng.random() < 0.3 else 0.0
    return Look(
        "ascus",
        float(size),
        float(size * between(rng, 0.65, 1.0)),
        "polygon" if rng.random() < 0.8 else "round",
        density=between(rng, 0.13, 0.42),
        tint=tint(rng, 0.55, 0.3, 0.15),
        nuclei=(nucleus,),
        angle=turn(rng),
        mottle=0.12,
        gradient=between(rng, 0, 0.5),
        rim=between(rng, 0, 0.15),
        folds=int(rng.integers(0, 3)),
        halo=halo,
        halo_depth=between(rng, 0.2, 0.5) if halo else 0.0,
        halo_soft=1.0,
    )


def lsil(rng: Rng) -> Look:
    """Large mature cell, nucleus more than 3x, often two; most with a sharp halo and a thickened edge (koilocyte)."""
    size = between(rng, 40, 62)
    two = rng.random() < 0.35
    koilocyte = rng.random() < 0.72
    area = INTERMEDIATE_NUCLEUS * between(rng, 3.0, 4.8) * (0.62 if two else 1.0)
    apart = float(np.sqrt(area / np.pi)) * 0.98
    smudged = rng.random() < 0.4
    made = tuple(
        Nucleus(
            area=float(area * between(rng, 0.85, 1.1)),
            dark=between(rng, 0.55, 1.45),
            aspect=between(rng, 1.05, 1.6),
            angle=turn(rng),
            rough=between(rng, 0.04, 0.08),
            notches=int(rng.integers(0, 3)),
            coarse=float(between(rng, 0.02, 0.08) if smudged else between(rng, 0.2, 0.4)),
            rim=0.05,
            at=(side * apart, float(rng.normal(0, 1))) if two else offset(rng, 2.5),
        )
        for side in ((-1, 1) if two else (0,))
    )
    halo = float((apart * 2 if two else apart) + between(rng, 3, 8)) if koilocyte else 0.0
    return Look(
        "lsil",
        float(size),
        float(size * between(rng, 0.7, 1.0)),
        "polygon" if rng.random() < 0.65 else "round",
        density=between(rng, 0.18, 0.5),
        tint=tint(rng, 0.5, 0.35, 0.15),
        nuclei=made,
        angle=turn(rng),
        rough=0.05,
        mottle=0.12,
        gradient=0.2,
        rim=between(rng, 0, 0.15),
        folds=int(rng.integers(0, 2)),
        halo=min(halo, float(size) * 0.36),
        halo_depth=between(rng, 0.65, 0.95) if koilocyte else 0.0,
        halo_rim=between(rng, 0.1, 0.32) if koilocyte else 0.0,
        halo_soft=0.25,
    )


def asch(rng: Rng) -> Look:
    """Metaplastic-sized (14-22 um), nucleus 1.5-2.5x, N/C up, some irregularity; short of HSIL."""
    size = between(rng, 14, 22)
    area = min(INTERMEDIATE_NUCLEUS * between(rng, 1.5, 2.6), 0.6 * np.pi / 4 * size**2)
    nucleus = Nucleus(
        area=float(area),
        dark=between(rng, 0.6, 1.4),
        aspect=between(rng, 1.05, 1.5),
        angle=turn(rng),
        rough=between(rng, 0.03, 0.06),
        notches=int(rng.integers(0, 2)),
        coarse=between(rng, 0.18, 0.34),
        rim=0.05,
        at=offset(rng, 0.8),
    )
    return Look(
        "asch",
        float(size),
        float(size * between(rng, 0.75, 1.0)),
        "round",
        density=between(rng, 0.25, 0.7),
        tint=tint(rng, 0.65, 0.3, 0.05),
        nuclei=(nucleus,),
        angle=turn(rng),
        rough=0.06,
        ragged=0.25,
        mottle=0.1,
        gradient=-0.15,
        rim=0.06,
    )


def hsil(rng: Rng) -> Look:
    """12-22 um, N/C above 0.6, coarse dark chromatin, notched membrane, a rim of cytoplasm; some are small and pale."""
    size = between(rng, 12, 22)
    ratio = between(rng, 0.58, 0.82)
    pale = rng.random() < 0.3
    nucleus = Nucleus(
        area=float(ratio * np.pi / 4 * size**2 * 0.85),
        dark=float(between(rng, 0.55, 0.95) if pale else between(rng, 0.85, 1.75)),
        aspect=between(rng, 1.05, 1.55),
        angle=turn(rng) if rng.random() < 0.3 else 0.0,
        rough=between(rng, 0.04, 0.085),
        notches=int(rng.integers(1, 4)),
        coarse=between(rng, 0.28, 0.55),
        rim=0.08,
        at=offset(rng, 0.7),
    )
    return Look(
        "hsil",
        float(size),
        float(size * between(rng, 0.72, 1.0)),
        "round",
        density=between(rng, 0.2, 0.7),
        tint=tint(rng, 0.6, 0.32, 0.08),
        nuclei=(nucleus,),
        angle=turn(rng),
        rough=0.06,
        ragged=0.25,
        mottle=0.1,
        rim=0.05,
    )


def scc(rng: Rng) -> Look:
    """Pleomorphic: spindle, tadpole or bizarre, often keratinised and orange; irregular clearing, macronucleoli."""
    kind = rng.random()
    keratin = rng.random() < 0.55
    form: Form
    if kind < 0.35:
        form, length, width = "spindle", between(rng, 30, 60), between(rng, 9, 15)
    elif kind < 0.6:
        form, length, width = "tadpole", between(rng, 32, 62), between(rng, 12, 20)
    else:
        form, length, width = "round", between(rng, 18, 38), between(rng, 15, 28)
    slim = form != "round"
    area = min(between(rng, 50, 170), 0.6 * np.pi / 4 * width**2 * (2.2 if slim else 1.3))
    nucleus = Nucleus(
        area=float(area),
        dark=between(rng, 0.7, 1.9),
        aspect=float(between(rng, 1.5, 2.6) if slim else between(rng, 1, 1.7)),
        angle=0.0 if slim else turn(rng),
        rough=between(rng, 0.05, 0.1),
        notches=int(rng.integers(1, 4)),
        coarse=float(between(rng, 0.05, 0.15) if keratin and rng.random() < 0.5 else between(rng, 0.35, 0.65)),
        rim=0.1,
        nucleoli=0 if keratin else int(rng.integers(0, 3)),
        nucleolus=between(rng, 2.0, 3.2),
        at=(-0.27 * float(length), 0.0) if form == "tadpole" else (float(rng.normal(0, 2)) if slim else 0.0, 0.0),
    )
    return Look(
        "scc",
        float(length),
        float(width),
        form,
        density=float(between(rng, 0.45, 0.95) if keratin else between(rng, 0.25, 0.6)),
        tint=tint(rng, 0.1, 0.3, 0.6) if keratin else tint(rng, 0.7, 0.3, 0.0),
        nuclei=(nucleus,),
        angle=turn(rng),
        rough=0.1 if form == "round" else 0.05,
        ragged=0.25,
        mottle=0.12,
        rim=0.06,
    )


def glandular(rng: Rng) -> Look:
    """One cell of an AGC group: elongated nucleus 1.5-2.6x, crowded, coarse, scant columnar cytoplasm."""
    area = INTERMEDIATE_NUCLEUS * between(rng, 1.5, 2.6)
    nucleus = Nucleus(
        area=float(area),
        dark=between(rng, 0.55, 1.3),
        aspect=between(rng, 1.4, 2.3),
        rough=between(rng, 0.025, 0.06),
        notches=int(rng.random() < 0.35),
        coarse=between(rng, 0.2, 0.42),
        rim=0.08,
        nucleoli=int(rng.random() < 0.3),
        nucleolus=1.4,
        at=(between(rng, 0, 3), 0.0),
    )
    return Look(
        "",
        between(rng, 17, 25),
        between(rng, 7.5, 11),
        "column",
        density=between(rng, 0.15, 0.4),
        tint=tint(rng, 0.6, 0.35, 0.05),
        nuclei=(nucleus,),
        mottle=0.2,
        gradient=0.0,
    )
