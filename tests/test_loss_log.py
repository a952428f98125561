"""The log is whole whatever happens, and what is damaged is named."""

import os
import random
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from data import LossLog, UserError, read_log
from data.loss_log import COLUMNS

ROW = {name: {str: "words", int: 3, float: 1.25}[kind] for name, kind in COLUMNS.items()}


@pytest.fixture
def log(tmp_path) -> LossLog:
    """With three rows, of steps 3, 4 and 5."""
    log = LossLog(tmp_path / "new" / "log.csv")
    for step in (3, 4, 5):
        log.append(ROW | {"step": step})
    return log


def change(log: LossLog, how) -> bytes:
    log.path.write_bytes(how(log.path.read_bytes()))
    return log.path.read_bytes()


def test_what_is_appended_is_read_back_and_the_rest_is_as_it_was(log):
    before = log.path.read_bytes()
    log.check()
    assert log.path.read_bytes() == before
    log.append(ROW | {"run": "another", "flags": "", "corpus": 'a "quoted", name', "train_loss": 1e300})
    assert log.path.read_bytes().startswith(before)
    table = read_log(log.path)
    assert list(table.columns) == list(COLUMNS)
    assert table.to_dict("records")[0] == ROW
    assert table["step"].tolist() == [3, 4, 5, 3]
    assert table["train_loss"].tolist() == [1.25, 1.25, 1.25, 1e300]  # of a run that diverged
    assert table["corpus"].tolist() == ["words", "words", "words", 'a "quoted", name']
    assert table["flags"].tolist() == ["words", "words", "words", ""]


def test_a_row_needs_every_column(tmp_path):
    with pytest.raises(KeyError):
        LossLog(tmp_path / "log.csv").append({"seed": 1})
    assert not (tmp_path / "log.csv").exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: b"\xef\xbb\xbf" + raw,  # Excel's byte-order mark
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw + raw.partition(b"\n")[2],  # every row twice, as after a merge
    ],
    ids=["byte-order mark", "CRLF", "twice"],
)
def test_an_edited_log_is_read_and_appended_to_as_before(log, edit):
    before = read_log(log.path)
    change(log, edit)
    assert read_log(log.path).equals(before)
    log.append(ROW | {"step": 6})
    assert read_log(log.path)["step"].tolist() == [3, 4, 5, 6]


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
def test_a_damaged_log_is_named_and_left_alone(log, damage, line):
    before = change(log, damage)
    for action in (log.check, lambda: log.append(ROW), lambda: read_log(log.path)):
        with pytest.raises(UserError) as error:
            action()
        assert f"line {line} of {log.path}" in str(error.value)
        assert "\n" not in str(error.value)
    assert log.path.read_bytes() == before


@pytest.mark.parametrize(("content", "words"), [(None, "there is no loss log"), ("", "is empty")])
def test_a_missing_and_an_empty_log_are_errors_of_their_own(content, words, tmp_path):
    if content is not None:
        (tmp_path / "log.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_log(tmp_path / "log.csv")


@pytest.mark.parametrize("value", ["lost", "nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_is_named(log, value):
    change(log, lambda raw: raw.replace(b"1.25", value.encode(), 1))
    with pytest.raises(UserError, match=f"line 2 of .*'{value}' as its train_loss"):
        read_log(log.path)


@pytest.mark.parametrize("place", ["a folder", "in a file", "/dev/null", "/proc/log.csv"])
def test_where_no_row_can_be_written_it_is_said_at_once(place, tmp_path):
    """/proc is a folder in which not even root can make a file: a lock there would be waited for without end."""
    if place.startswith("/") and sys.platform != "linux":
        pytest.skip("there is no such place")
    (tmp_path / "a folder").mkdir()
    (tmp_path / "in a file").touch()
    log = LossLog(tmp_path / place / "log.csv" if place == "in a file" else tmp_path / place)
    with pytest.raises(UserError, match=r"^cannot write the loss log .*; choose another with --loss-csv$"):
        log.check()


def test_one_writes_at_a_time(log):
    before = log.path.read_bytes()
    other = threading.Thread(target=log.append, args=(ROW | {"step": 6},))
    with FileLock(log.path.with_name("log.csv.lock")):
        other.start()
        other.join(0.2)
        assert log.path.read_bytes() == before
    other.join()
    assert read_log(log.path)["step"].tolist() == [3, 4, 5, 6]


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


def test_two_processes_lose_and_mix_nothing_even_as_one_is_killed(tmp_path):
    """It is killed at any point, while it holds the lock or not."""
    path, rows = tmp_path / "log.csv", 150
    lasts = {"writer0": random.randrange(5_000, 20_000), "writer1": 0}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(rows), str(last)])
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
        assert 0 < len(written) < rows if last else len(written) == rows


@pytest.mark.skipif(os.name != "posix", reason="the limit on a file's size is POSIX'")
@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk_leaves_no_half_line(first, log):
    """With room for half a row. The file is as it was; the first row of all leaves none."""
    import resource

    if first:
        log.path.unlink()
    before = None if first else log.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before or b"") + 50, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write the loss log"):
            log.append(ROW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (log.path.read_bytes() if log.path.exists() else None) == before
