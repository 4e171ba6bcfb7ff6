"""Every recorded file has a test that reads it, and none is missed unseen."""

import fnmatch
import re
from pathlib import Path

import pytest

from tests.conftest import golden_folders, golden_names

TESTS = Path(__file__).resolve().parent


def mentioned() -> set[str]:
    """Returns the names and patterns of golden files in the tests' sources."""
    sources = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py") if path != Path(__file__).resolve())
    return set(re.findall(r'"(v[\d\[\]]+[\w*]*\.npz)"', sources))


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v*.npz"))
def test_some_test_reads(name):
    assert any(fnmatch.fnmatch(name, pattern) for pattern in mentioned()), f"no test mentions {name}"


def test_a_folder_without_golden_files_is_refused(tmp_path):
    with pytest.raises(pytest.UsageError, match="not a folder with golden files"):
        golden_folders(str(tmp_path))
    (tmp_path / "v1_train.npz").touch()
    assert golden_folders(str(tmp_path)) == [tmp_path]
