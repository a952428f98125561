"""Neighbouring rungs differ in what the upper one declares as its LESSON, and in nothing else."""

import ast
import importlib
import itertools
import re
from pathlib import Path

import pytest
from conftest import MODULES, rung_id


def below(above, upper):
    """The rung that `upper` is compared with: the one above it on the ladder, or the one it names as AFTER."""
    return importlib.import_module(upper.AFTER) if hasattr(upper, "AFTER") else above


PAIRS = [pytest.param(below(above, upper), upper, id=rung_id(upper)) for above, upper in itertools.pairwise(MODULES)]


def definitions(source: str) -> dict[str, str]:
    """The source of every class without its methods, method and function, by qualified name, in the file's order.

    The text is compared, not the tree: a comment or a line break that differs is a difference too.
    """
    lines, found = source.splitlines(), {}

    def text(node, leave_out=()):
        first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
        gone = {line for inner in leave_out for line in range(inner.lineno, inner.end_lineno + 1)}
        return "\n".join(lines[n - 1] for n in range(first, node.end_lineno + 1) if n not in gone).rstrip()

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


@pytest.mark.parametrize(("lower", "upper"), PAIRS)
def test_neighbours_differ_in_the_lesson_alone(lower, upper):
    assert differing(source(lower), source(upper)) == set(upper.LESSON)


@pytest.mark.parametrize(("lower", "upper"), PAIRS)
def test_neighbours_keep_the_same_order(lower, upper):
    one, other = list(definitions(source(lower))), list(definitions(source(upper)))
    assert [name for name in one if name in other] == [name for name in other if name in one]


@pytest.mark.parametrize(("lower", "upper"), PAIRS)
def test_neighbours_keep_the_same_frame(lower, upper):
    """Imports, constants and the last two lines: an upper rung may import more, and no rung imports another."""

    def frame(module):
        kept = [n for n in ast.parse(source(module)).body if not isinstance(n, ast.ClassDef | ast.FunctionDef)]
        text = [ast.unparse(node) for node in kept[1:]]  # without the docstring
        return [line for line in text if not line.startswith(("LESSON", "AFTER"))]

    one, other = frame(lower), frame(upper)
    assert one == [line for line in other if line in one]
    assert all(line.startswith(("import ", "from ")) for line in other if line not in one)
    assert other[-1].startswith("if __name__ == '__main__':")


@pytest.mark.parametrize("module", MODULES, ids=rung_id)
def test_a_rung_says_what_it_adds(module):
    first, *rest = (module.__doc__ or "").splitlines()
    assert re.fullmatch(r"Rung \d+, .+: .+\.", first)  # what follows the colon is the table's description
    assert any(line.startswith("In the curve") for line in rest)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("return self.net(x)", "return self.net( x )", "FeedForward.forward"),
        ("# (B, T, C)\n", "# (B,T,C)\n", "SelfAttention.forward"),
        ("n_layer: int = 3", "n_layer: int = 4", "Config"),
        ("Communication, then", "Communication then", "Block"),
    ],
)
def test_a_stray_change_is_seen(old, new, name):
    from stages import pre_norm

    assert source(pre_norm).count(old) >= 1
    assert name in differing(source(pre_norm), source(pre_norm).replace(old, new))
