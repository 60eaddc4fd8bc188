"""Stores in object storage: the same scans, one request to a shard, a bounded cache, broken connections and one-line errors."""

import os
import resource
import socket
import sys
import threading
import urllib.request
from contextlib import suppress
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from medssl.commands.data.shard import shard
from medssl.errors import UserError
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.store import remote
from medssl.store.resampled import resample_scans
from medssl.store.store import Store

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A store of 60 incompressible volumes in shards of 1 MB."""
    folder = tmp_path_factory.mktemp("remote")
    rng = np.random.default_rng(0)
    with StoreWriter(folder / "store", Pseudonyms(bytes(32))) as writer:
        for i in range(60):
            array = rng.integers(0, 60000, (1, 8, 40, 40 + i % 2)).astype(np.uint16)
            writer.add(
                Scan(array, scan=f"scan{i}", patient=f"patient{i}", modality="MR", spacing=(1.0, 1.0, 1.0)), f"scan{i}"
            )
        writer.finish()
    shard(writer.staged.out, folder / "shards", size=1)
    return Store.open(folder / "shards")


@pytest.fixture(scope="module")
def server():
    """An S3 server of this process that checks nothing."""
    from moto.server import ThreadedMotoServer

    made = ThreadedMotoServer(port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield "127.0.0.1" if host == "0.0.0.0" else host, port
    made.stop()


@pytest.fixture
def bucket(local, server, tmp_path, monkeypatch):
    """The URL of the store in the server, with credentials and a cache of this test."""
    import boto3
    import s3fs

    endpoint = f"http://{server[0]}:{server[1]}"
    for key, value in {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint,
        "MEDSSL_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="scans")
    for path in local.path.rglob("*"):
        if path.is_file() and "cache" not in path.parts:
            client.upload_file(str(path), "scans", f"a/{path.relative_to(local.path)}")
    yield "s3://scans/a"
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_scans_crops_and_resampled_scans_are_those_of_the_local_store(local, bucket):
    far = Store.open(bucket)
    assert far.fingerprint == local.fingerprint
    assert all(np.array_equal(far[i], local[i]) for i in range(len(local)))
    assert np.array_equal(far.crop(3, (2, 5, 7), (4, 9, 11)), local.crop(3, (2, 5, 7), (4, 9, 11)))
    far.verify()
    a, b = resample_scans(far, 8), resample_scans(local, 8)
    assert np.array_equal(a.array, b.array)
    assert np.array_equal(Store.open(far.path)[7], local[7])  # the mirror by its own path


def test_a_batch_is_one_request_to_each_shard_and_then_none(local, bucket, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 1 << 16)
    far = Store.open(bucket)
    of = remote.remote_of(far.path)
    rows = [1, 5, 17, 40, 59]
    shards = {far.column("file")[i] for i in rows}
    assert len(shards) > 1
    far.prefetch(rows)
    assert of.requests == len(shards)
    assert all(np.array_equal(far[i], local[i]) for i in rows)
    far.prefetch(rows)
    assert of.requests == len(shards)


def test_the_cache_stays_within_its_limit_and_keeps_what_was_used_last(local, bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "BLOCK", 1 << 16)
    monkeypatch.setenv("MEDSSL_CACHE_GB", "0.0006")
    far = Store.open(bucket)
    for i in range(len(local)):
        assert np.array_equal(far[i], local[i])
        assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("stores/*/blocks/*")) <= 600_000
    of = remote.remote_of(far.path)
    before = of.requests
    assert np.array_equal(far[len(far) - 1], local[len(far) - 1])
    assert of.requests == before
    assert np.array_equal(far[0], local[0])
    assert of.requests > before


def cutting(server, after, times):
    """A proxy before the server that cuts the first `times` large answers after some bytes; returns its port and a counter."""
    listener = socket.create_server(("127.0.0.1", 0))
    cut = []

    def pump(source, target, limit):
        sent = 0
        try:
            while data := source.recv(1 << 14):
                sent += len(data)
                if limit and sent > after and len(cut) < times:
                    cut.append(sent)
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve():
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            behind = socket.create_connection(server)
            threading.Thread(target=pump, args=(client, behind, False), daemon=True).start()
            threading.Thread(target=pump, args=(behind, client, True), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener, cut


def test_a_connection_that_is_cut_in_the_middle_is_tried_again(local, bucket, server, monkeypatch):
    far = Store.open(bucket)
    listener, cut = cutting(server, 100_000, 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    assert np.array_equal(far[0], local[0])
    assert len(cut) == 1
    listener.close()


class Unsteady(LocalFileSystem):
    """Local files behind a line that breaks, and then hands over half of what was asked: not every library tries again."""

    protocol = "unsteady"
    cachable = False
    broken: ClassVar[list[str]] = []

    def cat_file(self, path, start=None, end=None, **kwargs):
        data = super().cat_file(path, start=start, end=end, **kwargs)
        if start is None or len(self.broken) == 2:
            return data
        self.broken.append(path)
        if len(self.broken) == 1:
            raise ConnectionResetError
        return data[: len(data) // 2]


def test_a_library_that_does_not_try_again_is_asked_again_and_half_an_answer_is_none(local, tmp_path, monkeypatch):
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    monkeypatch.setenv("MEDSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    Unsteady.broken.clear()
    far = Store.open(f"unsteady://{local.path}")
    last = int(np.argmax(far.column("offset")))  # beyond the half of its block
    assert np.array_equal(far[last], local[last])
    assert len(Unsteady.broken) == 2


def test_a_store_that_changed_is_not_read_from_blocks_of_the_old_one(local, bucket, tmp_path):
    import boto3

    Store.open(bucket)[0]
    swapped = (local.path / "store.json").read_text() + "\n"
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).put_object(
        Bucket="scans", Key="a/store.json", Body=swapped
    )
    far = Store.open(bucket)
    assert np.array_equal(far[0], local[0])
    assert remote.remote_of(far.path).requests == 1


def test_what_cannot_be_read_is_one_line(local, bucket, server, monkeypatch, tmp_path):
    import s3fs

    with pytest.raises(UserError, match=r"has no store\.json"):
        Store.open("s3://scans/b")
    with pytest.raises(UserError, match="fsspec knows no nowhere://"):
        Store.open("nowhere://scans/b")
    monkeypatch.setenv("MEDSSL_CACHE_GB", "much")
    with pytest.raises(UserError, match="MEDSSL_CACHE_GB=much"):
        Store.open(bucket)
    monkeypatch.delenv("MEDSSL_CACHE_GB")
    checks = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    plain = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(checks, b"0", plain)).close()  # from now on the server knows nobody
    try:
        with pytest.raises(UserError, match="check the credentials"):
            Store.open(bucket)
    finally:
        urllib.request.urlopen(urllib.request.Request(checks, b"inf", plain)).close()
    far = Store.open(bucket)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*free some space"):
            far[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "cache").glob("stores/*/blocks/*"))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="cannot be reached"):
        far[0]


def test_a_store_that_is_not_in_shards_and_a_missing_library_are_refused(local, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="medssl shard"):
        Store.open(f"file://{local.path.parent / 'store'}")
    assert np.array_equal(Store.open(f"file://{local.path}")[4], local[4])
    for name in [m for m in sys.modules if m.split(".")[0] == "s3fs"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"medssl\[s3\]"):
        Store.open("s3://scans/a")
