"""Reading is progress; reading the same bytes for ever, or nothing, is not."""

import gzip
import io
import zlib

import numpy as np
from PIL import Image

from medssl.readers.watched import PASSES, Watched, watched_like


def watched(data):
    beats = []
    return Watched(io.BytesIO(data), len(data), lambda: beats.append(1)), beats


def test_every_read_is_a_sign_of_life_until_the_file_was_read_many_times():
    stream, beats = watched(bytes(1000))
    for _ in range(PASSES + 5):
        stream.seek(0)
        for _ in range(10):
            assert len(stream.read(100)) == 100
    assert len(beats) == 10 * PASSES


def test_reading_at_the_end_is_no_sign_of_life():
    stream, beats = watched(b"abc")
    assert stream.read() == b"abc"
    for _ in range(50):
        assert stream.read(10) == b""
    assert len(beats) == 1


def test_libraries_read_it_like_a_file():
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    stream, beats = watched(out.getvalue())
    np.testing.assert_array_equal(np.asarray(Image.open(stream)), picture)
    assert beats
    stream, beats = watched(gzip.compress(b"text" * 1000))
    assert gzip.GzipFile(fileobj=stream).read() == b"text" * 1000
    assert beats


def test_unpacked_content_is_watched_too():
    stream, beats = watched(zlib.compress(bytes(50)))
    inside = watched_like(stream, io.BytesIO(bytes(50)), 50)
    assert inside.read(50) == bytes(50)
    assert len(beats) == 1
    plain = io.BytesIO(b"x")
    assert watched_like(io.BytesIO(), plain, 1) is plain
