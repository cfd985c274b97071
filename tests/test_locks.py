import errno
import fcntl
import os

import pytest

from mae_core import locks
from mae_core.locks import held
from mae_core.study.parameters import PretrainParameters
from mae_core.study.results import claimed
from mae_core.training.runs import pretrain


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    """A file system that has no locks."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_lock_keeps_others_out_until_the_file_is_closed(tmp_path):
    with open(tmp_path / "lock", "w", encoding="utf-8") as mine, open(tmp_path / "lock", encoding="utf-8") as theirs:
        assert locks.acquire(mine, wait=False)
        with pytest.raises(BlockingIOError):
            locks.acquire(theirs, wait=False)
        mine.close()
        assert locks.acquire(theirs, wait=True)


def test_another_error_of_the_disk_is_not_taken_for_missing_locks(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with open(tmp_path / "lock", "w", encoding="utf-8") as file, pytest.raises(OSError, match="Input/output error"):
        locks.acquire(file, wait=True)


def test_without_locks_a_run_says_so_and_goes_on(no_locks, tiny, capsys):
    run = PretrainParameters.check(tiny)
    pretrain(run)
    assert (run.folder / "pretrain" / "metrics.json").exists()
    told = capsys.readouterr().out.splitlines()[0]
    assert told.startswith(f"nothing keeps two runs apart here: the file system of {run.folder / 'pretrain'} has no locks")


def test_without_locks_a_download_goes_on(no_locks, tmp_path):
    with held(tmp_path / "lock"), claimed(tmp_path / "run"):
        pass
