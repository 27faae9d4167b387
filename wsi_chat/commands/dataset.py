"""The commands ``wsi-chat synth`` and ``wsi-chat dataset``: parse, call, print; heavy imports inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsi_chat.dialects import Dialect

synth = typer.Typer(help="Render synthetic cytology with known truth.", no_args_is_help=True)
dataset = typer.Typer(help="Build instruction data from annotations, and check it.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]
Mpp = Annotated[float, typer.Option(min=0.05, max=5.0, help="um/px.")]


@synth.command("slide")
def synth_slide(
    path: Annotated[Path, typer.Argument(help="Where to write: .tiff (pyramidal JPEG) or .ome.zarr.")],
    width: Annotated[int, typer.Option(min=256, help="Level-0 pixels.")] = 8192,
    height: Annotated[int, typer.Option(min=256, help="Level-0 pixels.")] = 8192,
    mpp: Mpp = 0.5,
    recipe: Annotated[
        str, typer.Option(help="normal, hard_normal, organism, abnormal, sparse (one cell), or a class such as hsil.")
    ] = "abnormal",
    abnormal_cells: Annotated[int | None, typer.Option(min=0, help="Exactly so many abnormal cells.")] = None,
    density: Annotated[float, typer.Option(min=1.0, help="Cells or groups per mm2 of deposit.")] = 250.0,
    seed: Seed = 0,
) -> None:
    """Render a liquid-based cervical preparation with its truth beside it (GeoJSON and JSON)."""
    from wsi_chat.datasets.render.slide import render_slide
    from wsi_chat.errors import OutputError, SettingError

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
    typer.echo(str(path))


@synth.command("fields")
def synth_fields(
    out: Annotated[Path, typer.Argument(help="Folder for the fields (PNG) and truth.json.")],
    n: Annotated[int, typer.Option("-n", "--fields", min=1, help="How many fields.")] = 100,
    size: Annotated[int, typer.Option(min=64, max=4096, help="Side in pixels.")] = 256,
    mpp: Mpp = 0.5,
    recipe: Annotated[
        str | None, typer.Option(help="normal, abnormal, organism, empty, hard_normal or single; default: a mix.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Render single fields of view with the box of every cell. Seeds count up from --seed."""
    from wsi_chat.datasets.render import render_fields
    from wsi_chat.errors import OutputError, SettingError

    try:
        truth = render_fields(out, seed, n, size=size, mpp=mpp, recipe=recipe)
    except ValueError as error:
        raise SettingError(f"{error}.", hint="See wsi-chat synth fields --help.") from error
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}.", hint="Choose another folder.") from error
    typer.echo(str(truth))


@synth.command("cohort")
def synth_cohort(
    out: Annotated[Path, typer.Argument(help="Folder for slides/, their truth and manifest.csv.")],
    slides: Annotated[int, typer.Option("-n", "--slides", min=1, help="How many slides.")] = 20,
    width: Annotated[int, typer.Option(min=256, help="Level-0 pixels.")] = 8192,
    height: Annotated[int, typer.Option(min=256, help="Level-0 pixels.")] = 8192,
    mpp: Mpp = 0.5,
    density: Annotated[float, typer.Option(min=1.0, help="Cells or groups per mm2 of deposit.")] = 250.0,
    format_: Annotated[str, typer.Option("--format", help=".tiff or .ome.zarr.")] = ".tiff",
    seed: Seed = 0,
) -> None:
    """Render a labelled cohort, from normal slides to one abnormal cell in a slide. A rerun goes on."""
    from wsi_chat.datasets.cohort import render_cohort

    def progress(sample: str, rendered: bool) -> None:
        typer.echo(f"{sample}: {'rendered' if rendered else 'there already'}", err=True)

    manifest = render_cohort(
        out, slides=slides, seed=seed, width_px=width, height_px=height, mpp=mpp, density=density, suffix=format_,
        progress=progress,
    )  # fmt: skip
    typer.echo(str(manifest))


