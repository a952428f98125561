"""The notebooks as they are committed. That they run from top to bottom is nbmake's to show."""

from __future__ import annotations

import base64
import json
import re
import struct

import pytest
from conftest import ROOT

NAMES = ("bigram-dev", "self-attention-dev", "layer-norm-dev", "modern-dev")


@pytest.fixture(params=NAMES)
def cells(request) -> list[dict]:
    return json.loads((ROOT / "notebooks" / f"{request.param}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_outputs_are_those_of_one_run_from_top_to_bottom(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert all(output.get("name") != "stderr" for output in outputs)  # no warning


def test_nothing_of_the_machine_is_in_them(cells):
    for cell in cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # in which any letters may stand by chance
    assert not re.search(r"/home/|/Users/|/root|/work/|/tmp|site-packages|C:\\\\", json.dumps(cells))


def test_they_use_the_projects_modules_and_link_to_files_that_exist(cells):
    source = "".join("".join(cell["source"]) for cell in cells)
    assert re.search(r"^from (data|stages|training)", source, flags=re.MULTILINE)
    links = re.findall(r"\]\(([^)#:]+)\)", source)
    assert links
    assert all((ROOT / "notebooks" / link).exists() for link in links)


def test_figures_are_of_a_size_to_read(cells):
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = [base64.b64decode(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 4
    for figure in figures:
        width, height = struct.unpack(">II", figure[16:24])  # of a PNG
        assert 500 <= width <= 1600 and 250 <= height <= 1200
