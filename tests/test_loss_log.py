import os
import random
import subprocess
import sys

import pytest
from conftest import ROOT

from data import LOSS_CSV, LossLog, UserError, read_log
from data.loss_log import COLUMNS

ROW = {name: {str: "words", int: 3, float: 1.25}[kind] for name, kind in COLUMNS.items()}


def test_what_is_appended_is_read_back(tmp_path):
    log = LossLog(tmp_path / "new" / "log.csv")
    log.append(ROW)
    log.append(ROW | {"seed": 4, "flags": "", "corpus": 'a "quoted", name'})
    table = read_log(log.path)
    assert list(table.columns) == list(COLUMNS)
    assert table.to_dict("records")[0] == ROW
    assert table["seed"].tolist() == [3, 4]
    assert table["corpus"].tolist() == ["words", 'a "quoted", name']
    assert table["flags"].tolist() == ["words", ""]


def test_appending_changes_nothing_that_was_there(tmp_path):
    log = LossLog(tmp_path / "log.csv")
    log.append(ROW)
    before = log.path.read_bytes()
    log.check()
    assert log.path.read_bytes() == before
    log.append(ROW)
    assert log.path.read_bytes().startswith(before)


def test_a_row_needs_every_column(tmp_path):
    log = LossLog(tmp_path / "log.csv")
    with pytest.raises(KeyError):
        log.append({"seed": 1})
    assert not log.path.exists()


ROWS = 1000
WRITER = """
import os, signal, sys
from pathlib import Path
from data import LossLog
from data.loss_log import COLUMNS

path, name, rows, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
executed = 0

def count(frame, event, argument):  # of lines of Python, in whatever module: the process dies in the middle of one
    global executed
    executed += 1
    if executed == last:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return count

log = LossLog(path)
with Path(path).with_name(name).open("ab", buffering=0) as acknowledged:
    if last:
        sys.settrace(count)
    for step in range(rows):
        log.append({column: kind(0) for column, kind in COLUMNS.items()} | {"run": name, "step": step})
        acknowledged.write(b"%d\\n" % step)
"""


def test_eight_processes_lose_and_mix_nothing_even_as_some_are_killed(tmp_path):
    """A thousand rows each; three of them are killed somewhere on their way, the lock in their hands or not."""
    path = tmp_path / "log.csv"
    chance = random.Random(4)
    lasts = {f"writer{k}": chance.randrange(3_000, 60_000) if k < 3 else 0 for k in range(8)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(ROWS), str(last)])
        for name, last in lasts.items()
    ]
    statuses = [writer.wait() for writer in writers]
    assert all((status == 0) == (last == 0) for status, last in zip(statuses, lasts.values(), strict=True))
    LossLog(path).append(ROW)  # no lock was left behind
    table = read_log(path)  # every line whole
    for name, last in lasts.items():
        written = table[table["run"] == name]["step"].tolist()
        acknowledged = [int(step) for step in (tmp_path / name).read_text(encoding="utf-8").split()]
        assert written == list(range(len(written)))
        assert len(acknowledged) <= len(written) <= len(acknowledged) + 1
        assert 0 < len(written) < ROWS if last else len(written) == ROWS


def damaged(tmp_path, damage) -> tuple[LossLog, bytes]:
    log = LossLog(tmp_path / "log.csv")
    for _ in range(3):
        log.append(ROW)
    log.path.write_bytes(damage(log.path.read_bytes()))
    return log, log.path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda raw: raw[:-1], 4),  # no line break at the end
        (lambda raw: raw[:-30], 4),  # half a row
        (lambda raw: raw[:-30] + b"\n", 4),  # half a row, and a line break
        (lambda raw: raw[:-30] + b"\r" + raw[-30:], 4),  # a stray line break within
        (lambda raw: raw.replace(b"seed", b"sead"), 1),  # another column
        (lambda raw: b"step,loss\n1,2.5\n", 1),  # another file altogether
    ],
)
def test_a_damaged_log_is_named_and_left_alone(tmp_path, damage, line):
    log, before = damaged(tmp_path, damage)
    for action in (log.check, lambda: log.append(ROW), lambda: read_log(log.path)):
        with pytest.raises(UserError) as error:
            action()
        assert f"line {line} of {log.path}" in str(error.value)
        assert "\n" not in str(error.value)
    assert log.path.read_bytes() == before


def test_reading_names_a_line_within(tmp_path):
    log, _ = damaged(tmp_path, lambda raw: raw.replace(b"1.25", b"lost", 1))
    with pytest.raises(UserError, match=r"line 2 of .*'lost' as its train_loss"):
        read_log(log.path)


def test_a_missing_and_an_empty_log_are_errors_of_their_own(tmp_path):
    with pytest.raises(UserError, match="there is no loss log"):
        read_log(tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="is empty"):
        read_log(tmp_path / "empty.csv")


def test_the_projects_own_log_is_whole():
    table = read_log(LOSS_CSV)
    assert len(table) > 300
    assert not table.duplicated(["run", "step"]).any()


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    log = LossLog(tmp_path / "log.csv")
    log.append(ROW)
    before = log.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.loss_log.os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        log.append(ROW)
    assert log.path.read_bytes() == before


FULL = """
import resource, sys
from pathlib import Path
from data import LossLog
from test_loss_log import ROW
path, room = Path(sys.argv[1]), int(sys.argv[2])
size = path.stat().st_size if path.exists() else 0
resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
LossLog(path).append(ROW)
"""


@pytest.mark.skipif(os.name != "posix", reason="the limit on a file's size is POSIX'")
@pytest.mark.parametrize("room", [0, 50])
def test_a_disk_with_room_for_half_a_line(room, tmp_path):
    """The file as it was; the first line of all leaves none."""
    log = LossLog(tmp_path / "log.csv")
    command = [sys.executable, "-c", FULL, str(log.path), str(room)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    for before in (None, b"rows"):
        if before is not None:
            log.append(ROW)
            before = log.path.read_bytes()
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
        assert "UserError: cannot write the loss log" in done.stderr
        assert (log.path.read_bytes() if log.path.exists() else None) == before
    log.append(ROW)
    assert len(read_log(log.path)) == 2


@pytest.mark.parametrize("value", [b"nan", b"inf", b"-inf"])
def test_a_loss_that_is_no_number_is_named(tmp_path, value):
    log, _ = damaged(tmp_path, lambda raw: raw.replace(b"1.25", value, 1))
    with pytest.raises(UserError, match="line 2 of"):
        read_log(log.path)
