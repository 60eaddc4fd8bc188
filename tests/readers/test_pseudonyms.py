import hashlib
import hmac
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.errors import UserError
from medssl.readers.pseudonyms import Pseudonyms, open_key

KEY = bytes(range(32))
BASE32 = set(string.ascii_lowercase + "234567")


def test_pseudonyms_are_the_documented_hmac():
    digest = hmac.new(KEY, b"v1|patient|hospital|4711", hashlib.sha256).digest()
    bits = int.from_bytes(digest, "big") >> (256 - 26 * 5)
    letters = string.ascii_lowercase + "234567"
    expected = "".join(letters[bits >> 5 * (25 - i) & 31] for i in range(26))
    assert Pseudonyms(KEY).of("patient", b"hospital|4711") == expected


@given(st.text(max_size=30), st.text(max_size=30))
def test_pseudonyms_differ_by_value_domain_and_key(a, b):
    pseudonyms = Pseudonyms(KEY)
    one = pseudonyms.of("patient", a)
    assert len(one) == 26
    assert set(one) <= BASE32
    assert one == Pseudonyms(KEY).of("patient", a)
    assert one != pseudonyms.of("study", a)
    assert one != Pseudonyms(b"x" * 32).of("patient", a)
    assert (one == pseudonyms.of("patient", b)) == (_nfc(a) == _nfc(b))


def _nfc(text):
    import unicodedata

    return unicodedata.normalize("NFC", text)


def test_composed_and_decomposed_hangul_are_equal():
    assert Pseudonyms(KEY).of("scan", "한글") == Pseudonyms(KEY).of("scan", "한글")


def test_split_fractions_are_uniform_and_fixed():
    pseudonyms = Pseudonyms(KEY)
    u = [pseudonyms.split_fraction(pseudonyms.of("patient", str(i))) for i in range(2000)]
    assert all(0 <= v < 1 for v in u)
    for k in range(10):  # six standard deviations of a binomial distribution with n = 2000
        assert abs(sum(k / 10 <= v < (k + 1) / 10 for v in u) - 200) < 6 * (2000 * 0.1 * 0.9) ** 0.5
    digest = hmac.new(KEY, b"v1|split|somebody", hashlib.sha256).digest()
    assert pseudonyms.split_fraction("somebody") == pytest.approx(int.from_bytes(digest[:8], "big") / 2**64, abs=2**-52)


def test_the_key_file_is_private_and_reused(tmp_path):
    path = tmp_path / "sub" / "key"
    first = open_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(path.read_text().strip())) == 32
    second = open_key(path)
    assert first.of("patient", "x") == second.of("patient", "x")
    assert first.key_id == second.key_id != open_key(tmp_path / "other").key_id


def test_the_key_is_never_shown(tmp_path):
    pseudonyms = Pseudonyms(KEY)
    assert KEY.hex() not in repr(pseudonyms) + pseudonyms.key_id
    assert pseudonyms.key_id in repr(pseudonyms)


@pytest.mark.parametrize(("text", "mode"), [("ab" * 32, 0o640), ("ab" * 32, 0o604), ("ab" * 31, 0o600), ("zz", 0o600)])
def test_bad_key_files_are_refused(tmp_path, text, mode):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(UserError, match="key"):
        open_key(path)


def test_a_link_is_not_a_key_file(tmp_path):
    open_key(tmp_path / "key")
    os.symlink(tmp_path / "key", tmp_path / "link")
    with pytest.raises(UserError, match="regular"):
        open_key(tmp_path / "link")


def test_headers_and_tables_give_the_same_patient():
    pseudonyms = Pseudonyms(KEY)
    assert (
        pseudonyms.patient(b"P0 \0")
        == pseudonyms.patient(" P0")
        == pseudonyms.patient("P0", " ")
        == pseudonyms.of("patient", "P0")
    )
    assert (
        pseudonyms.patient(b"P0", b"H1 ")
        == pseudonyms.patient("P0", "H1")
        == pseudonyms.patient("H1|P0")
        != pseudonyms.patient("P0")
    )
    assert pseudonyms.patient(_nfc("환자").encode()) == pseudonyms.patient("환자")
