"""Which run this is, and of which code."""

from __future__ import annotations

import secrets
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_name(experiment: str, seed: int) -> str:
    """A name that no other run has, and that sorts by time within a rung and seed."""
    return f"{experiment}-seed{seed}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"


def commit() -> str:
    """The short hash of the checked-out commit, with a + where Python files differ from it; else "unknown"."""
    head = _git("rev-parse", "--short=8", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+" if _git("status", "--porcelain", "--", "*.py") else "")


def unchanged_since(commit: str, *paths: Path) -> bool:
    """Whether these files and folders are certain to be those of `commit`, a short hash as `commit()` gives it."""
    if not commit.isalnum():  # a trailing +: nobody knows what was changed then
        return False
    if commit == "unknown" or _git("diff", "--quiet", commit, "--", *map(str, paths)) is None:
        return False
    return _git("ls-files", "--others", "--exclude-standard", "--", *map(str, paths)) == ""


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
