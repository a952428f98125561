"""The notebooks as they are committed. That they run from top to bottom is nbmake's to show."""

from __future__ import annotations

import base64
import json
import re
import struct

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def cells(request) -> list[dict]:
    return json.loads(request.param.read_text(encoding="utf-8"))["cells"]


def test_there_are_four():
    assert {path.name for path in NOTEBOOKS} >= {
        "bigram-dev.ipynb",
        "self-attention-dev.ipynb",
        "layer-norm-dev.ipynb",
        "modern-dev.ipynb",
    }


def test_outputs_are_those_of_one_run_from_top_to_bottom(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}  # no error
    assert all(output.get("name") != "stderr" for cell in code for output in cell["outputs"])  # no warning


def test_nothing_of_the_machine_is_in_them(cells):
    for cell in cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # in which any letters may stand by chance
    written = json.dumps(cells)
    assert not re.search(r"/home/|/Users/|/root|/work/|/tmp|site-packages|C:\\\\", written)


def test_the_projects_modules_are_imported_and_rungs_named(cells):
    source = "".join("".join(cell["source"]) for cell in cells)
    assert re.search(r"^from (data|stages|training)", source, flags=re.MULTILINE)
    assert "**From here:**" in source


def test_figures_are_of_a_size_to_read(cells):
    figures = [
        base64.b64decode(output["data"]["image/png"])
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) >= 4
    for figure in figures:
        width, height = struct.unpack(">II", figure[16:24])  # of a PNG
        assert 500 <= width <= 1600 and 250 <= height <= 1200
