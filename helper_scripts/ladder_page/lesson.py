"""What a rung's file says and changes, and the shapes of its model."""

from __future__ import annotations

import ast
import difflib
import re

import torch
import torchinfo
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from torchinfo.layer_info import LayerInfo

from helper_scripts.models import Trained, rung_path

CONTEXT = 2  # unchanged lines to show around a change
DEFINITION = re.compile(r"(?P<indent>\s*)(?:class|def) (?P<name>\w+)")
# what Pygments tells apart but the stylesheet does not: names, punctuation, operators, white space
PLAIN = re.compile(r'<span class="(?:n|p|o|w|bp|nb|nn|si|vm)">(.*?)</span>')


def explanation(rung: str) -> tuple[str, list[str]]:
    """The first line of the rung's docstring, and the paragraphs after it."""
    docstring = ast.get_docstring(ast.parse(rung_path(rung).read_text(encoding="utf-8"))) or rung
    title, *paragraphs = re.split(r"\n\s*\n", docstring.replace("-\n", "-"))  # "sub-" and "layer", on two lines
    return " ".join(title.split()).rstrip("."), [" ".join(paragraph.split()) for paragraph in paragraphs]


def diff(rung: str, before: str | None) -> list[dict]:
    """Lines of the rung's code, {"sign", "html"}: what differs from the rung before, and a little around it.

    sign: "+", "-", " ", or "…" where lines are left out. Of a rung with none before it, all of its lines.
    """
    new = _code(rung)
    if before is None:
        return _without_blank_ends([{"sign": " ", "html": html} for _, html in new])
    old, lines = _code(before), []
    matcher = difflib.SequenceMatcher(None, [text for text, _ in old], [text for text, _ in new], autojunk=False)
    for number, group in enumerate(matcher.get_grouped_opcodes(CONTEXT)):
        start = group[0][3]
        if number or start:
            lines.append({"sign": "…", "html": _within([text for text, _ in new[:start]])})
        hunk = []
        for tag, i, i_end, j, j_end in group:
            hunk += [{"sign": "-", "html": html} for _, html in old[i:i_end] if tag != "equal"]
            hunk += [{"sign": " " if tag == "equal" else "+", "html": html} for _, html in new[j:j_end]]
        lines += _without_blank_ends(hunk)
    return lines


def _without_blank_ends(lines: list[dict]) -> list[dict]:
    kept = [number for number, line in enumerate(lines) if line["html"] or line["sign"] == "-"]
    return lines[kept[0] : kept[-1] + 1]


def _within(lines: list[str]) -> str:
    """The definition that the line after `lines` is in: "Block.forward"."""
    names = []
    for definition in filter(None, map(DEFINITION.match, lines)):
        names[len(definition["indent"]) // 4 :] = [definition["name"]]
    return ".".join(names)


def _code(rung: str) -> list[tuple[str, Markup]]:
    """The lines of a rung's file, plain and highlighted, without its docstring and without what tests alone read."""
    source = rung_path(rung).read_text(encoding="utf-8")
    lines = source.splitlines()
    coloured = PLAIN.sub(r"\1", highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))).splitlines()
    for node in reversed(ast.parse(source).body):
        names = [getattr(target, "id", "") for target in getattr(node, "targets", [])]
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or {"LESSON", "AFTER"} & set(names):
            del lines[node.lineno - 1 : node.end_lineno], coloured[node.lineno - 1 : node.end_lineno]
    return list(zip(lines, map(Markup, coloured), strict=True))


def shapes(trained: Trained) -> list[dict]:
    """Each layer of the model, in the order in which they run: its name, what comes out of it, its parameters.

    A layer that runs in every block is there once, with the number of blocks.
    """
    seen = {}
    idx = torch.zeros(1, trained.config.block_size, dtype=torch.long)
    for layer in torchinfo.summary(trained.model, input_data=idx, device="cpu", verbose=0).summary_list:
        if layer.is_leaf_layer and layer.num_params:
            name = re.sub(r"\.\d+\.", "[i].", _path(layer))
            row = seen.setdefault(name, {"name": name, "kind": layer.class_name, "times": 0})
            row |= {"times": row["times"] + 1, "shape": tuple(layer.output_size), "parameters": layer.num_params}
    return list(seen.values())


def _path(layer: LayerInfo) -> str:
    """Its name in the model: "blocks.0.norm1"."""
    above = layer.parent_info
    return f"{_path(above)}.{layer.var_name}" if above and above.depth else layer.var_name
