"""A conversation as it is saved: one record per exchange, as JSON that reads back and as Markdown to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ValidationError

from wsi_chat.atomic import write_text
from wsi_chat.errors import OutputError, whole_text
from wsi_chat.schema import DISCLAIMER, Box, LabelledBox, Record

TRANSCRIPT_VERSION = "1.0"


class Reply(Record):
    """One exchange. ``source`` says who answered: the slide's ``record``, the ``model``, or the ``program`` itself.

    ``cites`` are ids of tiles and findings of the record, checked to exist. ``region`` is what the model was shown
    and ``boxes`` what it located, in level-0 pixels.
    """

    question: Annotated[str, AfterValidator(whole_text)]
    text: str
    source: Literal["record", "model", "program"]
    task: str = ""
    cites: tuple[str, ...] = ()
    region: Box | None = None
    mpp: float | None = None
    boxes: tuple[LabelledBox, ...] = ()
    probabilities: dict[str, float] | None = None
    status: Literal["ok", "truncated", "failed"] = "ok"
    notes: tuple[str, ...] = ()


class Transcript(Record):
    """A whole conversation. ``about`` is the slide's id, or the file's name where there is no run folder."""

    version: str = TRANSCRIPT_VERSION
    disclaimer: str = DISCLAIMER
    about: str
    fingerprint: str = ""
    model: str
    dialect: str
    replies: tuple[Reply, ...] = ()


def write_transcript(transcript: Transcript, path: Path) -> tuple[Path, Path]:
    """Write ``<path>.json`` and ``<path>.md`` (a suffix .json or .md in ``path`` is taken off first).

    Raises:
        OutputError: a file cannot be written.
    """
    stem = path.with_suffix("") if path.suffix in (".json", ".md") else path
    data, text = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.md")
    write_text(data, transcript.model_dump_json(indent=2) + "\n", parents=False)
    write_text(text, as_markdown(transcript), parents=False)
    return data, text


def read_transcript(path: Path | str) -> Transcript:
    """Read a saved conversation back. Raises OutputError where the file is none."""
    path = Path(path)
    try:
        return Transcript.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be read: {error}.", hint="Name the .json that /save wrote.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise OutputError(
            f"{path} is not a conversation of version {TRANSCRIPT_VERSION}: {place}: {first['msg']}.",
            hint="Name the .json that /save wrote.",
        ) from error


def as_markdown(transcript: Transcript) -> str:
    """The conversation for people: question, answer, what was shown, who answered, what is cited."""
    lines = [f"# Conversation about {transcript.about}", "", f"*{transcript.disclaimer}*", ""]
    lines += [f"Model: {transcript.model}, asked in the dialect {transcript.dialect}.", ""]
    for reply in transcript.replies:
        lines += [f"**> {_plain(reply.question)}**", "", _plain(reply.text), ""]
        facts = [f"answered by the {reply.source}" + (f" ({reply.task})" if reply.task else "")]
        if reply.region is not None:
            shown = " ".join(f"{v:g}" for v in (reply.region.x0, reply.region.y0, reply.region.x1, reply.region.y1))
            facts.append(f"shown: {shown} (level-0 px)" + (f" at {reply.mpp:.3g} µm/px" if reply.mpp else ""))
        if reply.probabilities:
            facts.append(", ".join(f"{option} {p:.3f}" for option, p in reply.probabilities.items()))
        if reply.cites:
            facts.append(f"cites {', '.join(reply.cites)}")
        facts += reply.notes
        lines += [f"<sub>{_plain('; '.join(facts))}</sub>", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, with its line breaks."""
    for mark in ("\\", "`", "*", "_", "<", ">", "#", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", "  \n")
