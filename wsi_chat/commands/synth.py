"""The command ``wsi-chat synth``: renders synthetic cytology with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_chat.commands.console import say
from wsi_chat.datasets.cohort import render_cohort
from wsi_chat.datasets.render import render_fields
from wsi_chat.datasets.render.slide import render_slide
from wsi_chat.errors import OutputError, SettingError

synth = typer.Typer(help="Render synthetic cytology with known truth.", no_args_is_help=True, add_completion=False)

Seed = Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same result.")]
Mpp = Annotated[float, typer.Option(min=0.05, max=5.0, help="Resolution in µm/px.")]


@synth.command("slide")
def synth_slide(
    path: Annotated[Path, typer.Argument(help="Output file: .tiff (pyramidal JPEG) or .ome.zarr.")],
    width: Annotated[int, typer.Option(min=256, help="Level-0 size in pixels.")] = 8192,
    height: Annotated[int, typer.Option(min=256, help="Level-0 size in pixels.")] = 8192,
    mpp: Mpp = 0.5,
    recipe: Annotated[
        str, typer.Option(help="normal, hard_normal, organism, abnormal, sparse (one cell), or a class such as hsil.")
    ] = "abnormal",
    abnormal_cells: Annotated[int | None, typer.Option(min=0, help="Render exactly N abnormal cells.")] = None,
    density: Annotated[float, typer.Option(min=1.0, help="Cells or groups per mm² of deposit.")] = 250.0,
    seed: Seed = 0,
) -> None:
    """Render a liquid-based cervical preparation with its truth beside it (GeoJSON and JSON)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        render_slide(
            path, seed=seed, width_px=width, height_px=height, mpp=mpp, recipe=recipe, density=density,
            abnormal_cells=abnormal_cells,
        )  # fmt: skip
    except ValueError as error:
        raise SettingError(f"{error}.", hint="See wsi-chat synth slide --help.") from error
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.", hint="Choose another folder.") from error
    say(str(path))


@synth.command("fields")
def synth_fields(
    out: Annotated[Path, typer.Argument(help="Folder for the fields (PNG) and truth.json.")],
    n: Annotated[int, typer.Option("-n", "--fields", min=1, help="Number of fields.")] = 100,
    size: Annotated[int, typer.Option(min=64, max=4096, help="Side of a field in pixels.")] = 256,
    mpp: Mpp = 0.5,
    recipe: Annotated[
        str | None, typer.Option(help="normal, abnormal, organism, empty, hard_normal or single; default: a mix.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Render single fields of view with the box of every cell. Seeds count up from --seed."""
    try:
        truth = render_fields(out, seed, n, size=size, mpp=mpp, recipe=recipe)
    except ValueError as error:
        raise SettingError(f"{error}.", hint="See wsi-chat synth fields --help.") from error
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}.", hint="Choose another folder.") from error
    say(str(truth))


@synth.command("cohort")
def synth_cohort(
    out: Annotated[Path, typer.Argument(help="Folder for slides/, their truth and manifest.csv.")],
    slides: Annotated[int, typer.Option("-n", "--slides", min=1, help="Number of slides.")] = 20,
    width: Annotated[int, typer.Option(min=256, help="Level-0 size in pixels.")] = 8192,
    height: Annotated[int, typer.Option(min=256, help="Level-0 size in pixels.")] = 8192,
    mpp: Mpp = 0.5,
    density: Annotated[float, typer.Option(min=1.0, help="Cells or groups per mm² of deposit.")] = 250.0,
    format_: Annotated[str, typer.Option("--format", help=".tiff or .ome.zarr.")] = ".tiff",
    seed: Seed = 0,
) -> None:
    """Render a labelled cohort, from normal slides to one abnormal cell in a slide. Rerun to resume."""

    def progress(sample: str, rendered: bool) -> None:
        say(f"{sample}: {'rendered' if rendered else 'exists already'}", err=True)

    manifest = render_cohort(
        out, slides=slides, seed=seed, width_px=width, height_px=height, mpp=mpp, density=density, suffix=format_,
        progress=progress,
    )  # fmt: skip
    say(str(manifest))
