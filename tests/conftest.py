"""What every test may use."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real scans beside the checkout. Absent on a user's machine, so tests skip; under CI their absence is a failure."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"real scans are missing at {path}")
        pytest.skip("needs the real scans kept beside the developers' checkout")
    return path


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Bits of a float sum depend on the number of threads, and tests compare bits, also with what module fixtures made."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _a_wide_terminal(monkeypatch):
    """Tables come in parts that fit the terminal, and a worker's standard output may be one or not."""
    monkeypatch.setenv("COLUMNS", "10000")


@pytest.fixture(autouse=True)
def _one_thread_again():
    """A test that wants two threads must not leave them to the next file of its worker."""
    yield
    torch.set_num_threads(1)
