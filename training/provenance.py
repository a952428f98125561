"""The name of a run, and the code that it used."""

from __future__ import annotations

import ast
import hashlib
import secrets
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The shared code that shapes a result. These files hold nothing else, so other changes do not change the hash.
SHARED_CODE = (
    "data/batches.py",
    "training/dropout.py",
    "training/evaluate.py",
    "training/optimizers.py",
    "training/schedule.py",
    "training/update.py",
)

# Not part of a rung's architecture: settings have their own hash, LESSON and AFTER are for tests and tables.
NOT_ARCHITECTURE = {"Config", "LESSON", "AFTER"}


def rung_code(path: Path) -> str:
    """Eight hex digits, equal if two rung files have the same architecture, whatever their settings."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    module.body = [node for node in module.body if not (_is_main(node) or _names(node) & NOT_ARCHITECTURE)]
    return code_hash(module)


def shared_code() -> str:
    """Eight hex digits, equal if two runs were trained and evaluated by the same shared code."""
    return code_hash(*(ast.parse((ROOT / name).read_text(encoding="utf-8")) for name in SHARED_CODE))


def code_hash(*modules: ast.Module) -> str:
    """Eight hex digits, the same on every Python version. Comments, docstrings and formatting do not change them."""
    return hashlib.sha256("\n".join(map(_canonical, modules)).encode("utf-8")).hexdigest()[:8]


def run_name(rung: str, seed: int) -> str:
    """A name that no other run has, and that sorts by time within a rung and seed."""
    return f"{rung}-seed{seed}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"


def commit() -> str:
    """The short hash of the checked-out commit, with a + if Python files differ from it; "unknown" without git."""
    head = _git("rev-parse", "--short=8", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+" if _git("--no-optional-locks", "status", "--porcelain", "--", "*.py") else "")


def _is_main(node: ast.stmt) -> bool:
    """Whether it is `if __name__ == "__main__"`."""
    return isinstance(node, ast.If) and any(getattr(name, "id", "") == "__name__" for name in ast.walk(node.test))


def _names(node: ast.stmt) -> set[str]:
    """What a statement of a module defines."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {getattr(node, "name", "")} | {target.id for target in targets if isinstance(target, ast.Name)}


def _canonical(node: object) -> str:
    """A syntax tree as text; unlike ast.dump, without empty fields, because newer versions of Python add some."""
    if isinstance(node, ast.Constant):
        return ascii(node.value)
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty constants to some
        fields["values"] = [piece for piece in node.values if getattr(piece, "value", None) != ""]
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
        fields["body"] = node.body[1:]
    return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields.items())})"


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
