"""The page from its template, with everything inside it that it needs."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PARTS = Path(__file__).resolve().parent
INLINE = ("page.css", "models.js", "views.js")


def fill(contents: dict) -> bytes:
    """The page as UTF-8. contents: "entries", "passages", "data" and "models", as page.py makes them."""
    environment = Environment(
        loader=FileSystemLoader(PARTS, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inline = {name: (PARTS / name).read_text(encoding="utf-8") for name in INLINE}
    page = environment.get_template("template.html").render(
        entries=contents["entries"],
        passages=contents["passages"],
        data=in_script(contents["data"]),
        models={rung: in_script(model) for rung, model in contents["models"].items()},
        vocab_size=len(contents["data"]["alphabet"]),
        uniform_loss=math.log(len(contents["data"]["alphabet"])),
        inline=inline,
        hashes={name: _hash(text) for name, text in inline.items()},
    )
    return page.encode("utf-8")


def in_script(value: dict) -> str:
    """JSON that no browser takes for the end of the element it is in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names the one script or style that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
