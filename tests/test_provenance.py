"""Hashes of code: equal for equal code, on every version of Python, and different for different code."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

import gpt
from training import provenance
from training.provenance import code_hash, rung_code, shared_code

CODE = '''"""A module."""
import math
from pathlib import Path as P

LESSON = ("Net.forward",)  # declared

class Config(Base):
    size: int = 3

@wrap(1, key=-2.5e-3)
class Net(Base):
    """A class."""

    def forward(self, x: "T", *args, k=None, **more):
        """A function."""
        if (n := len(x)) > 2 and not args:
            return f"{x!r:>{n}} and {k} of {math.pi:.2f}{{}}", x[..., ::-1] @ x.T
        with P("a") as file:
            yield from (a * b for a, b in zip(x, file, strict=True) if a is not b)
        match x:
            case [1, *rest] | {"k": rest}:
                x = "dé" "🎭" + 'it\\'s' + f"{'a'}b" f"c"
        try:
            del x[0]
        except (ValueError, KeyError) as error:
            raise TypeError(...) from error

if __name__ == "__main__":
    run(Net, Config)
'''


def digest(source: str) -> str:
    return code_hash(ast.parse(source))


def test_the_hash_is_the_same_on_every_python_version():
    assert digest(CODE) == "58487a23"


def test_comments_docstrings_and_formatting_do_not_change_the_hash():
    other = ast.unparse(ast.parse(re.sub('"""A .+"""', '"""Other words."""', CODE))) + "\n\n# the end\n"
    assert other != CODE and "declared" not in other and "Other words" in other
    assert digest(other) == digest(CODE)


@pytest.mark.parametrize(("old", "new"), [("-2.5e-3", "-2.5e-4"), ("> 2", ">= 2"), ("(1,", "(True,"), (":.2f", ":.3f")])
def test_a_change_of_code_changes_the_hash(old, new):
    assert digest(CODE.replace(old, new)) != digest(CODE)


def test_rung_code_depends_on_the_architecture_and_not_on_settings(tmp_path):
    source = Path(gpt.__file__).read_text(encoding="utf-8")

    def changed(old: str, new: str) -> bool:
        assert old in source
        (tmp_path / "other.py").write_text(source.replace(old, new), encoding="utf-8")
        return rung_code(tmp_path / "other.py") != rung_code(Path(gpt.__file__))

    assert not changed("n_layer: int = 6", "n_layer: int = 7\n    learning_rate: float = 1.0")
    assert not changed("LESSON = (", 'AFTER = "bigram"\nLESSON = ("another",')
    assert not changed("Rung 8, GPT", "Another rung")
    assert not changed("# (B, T, V)", "")
    assert changed("nn.ReLU()", "nn.GELU()")
    assert not changed('if __name__ == "__main__":', 'if __name__ == "another":')
    assert changed('if __name__ == "__main__":', "if torch.cuda.is_available():")


def test_shared_code_depends_on_every_file_that_affects_a_result(tmp_path, monkeypatch):
    before = shared_code()
    assert re.fullmatch("[0-9a-f]{8}", before) and len(provenance.SHARED_CODE) >= 6
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for changed in (None, *provenance.SHARED_CODE):
        for name in provenance.SHARED_CODE:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            text = (ROOT / name).read_text(encoding="utf-8")
            (tmp_path / name).write_text(text + "\nCHANGED = 1\n" * (name == changed), encoding="utf-8")
        assert (shared_code() == before) == (changed is None)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_has_a_plus_if_code_differs_from_it(tmp_path, monkeypatch):
    def git(*args: str) -> str:
        user = ["-c", "user.name=A", "-c", "user.email=a@example.invalid"]
        return subprocess.run(["git", *user, *args], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == "unknown"
    git("init")
    (tmp_path / "rung.py").write_text("a = 1\n", encoding="utf-8")
    git("add", ".")
    git("commit", "-m", "a rung")
    head = git("rev-parse", "HEAD")[:8]
    (tmp_path / "notes.md").write_text("not code", encoding="utf-8")
    assert provenance.commit() == head
    (tmp_path / "rung.py").write_text("a = 2\n", encoding="utf-8")
    assert provenance.commit() == f"{head}+"