@dataset.command("build")
def dataset_build(
    out: Annotated[Path, typer.Argument(help="Folder for the JSONL files, dataset_info.json and images/.")],
    voc: Annotated[list[Path] | None, typer.Option(help="Folder with VOC XML and pictures.")] = None,
    coco: Annotated[list[Path] | None, typer.Option(help="COCO detection JSON; pictures beside it.")] = None,
    geojson: Annotated[list[Path] | None, typer.Option(help="QuPath GeoJSON; its slide by --slide.")] = None,
    slide: Annotated[list[Path] | None, typer.Option(help="The slide of each --geojson, in order.")] = None,
    rendered: Annotated[list[Path] | None, typer.Option(help="truth.json of synth fields or *.truth.json.")] = None,
    captions: Annotated[list[Path] | None, typer.Option(help="CSV: image,caption or image,question,answer.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures of --coco.")] = None,
    dialect: Annotated[str, typer.Option(help="Whose words and boxes: a name or a YAML file.")] = "cytochat",
    specimen: Annotated[str | None, typer.Option(help="Reporting system, e.g. cervix or blood-smear.")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="OLD=NEW class name, e.g. Platelets=platelet.")] = None,
    benign: Annotated[list[str] | None, typer.Option(help="A class that is harmless and in no category.")] = None,
    patients: Annotated[
        Path | None, typer.Option(help="CSV image,patient or a cohort manifest: who stays in one split.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Not every object is annotated: no counts.")] = False,
    keep_lists: Annotated[bool, typer.Option("--keep-lists", help="Use the VOC data set's own lists.")] = False,
    split: Annotated[str, typer.Option(help="Shares of the splits.")] = "train=0.8,val=0.1,test=0.1",
    tile_px: Annotated[int | None, typer.Option(help="Side of tiles cut from slides. Default: the dialect's.")] = None,
    tile_mpp: Annotated[float | None, typer.Option(help="Their um/px. Default: the specimen's.")] = None,
    slide_mpp: Annotated[float | None, typer.Option(help="um/px of the slides' level 0, over what they say.")] = None,
    negatives: Annotated[float, typer.Option(min=0.0, help="Empty tiles per tile with an object.")] = 1.0,
    kind: Annotated[list[str] | None, typer.Option(help="Only these kinds of question.")] = None,
    per_kind: Annotated[int, typer.Option(min=1, help="Most questions of one kind per picture.")] = 2,
    most_boxes: Annotated[int, typer.Option(min=1, help="Longest list of boxes to ask for.")] = 24,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "cytology",
    seed: Seed = 0,
    png: Annotated[bool, typer.Option("--png", help="Lossless pictures.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier build.")] = False,
    rewrite: Annotated[
        str | None, typer.Option(help="Checkpoint that says the wordings differently; what it distorts is not taken.")
    ] = None,
    rewrite_engine: Annotated[str, typer.Option(help="Which engine runs it.")] = "auto",
    rewrite_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the texts offered to it.")] = 0.5,
    rewrite_cache: Annotated[
        Path | None, typer.Option(help="Journal of its answers. Default: OUT with .rewrites.sqlite.")
    ] = None,
    json_: Json = False,
) -> None:
    """Build ShareGPT JSONL and dataset_info.json from annotations, split by patient or slide."""
    from wsi_chat.datasets.build import build_dataset
    from wsi_chat.datasets.collect import Sources, collect
    from wsi_chat.datasets.questions import KINDS
    from wsi_chat.datasets.rewrite import rewriting
    from wsi_chat.datasets.splits import parse_fractions
    from wsi_chat.datasets.wordings import Names
    from wsi_chat.terminology import load_system

    spoken = _dialect(dialect)
    system = load_system(specimen)
    pictures = collect(
        Sources(
            voc=tuple(voc or ()), coco=tuple(coco or ()), geojson=tuple(geojson or ()), slides=tuple(slide or ()),
            rendered=tuple(rendered or ()), captions=tuple(captions or ()), images=images, patients=patients,
        ),
        dialect=spoken, rename=tuple(rename or ()), exhaustive=not partial, keep_lists=keep_lists,
        tile_px=tile_px or spoken.tile_px, tile_mpp=tile_mpp or spoken.mpp_for(system), slide_mpp=slide_mpp,
        negatives=negatives, seed=seed,
    )  # fmt: skip
    names = Names(system, benign=benign or ())
    cache = rewrite_cache or out.with_name(f"{out.name}.rewrites.sqlite")
    labels = {found.label for picture in pictures for found in picture.boxes}
    with rewriting(
        rewrite, spoken, names, labels, engine=rewrite_engine, share=rewrite_share, cache=cache, seed=seed
    ) as rewriter:
        built = build_dataset(
            pictures, out, dialect=spoken, names=names, name=name, fractions=parse_fractions(split), seed=seed,
            kinds=tuple(kind or KINDS), per_kind=per_kind, most_boxes=most_boxes, lossless=png, overwrite=overwrite,
            rewriter=rewriter,
        )  # fmt: skip
    if json_:
        import json

        payload = {"out": str(out), "lines": built.lines, "pictures": built.pictures, "kinds": built.kinds}
        typer.echo(json.dumps({**payload, "silent": built.silent, "rewritten": built.rewritten}, indent=2))
        return
    for part, number in built.lines.items():
        typer.echo(f"{out / f'{name}_{part}.jsonl'}: {number} conversations about {built.pictures[part]} pictures")
    typer.echo(", ".join(f"{number} {kind_}" for kind_, number in built.kinds.items()))
    if built.rewritten:
        told = built.rewritten
        why = ", ".join(f"{number} {reason}" for reason, number in told["template_stays"].items())
        typer.echo(f"{told['kept']} of {told['tried']} wordings rewritten; the template stays: {why or 'nowhere'}")
    if built.silent:
        typer.echo(f"nothing was asked about {built.silent} pictures", err=True)


@dataset.command("check")
def dataset_check(
    file: Annotated[Path, typer.Argument(help="A ShareGPT JSONL file.")],
    dialect: Annotated[str | None, typer.Option(help="Whose boxes it holds. Default: as it was built.")] = None,
    json_: Json = False,
) -> None:
    """Say what is wrong with a JSONL, line by line. Exit 0: nothing; 1: something; 2: usage."""
    from wsi_chat.datasets.check import check_file

    checked = check_file(file, dialect=_dialect(dialect) if dialect else None)
    if json_:
        import json

        typer.echo(json.dumps(checked.payload(), indent=2, ensure_ascii=True))
    else:
        for problem in checked.problems:
            where = f"{file}:{problem.line}" if problem.line else str(file)
            typer.echo(f"{where}: {problem.kind}: {problem.message}")
        counts = ", ".join(f"{number} {kind}" for kind, number in checked.counts.items())
        typer.echo(f"{checked.lines} lines: {counts or 'nothing wrong'}")
    if checked.problems:
        raise typer.Exit(1)


def _dialect(name: str) -> Dialect:
    from wsi_chat.dialects import get_dialect, load_dialect

    return load_dialect(Path(name)) if name.endswith((".yaml", ".yml")) else get_dialect(name)
