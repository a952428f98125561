"""Pages of which a command writes parts, each between two comments: <!-- NAME: begin --> and <!-- NAME: end -->."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data import UserError
from data.files import atomic_write


def write_between_markers(path: Path, texts: Mapping[str, str]) -> None:
    """Put each text between the markers of its name, with the page's own line ends.

    Raises UserError if the file or a marker is missing, or it cannot be written; the file is then unchanged.
    """
    try:
        page = path.read_bytes().decode("utf-8")
        for name, text in texts.items():
            opening, closing = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
            before, begin, rest = page.partition(opening)
            _, end, after = rest.partition(closing)
            if not end:
                raise UserError(f"{path} lacks the lines {opening} and {closing}; add them where the text has to be")
            new = f"{begin}\n{text}\n{end}".replace("\n", "\r\n" if "\r\n" in page else "\n")
            page = f"{before}{new}{after}"
        with atomic_write(path) as file:
            file.write(page.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', error)}") from None
