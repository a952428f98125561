"""The loss log stays intact, and damage to it is reported."""

import os
import sys
import threading

import pytest
from filelock import FileLock

from data import LossLog, UserError, read_log
from data.loss_log import COLUMNS

ROW = {name: {str: "words", int: 3, float: 1.25}[kind] for name, kind in COLUMNS.items()}


@pytest.fixture
def log(tmp_path) -> LossLog:
    """A log with three rows, of steps 3, 4 and 5."""
    log = LossLog(tmp_path / "new" / "log.csv")
    for step in (3, 4, 5):
        log.append(ROW | {"step": step})
    return log


def change(log: LossLog, how) -> bytes:
    log.path.write_bytes(how(log.path.read_bytes()))
    return log.path.read_bytes()


def test_appended_rows_are_read_back_and_earlier_rows_stay_unchanged(log):
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


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: b"\xef\xbb\xbf" + raw,  # Excel's byte-order mark
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw + raw.partition(b"\n")[2],  # every row twice, as after a merge
    ],
    ids=["byte-order mark", "CRLF", "twice"],
)
def test_a_log_with_harmless_edits_is_read_and_appended_to(log, edit):
    before = read_log(log.path)
    change(log, edit)
    assert read_log(log.path).equals(before)
    log.append(ROW | {"step": 6})
    assert read_log(log.path)["step"].tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda raw: raw[:-30], 4),  # half a row
        (lambda raw: raw[:-30] + b"\r" + raw[-30:], 4),  # a line break within a row
        (lambda raw: raw.replace(b"seed", b"sead"), 1),  # another column
    ],
)
def test_a_damaged_log_is_an_error_and_stays_unchanged(log, damage, line):
    before = change(log, damage)
    for action in (log.check, lambda: log.append(ROW), lambda: read_log(log.path)):
        with pytest.raises(UserError) as error:
            action()
        assert f"line {line} of {log.path}" in str(error.value)
        assert "\n" not in str(error.value)
    assert log.path.read_bytes() == before


@pytest.mark.parametrize("value", ["lost", "nan", "1_0.5"])
def test_a_loss_that_is_not_a_number_is_an_error(log, value):
    change(log, lambda raw: raw.replace(b"1.25", value.encode(), 1))
    with pytest.raises(UserError, match=f"line 2 of .*'{value}' as its train_loss"):
        read_log(log.path)


# not even root can make a file in /proc: waiting for a lock there would never end
@pytest.mark.parametrize("place", ["folder", "file/log.csv"] + ["/proc/log.csv"] * (sys.platform == "linux"))
def test_a_log_that_cannot_be_written_is_an_error_at_once(place, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write the loss log .*; choose another with --loss-csv$"):
        LossLog(tmp_path / place).check()


def test_one_process_writes_at_a_time(log):
    before = log.path.read_bytes()
    other = threading.Thread(target=log.append, args=(ROW | {"step": 6},))
    with FileLock(log.path.with_name("log.csv.lock")):
        other.start()
        other.join(0.2)
        assert log.path.read_bytes() == before
    other.join()
    assert read_log(log.path)["step"].tolist() == [3, 4, 5, 6]


@pytest.mark.skipif(os.name != "posix", reason="the limit on a file's size is POSIX'")
def test_a_full_disk_leaves_no_partial_row(log):
    """The disk has room for half a row."""
    import resource

    before = log.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write the loss log"):
            log.append(ROW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.path.read_bytes() == before
