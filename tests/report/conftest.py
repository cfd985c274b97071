"""What tests of the report share."""

import pytest


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder to write studies into."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a study has hundreds of files
