"""Benign cells, the hard look-alikes (repair, atrophy) included; see `looks` for the sources."""

from __future__ import annotations

import numpy as np

from wsi_chat.datasets.render.cells import Look, Nucleus
from wsi_chat.datasets.render.chance import Rng, between, offset, tint, turn

INTERMEDIATE_NUCLEUS = 35.0  # um2, the yardstick of every ratio below


def superficial(rng: Rng) -> Look:
    """About 50 um, polygonal, orange/pink or green, pyknotic nucleus of about 5 um."""
    size = between(rng, 40, 58)
    nucleus = Nucleus(
        area=between(rng, 12, 25),
        dark=between(rng, 0.9, 1.9),
        aspect=between(rng, 1.0, 1.3),
        angle=turn(rng),
        coarse=between(rng, 0.0, 0.1),
        rim=0.0,
        at=offset(rng, 3.0),
    )
    halo = between(rng, 3.2, 6.0) if rng.random() < 0.2 else 0.0
    return Look(
        "superficial",
        float(size),
        float(size * between(rng, 0.7, 1.0)),
        "polygon",
        density=between(rng, 0.14, 0.42),
        tint=tint(rng, 0.3, 0.45, 0.25),
        nuclei=(nucleus,),
        angle=turn(rng),
        mottle=between(rng, 0.05, 0.16),
        gradient=between(rng, 0, 0.5),
        rim=between(rng, 0.0, 0.12),
        folds=int(rng.integers(0, 3)),
        granules=int(rng.integers(5, 22)) if rng.random() < 0.3 else 0,
        halo=halo,
        halo_depth=between(rng, 0.2, 0.6) if halo else 0.0,
        halo_soft=0.5,
    )


def intermediate(rng: Rng) -> Look:
    """40-50 um, polygonal or navicular, mostly green, vesicular nucleus of about 35 um2."""
    size = between(rng, 34, 52)
    aspect = between(rng, 0.45, 1.0) if rng.random() < 0.3 else between(rng, 0.75, 1.0)
    nucleus = Nucleus(
        area=float(INTERMEDIATE_NUCLEUS * rng.lognormal(0.05, 0.22)),
        dark=between(rng, 0.5, 1.25),
        aspect=between(rng, 1.0, 1.45),
        angle=turn(rng),
        rough=between(rng, 0.005, 0.025),
        coarse=between(rng, 0.06, 0.22),
        rim=between(rng, 0.1, 0.3),
        pale=between(rng, 0, 0.2),
        at=offset(rng, 2.5),
    )
    halo = between(rng, 5, 9) if rng.random() < 0.22 else 0.0  # inflammatory or glycogen: soft, no thick edge
    return Look(
        "intermediate",
        float(size),
        float(size * aspect),
        "polygon" if rng.random() < 0.75 else "round",
        density=between(rng, 0.13, 0.42),
        tint=tint(rng, 0.68, 0.25, 0.07),
        nuclei=(nucleus,),
        angle=turn(rng),
        rough=0.05,
        mottle=between(rng, 0.06, 0.2),
        gradient=between(rng, -0.2, 0.5),
        rim=between(rng, 0.0, 0.18),
        folds=int(rng.integers(0, 3)),
        halo=halo,
        halo_depth=between(rng, 0.25, 0.7) if halo else 0.0,
        halo_soft=between(rng, 0.8, 1.8),
    )


def reactive(rng: Rng) -> Look:
    """A benign look-alike: nucleus 1.5-3x, smooth and round, pale fine chromatin, nucleoli; sometimes two nuclei."""
    size = between(rng, 30, 52)
    area = INTERMEDIATE_NUCLEUS * between(rng, 1.5, 3.0)
    two = rng.random() < 0.15
    apart = float(np.sqrt(area / np.pi)) * 1.05
    made = tuple(
        Nucleus(
            area=float(area * (0.7 if two else 1.0)),
            dark=between(rng, 0.45, 1.35),
            aspect=between(rng, 1.0, 1.35),
            angle=turn(rng),
            rough=0.008,
            coarse=between(rng, 0.04, 0.14),
            rim=between(rng, 0.2, 0.4),
            pale=between(rng, 0.1, 0.35),
            nucleoli=int(rng.integers(1, 4)),
            nucleolus=between(rng, 1.2, 2.4),
            at=(side * apart, float(rng.normal(0, 1))) if two else offset(rng, 2),
        )
        for side in ((-1, 1) if two else (0,))
    )
    halo = float(np.sqrt(area / np.pi) + between(rng, 1.5, 3.5)) if rng.random() < 0.35 else 0.0
    return Look(
        "intermediate",
        float(size),
        float(size * between(rng, 0.55, 0.95)),
        "round" if rng.random() < 0.5 else "polygon",
        density=between(rng, 0.2, 0.5),
        tint=tint(rng, 0.55, 0.38, 0.07),
        nuclei=made,
        angle=turn(rng),
        rough=0.05,
        mottle=between(rng, 0.08, 0.22),
        gradient=0.3,
        rim=between(rng, 0, 0.15),
        vacuoles=tuple(rng.uniform(1, 2.5, int(rng.integers(0, 4)))),
        halo=halo,
        halo_depth=0.5 if halo else 0.0,
        halo_soft=1.5,
    )


