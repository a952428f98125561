"""Files that are written whole, or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from data import UserError


def write_whole(path: Path, content: bytes, advice: str) -> None:
    """Put `content` at `path`. Raises UserError, with `advice`, where that fails; what was there then stays."""
    path = path.resolve()  # of a link, the file that it leads to
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)  # gone already where all went well
