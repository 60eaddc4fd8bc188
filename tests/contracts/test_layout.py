"""ssl/ is a source root, not a package: the standard library's ssl must win from here, whoever starts Python."""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_ssl_holds_packages_only():
    strays = [p.name for p in (ROOT / "ssl").iterdir() if not p.is_dir() or p.name.startswith("test")]
    assert [s for s in strays if not s.startswith(".")] == []


def test_no_test_lives_under_ssl():
    assert not list((ROOT / "ssl").rglob("test_*.py")) + list((ROOT / "ssl").rglob("conftest.py"))


def test_stdlib_ssl_wins_at_the_root():
    code = "import ssl, asyncio, http.client; ssl.create_default_context(); print(ssl.__file__)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not Path(out.strip()).is_relative_to(ROOT)