def parabasal(rng: Rng) -> Look:
    """15-25 um, round, nucleus about 50 um2, dense green cytoplasm."""
    size = between(rng, 15, 26)
    nucleus = Nucleus(
        area=float(50 * rng.lognormal(0.0, 0.16)),
        dark=between(rng, 0.6, 1.35),
        aspect=between(rng, 1.0, 1.3),
        angle=turn(rng),
        rough=0.012,
        coarse=between(rng, 0.06, 0.18),
        rim=between(rng, 0.1, 0.25),
        at=offset(rng, 1.0),
    )
    return Look(
        "parabasal",
        float(size),
        float(size * between(rng, 0.78, 1.0)),
        "round",
        density=between(rng, 0.25, 0.6),
        tint=tint(rng, 0.7, 0.25, 0.05),
        nuclei=(nucleus,),
        angle=turn(rng),
        rough=0.03,
        mottle=0.1,
        gradient=-0.1,
        rim=between(rng, 0, 0.12),
    )


def atrophic(rng: Rng) -> Look:
    """A benign look-alike: parabasal cell of atrophy, high N/C, dark but smooth and evenly stained nucleus."""
    size = between(rng, 11, 19)
    area = min(60 * rng.lognormal(0.0, 0.22), 0.62 * np.pi / 4 * size**2)
    nucleus = Nucleus(
        area=float(area),
        dark=between(rng, 0.8, 1.8),
        aspect=between(rng, 1.0, 1.45),
        angle=turn(rng),
        rough=0.012,
        coarse=between(rng, 0.03, 0.12),
        rim=between(rng, 0.0, 0.12),
        at=offset(rng, 0.6),
    )
    return Look(
        "parabasal",
        float(size),
        float(size * between(rng, 0.75, 1.0)),
        "round",
        density=between(rng, 0.2, 0.6),
        tint=tint(rng, 0.55, 0.35, 0.1),
        nuclei=(nucleus,),
        angle=turn(rng),
        rough=0.04,
        gradient=-0.1,
    )


def metaplastic(rng: Rng) -> Look:
    """15-30 um, dense cytoplasm with sharp, at times spidery edges, nucleus about 50 um2."""
    size = between(rng, 16, 30)
    nucleus = Nucleus(
        area=float(50 * rng.lognormal(0.05, 0.2)),
        dark=between(rng, 0.6, 1.3),
        aspect=between(rng, 1.0, 1.4),
        angle=turn(rng),
        rough=0.015,
        coarse=between(rng, 0.08, 0.2),
        rim=between(rng, 0.1, 0.3),
        nucleoli=int(rng.random() < 0.35),
        nucleolus=1.2,
        at=offset(rng, 1.6),
    )
    return Look(
        "metaplastic",
        float(size),
        float(size * between(rng, 0.65, 1.0)),
        "round",
        density=between(rng, 0.35, 0.75),
        tint=tint(rng, 0.7, 0.27, 0.03),
        nuclei=(nucleus,),
        angle=turn(rng),
        rough=between(rng, 0.04, 0.12),
        ragged=0.2,
        mottle=0.08,
        gradient=-0.25,
        rim=0.12,
        vacuoles=tuple(rng.uniform(0.8, 2.0, int(rng.integers(0, 3)))),
    )


def endocervical(rng: Rng) -> Look:
    """Columnar, 20-30 um long, basal nucleus about 50 um2, pale vacuolated cytoplasm."""
    length = between(rng, 18, 30)
    nucleus = Nucleus(
        area=float(50 * rng.lognormal(0.0, 0.16)),
        dark=between(rng, 0.55, 1.2),
        aspect=between(rng, 1.05, 1.4),
        rough=0.012,
        coarse=between(rng, 0.06, 0.2),
        rim=between(rng, 0.1, 0.3),
        nucleoli=int(rng.random() < 0.4),
        nucleolus=1.1,
        at=(float(between(rng, 0.08, 0.28) * length), 0.0),
    )
    return Look(
        "endocervical",
        float(length),
        between(rng, 8.5, 12.5),
        "column",
        density=between(rng, 0.15, 0.45),
        tint=tint(rng, 0.65, 0.3, 0.05),
        nuclei=(nucleus,),
        angle=turn(rng),
        mottle=0.25,
        gradient=0.0,
        vacuoles=tuple(rng.uniform(0.8, 2.2, int(rng.integers(0, 4)))),
        rim=0.08,
    )


def naked(rng: Rng) -> Look:
    """A degenerated bare nucleus: smooth, dark, structureless; clutter, not annotated."""
    nucleus = Nucleus(
        area=between(rng, 35, 95),
        dark=between(rng, 0.6, 1.6),
        aspect=between(rng, 1.0, 1.5),
        angle=turn(rng),
        rough=0.015,
        coarse=between(rng, 0, 0.08),
        rim=0.0,
    )
    return Look("", 4.0, 4.0, "round", density=0.0, tint=(1.0, 0.0, 0.0), nuclei=(nucleus,))
