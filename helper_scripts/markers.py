"""Pages of which a command writes parts, each between two comments: <!-- NAME: begin --> and <!-- NAME: end -->."""

from __future__ import annotations

from pathlib import Path

from data import UserError
from data.files import atomic_write


def write_between_markers(path: Path, text: str, name: str) -> None:
    """Put `text` between the markers of that name, with the page's own line ends.

    Raises UserError if the file or a marker is missing, or it cannot be written; the file is then unchanged.
    """
    opening, closing = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        content = path.read_bytes().decode("utf-8")
        before, begin, rest = content.partition(opening)
        _, end, after = rest.partition(closing)
        if not end:
            raise UserError(f"{path} lacks the lines {opening} and {closing}; add them where the table has to be")
        new = f"{begin}\n{text}\n{end}".replace("\n", "\r\n" if "\r\n" in content else "\n")
        with atomic_write(path) as file:
            file.write(f"{before}{new}{after}".encode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', error)}") from None
