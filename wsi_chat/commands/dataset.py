"""The command ``wsi-chat dataset``: builds instruction data from annotations, and checks it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_chat.commands.console import say, say_json
from wsi_chat.commands.options import UNDERSCORES, Json
from wsi_chat.datasets.build import build_dataset
from wsi_chat.datasets.check import check_file
from wsi_chat.datasets.collect import Sources, collect
from wsi_chat.datasets.questions import KINDS
from wsi_chat.datasets.rewrite import rewriting
from wsi_chat.datasets.splits import parse_fractions
from wsi_chat.datasets.wordings import Names
from wsi_chat.dialects import get_dialect
from wsi_chat.remarks import counted
from wsi_chat.terminology import load_system

dataset = typer.Typer(
    help="Build instruction data from annotations, and check it.", no_args_is_help=True, add_completion=False
)

Seed = Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same result.")]


@dataset.command("build")
def dataset_build(
    out: Annotated[Path, typer.Argument(help="Folder for the JSONL files, dataset_info.json and images/.")],
    voc: Annotated[list[Path] | None, typer.Option(help="Folder with VOC XML and pictures.")] = None,
    coco: Annotated[list[Path] | None, typer.Option(help="COCO detection JSON; pictures beside it.")] = None,
    geojson: Annotated[list[Path] | None, typer.Option(help="QuPath GeoJSON; name its slide with --slide.")] = None,
    slide: Annotated[list[Path] | None, typer.Option(help="The slide of each --geojson, in order.")] = None,
    rendered: Annotated[
        list[Path] | None, typer.Option(help="truth.json of synth fields, or a slide's *.truth.json.")
    ] = None,
    captions: Annotated[
        list[Path] | None, typer.Option(help="CSV with image,caption or image,question,answer.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures of --coco.")] = None,
    dialect: Annotated[str, typer.Option(help="Prompt and box format: a name or a YAML file.")] = "cytochat",
    specimen: Annotated[str | None, typer.Option(help="Reporting system, e.g. cervix or blood-smear.")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="OLD=NEW class name, e.g. Platelets=platelet.")] = None,
    benign: Annotated[list[str] | None, typer.Option(help="A benign class that belongs to no category.")] = None,
    patients: Annotated[
        Path | None,
        typer.Option(help="CSV of image,patient, or a cohort manifest: pictures of one patient stay in one split."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Not every object is annotated, so ask for no counts.")
    ] = False,
    keep_lists: Annotated[bool, typer.Option("--keep-lists", help="Use the split lists of the VOC data set.")] = False,
    split: Annotated[str, typer.Option(help="Shares of the splits.")] = "train=0.8,val=0.1,test=0.1",
    tile_px: Annotated[int | None, typer.Option(help="Side of tiles cut from slides. Default: the dialect's.")] = None,
    tile_mpp: Annotated[
        float | None, typer.Option(help="Resolution of those tiles in µm/px. Default: the specimen's.")
    ] = None,
    slide_mpp: Annotated[
        float | None, typer.Option(help="Level-0 resolution of the slides in µm/px; overrides their metadata.")
    ] = None,
    negatives: Annotated[float, typer.Option(min=0.0, help="Number of empty tiles per tile with an object.")] = 1.0,
    kind: Annotated[
        list[str] | None, typer.Option(help=f"Ask only questions of this kind: {', '.join(KINDS)}. May be repeated.")
    ] = None,
    per_kind: Annotated[int, typer.Option(min=1, help="At most N questions of one kind per picture.")] = 2,
    most_boxes: Annotated[int, typer.Option(min=1, help="At most N boxes in one answer.")] = 24,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "cytology",
    seed: Seed = 0,
    png: Annotated[bool, typer.Option("--png", help="Write lossless pictures (PNG).")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier build.")] = False,
    rewrite: Annotated[
        str | None,
        typer.Option(help="Checkpoint that rephrases questions and answers; a text whose meaning changes is not used."),
    ] = None,
    rewrite_engine: Annotated[str, typer.Option(help="Engine that runs it.")] = "auto",
    rewrite_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Fraction of the texts offered to it.")] = 0.5,
    rewrite_cache: Annotated[
        Path | None, typer.Option(help="Journal of its answers. Default: OUT with .rewrites.sqlite.")
    ] = None,
    json_: Json = False,
) -> None:
    """Build ShareGPT JSONL and dataset_info.json from annotations, split by patient or slide."""
    spoken = get_dialect(dialect)
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
        payload = {"out": str(out), "lines": built.lines, "pictures": built.pictures, "kinds": built.kinds}
        say_json({**payload, "silent": built.silent, "rewritten": built.rewritten})
        return
    for part, number in built.lines.items():
        say(
            f"{out / f'{name}_{part}.jsonl'}: {counted(number, 'conversation')} about "
            f"{counted(built.pictures[part], 'picture')}"
        )
    say(", ".join(f"{number} {kind_}" for kind_, number in built.kinds.items()))
    if built.rewritten:
        counts = built.rewritten
        why = ", ".join(f"{number} {reason}" for reason, number in counts["template_stays"].items())
        unchanged = f"; unchanged: {why}" if why else ""
        say(f"{counts['kept']} of {counted(counts['tried'], 'wording')} rewritten{unchanged}")
    if built.silent:
        say(f"nothing was asked about {counted(built.silent, 'picture')}", err=True)


@dataset.command("check", context_settings=UNDERSCORES)
def dataset_check(
    file: Annotated[str, typer.Argument(help="A .jsonl or .json file, or a name in dataset_info.json.")],
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder with dataset_info.json. Default: data.")] = None,
    media_dir: Annotated[
        Path | None, typer.Option(help="Folder of the pictures. Default: --dataset-dir, then the file's own.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="Box format of the file: a dialect. Default: the one it was built with.")
    ] = None,
    json_: Json = False,
) -> None:
    """List what is wrong with a data set, line by line. Exits with 1 if anything is."""
    checked = check_file(file, folder=dataset_dir, media=media_dir, dialect=get_dialect(dialect) if dialect else None)
    if json_:
        say_json(checked.payload())
    else:
        for problem in checked.problems:
            where = f"{file}:{problem.line}" if problem.line else file
            say(f"{where}: {problem.kind}: {problem.message}")
        counts = ", ".join(f"{number} {kind}" for kind, number in checked.counts.items())
        say(f"{counted(checked.lines, 'line')}: {counts or 'nothing wrong'}")
    if checked.problems:
        raise typer.Exit(1)
