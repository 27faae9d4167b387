"""Tables that people keep beside their pictures: CSV as spreadsheets write it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from wsi_chat.bounded import read_text
from wsi_chat.errors import DocumentError, SlideError

SEPARATORS = ",;\t|"
SEP_LINE = re.compile(r'\A"?sep=([,;\t|])"?[,;\s]*\Z', re.IGNORECASE)
"""The first line that Excel needs to open a file with another separator than its own."""


def read_table(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, column in lower case -> value) of each row that holds anything.

    Commas, semicolons, tabs or bars separate the columns, or what a first line ``sep=;`` says.

    Raises:
        SlideError: the file cannot be read as CSV.
    """
    try:
        text = read_text(file)
    except DocumentError as error:
        raise SlideError(error.message, hint="Give a UTF-8 CSV file.") from error
    lines = text.splitlines()
    stated = SEP_LINE.match(lines[0]) if lines else None
    if stated:
        text = text[len(lines[0]) :]
    header = next((line for line in lines[1 if stated else 0 :] if line.strip()), "")
    separator = stated[1] if stated else max(SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names: list[str] | None = None
    rows = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip().lower() for cell in cells]
                continue
            padded = [cell.strip() for cell in cells] + [""] * len(names)
            rows.append((reader.line_num, {name: padded[place] for place, name in enumerate(names) if name}))
    except csv.Error as error:
        raise SlideError(
            f"{file}, line {reader.line_num}: cannot be read as CSV ({error}).", hint="Give a UTF-8 CSV file."
        ) from error
    return rows
