"""Neighbouring rungs differ in what the upper one declares as its LESSON, and in nothing else."""

import ast
import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import MODULES, rung_id

import gpt
from stages import LADDER
from training import ScaledConfig, TrainConfig
from training.presets import PRESETS


def pairs(modules=MODULES):
    """Each rung with the one that it is compared with: the one it names as AFTER, else the one below it."""
    below = None
    for module in modules:
        if hasattr(module, "AFTER"):
            yield importlib.import_module(module.AFTER), module
            continue
        if below:
            yield below, module
        below = module


PAIRS = [pytest.param(lower, upper, id=rung_id(upper)) for lower, upper in pairs()]
SCALED = [module for module in MODULES if issubclass(module.Config, ScaledConfig)]


def definitions(source: str) -> dict[str, str]:
    """The source of every class without its methods, method and function, by qualified name, in the file's order.

    The text is compared, not the tree: a comment or a line break that differs is a difference too.
    """
    lines, found = source.splitlines(), {}

    def extent(node):
        return range(min(part.lineno for part in (node, *node.decorator_list)), node.end_lineno + 1)

    def text(node, leave_out=()):
        gone = {line for inner in leave_out for line in extent(inner)}
        return "\n".join(lines[n - 1] for n in extent(node) if n not in gone).rstrip()

    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found[node.name] = text(node, leave_out=methods)
            found |= {f"{node.name}.{method.name}": text(method) for method in methods}
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = text(node)
    return found


def differing(lower: str, upper: str) -> set[str]:
    """Names of the definitions that differ; a class that only one of them has counts as one."""
    one, other = definitions(lower), definitions(upper)
    names = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    whole = {name for name in names if "." not in name and (name not in one or name not in other)}
    return {name for name in names if name.partition(".")[0] not in whole} | whole


def source(module) -> str:
    return Path(module.__file__).read_text(encoding="utf-8")


def settings(config_type) -> list[tuple]:
    """Each setting with its value in the rung's own settings and in each preset."""
    starts = [
        config_type.from_preset(preset)
        for preset in (None, *(PRESETS if issubclass(config_type, ScaledConfig) else ()))
    ]
    return [(field.name, [getattr(start, field.name) for start in starts]) for field in fields(config_type)]


@pytest.mark.parametrize(("lower", "upper"), PAIRS)
def test_neighbours_differ_in_the_lesson_alone(lower, upper):
    found = differing(source(lower), source(upper))
    if {lower, upper} <= set(SCALED):  # their settings stand in one place, and are compared by value
        found -= {"Config"} if settings(lower.Config) == settings(upper.Config) else set()
    assert found == set(upper.LESSON)
    one, other = list(definitions(source(lower))), list(definitions(source(upper)))
    assert [name for name in one if name in other] == [name for name in other if name in one]  # in the same order


def test_the_settings_in_rung_8s_file_are_those_of_all_scaled_rungs():
    assert settings(gpt.Config) == settings(ScaledConfig)
    for module in SCALED:
        restated = inspect.get_annotations(module.Config).keys() & vars(ScaledConfig()).keys()
        assert module is gpt or not restated, module.__name__


@pytest.mark.parametrize(("lower", "upper"), PAIRS)
def test_neighbours_have_the_same_imports_and_last_lines(lower, upper):
    """The upper rung may import more, and another base class for its Config; the last two lines are the same."""

    def imports_and_rest(module):
        body = [n for n in ast.parse(source(module)).body[1:] if not isinstance(n, ast.ClassDef | ast.FunctionDef)]
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        rest = [ast.unparse(node) for node in body if node not in imports]
        found = {(getattr(node, "module", None), alias.name) for node in imports for alias in node.names}
        return found, [line for line in rest if not line.startswith(("LESSON = ", "AFTER = "))]

    (imported, rest), (more, other) = imports_and_rest(lower), imports_and_rest(upper)
    config = {("dataclasses", "dataclass"), ("training", TrainConfig.__name__), ("training", ScaledConfig.__name__)}
    assert imported - more <= config
    assert not {module for module, _ in more} & set(LADDER)  # no rung imports another
    assert rest == other and len(rest) == 1 and rest[0].startswith("if __name__ == '__main__':")


@pytest.mark.parametrize("module", MODULES, ids=rung_id)
def test_a_rungs_docstring_says_what_it_adds(module):
    first, *rest = (module.__doc__ or "").splitlines()
    assert re.fullmatch(r"(Rung|Beside rung) \d+, .+: .+\.", first)  # what follows the colon describes it in tables
    assert any(line.startswith("In the curve") for line in rest)
