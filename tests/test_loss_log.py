import subprocess
import sys

import pytest

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


WRITER = """
import sys
from data import LossLog
from data.loss_log import COLUMNS
log = LossLog(sys.argv[1])
for step in range(200):
    log.append({name: kind(0) for name, kind in COLUMNS.items()} | {"run": sys.argv[2], "step": step})
"""


def test_two_processes_lose_and_mix_nothing(tmp_path):
    path = tmp_path / "log.csv"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    table = read_log(path)
    assert len(table) == 400
    for name in ("a", "b"):
        assert table[table["run"] == name]["step"].tolist() == list(range(200))


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


@pytest.mark.parametrize("value", [b"nan", b"inf", b"-inf"])
def test_a_loss_that_is_no_number_is_named(tmp_path, value):
    log, _ = damaged(tmp_path, lambda raw: raw.replace(b"1.25", value, 1))
    with pytest.raises(UserError, match="line 2 of"):
        read_log(log.path)
