"""The committed notebooks, and that a notebook stops where a claim does not hold.

nbmake tests that they run from top to bottom.
"""

from __future__ import annotations

import base64
import json
import re
import struct

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NAMES = ("bigram-dev", "self-attention-dev", "layer-norm-dev", "modern-dev")

SHARP_HEADS = """
class SharpHeads(pre_norm.LanguageModel):
    def __init__(self, vocab_size, config):
        super().__init__(vocab_size, config)
        for block in self.blocks:
            block.attention.qkv.weight.data *= 4

pre_norm.LanguageModel = SharpHeads
"""
NO_TRAINING = """
from training.state import Evaluation
train = lambda *args: [Evaluation(0, 2.0, 2.0, 0.0)]
"""


@pytest.fixture(params=NAMES)
def notebook(request) -> dict:
    return json.loads((ROOT / "notebooks" / f"{request.param}.ipynb").read_text(encoding="utf-8"))


@pytest.fixture
def cells(notebook) -> list[dict]:
    return notebook["cells"]


def test_outputs_are_those_of_one_run_from_top_to_bottom(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert all(output.get("name") != "stderr" for output in outputs)  # no warning


def test_metadata_names_the_kernel_and_has_no_times(notebook):
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(cell["metadata"] == {} for cell in notebook["cells"])


def test_notebooks_contain_no_paths_of_the_machine(cells):
    for cell in cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # base64 may have any letters by chance
    assert not re.search(r"/home/|/Users/|/root|/work/|/tmp|site-packages|C:\\\\", json.dumps(cells))


def test_notebooks_use_the_projects_modules_and_link_to_files_that_exist(cells):
    source = "".join("".join(cell["source"]) for cell in cells)
    assert re.search(r"^from (data|stages|training)", source, flags=re.MULTILINE)
    links = re.findall(r"\]\(([^)#:]+)\)", source)
    assert links
    assert all((ROOT / "notebooks" / link).exists() for link in links)


def test_figures_have_a_readable_size(cells):
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = [base64.b64decode(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 4
    for figure in figures:
        width, height = struct.unpack(">II", figure[16:24])  # of a PNG
        assert 500 <= width <= 1600 and 250 <= height <= 1200


@pytest.mark.parametrize(
    ("name", "change", "claim"),
    [
        ("self-attention-dev", SHARP_HEADS, "below.max() < 0.15"),  # untrained heads are nearly uniform
        ("self-attention-dev", NO_TRAINING, 'perplexity["trained"] < perplexity["untrained"]'),
        ("layer-norm-dev", "post_norm.Block.forward = pre_norm.Block.forward", 'size["post_norm"]'),
        ("modern-dev", "rotary.apply_rotary = lambda x, cos, sin: x", "atan2(rotated"),
    ],
    ids=["sharp heads", "no training", "pre-norm as post-norm", "no rotation"],
)
def test_a_notebook_stops_where_its_claim_does_not_hold(name, change, claim):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    imports = next(number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(imports + 1, nbformat.v4.new_code_cell(change))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    with pytest.raises(CellExecutionError) as stop:
        client.execute()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stop.value.traceback).splitlines()
    assert stop.value.ename == "AssertionError"
    assert any(line.startswith("-") and claim in line for line in lines)  # ---> marks the line that failed
