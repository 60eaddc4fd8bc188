"""Ingest on a real Ray cluster of two nodes on this machine: the store of a local ingest, also when a node is killed."""

import socket
import sqlite3
import sys
import time

import nibabel
import numpy as np
import pytest
from PIL import Image

from medssl.commands.data.ingest import ingest
from medssl.errors import UserError
from medssl.ingestion import ray_pool
from medssl.ingestion.pipeline import VERSION
from medssl.ingestion.ray_pool import RayPool
from medssl.ingestion.staged_store import StagedStore
from medssl.ingestion.worker_pool import Task
from medssl.readers.walk import File
from medssl.synthetic.cohort import write_cohort
from tiny import secret

cluster_utils = pytest.importorskip("ray.cluster_utils")
ray = pytest.importorskip("ray")
INIT_MESSAGE = {"memory": 2 << 30, "key": "00" * 32, "intensity": "auto", "out": "."}


@pytest.fixture(scope="module")
def cluster():
    """A head without processors and one node; a second one is added and killed by a test."""
    made = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    made.add_node(num_cpus=2, object_store_memory=80 << 20)
    yield made
    made.shutdown()


@pytest.fixture
def source(tmp_path):
    """Pictures, volumes, DICOM slices and files that are none."""
    folder = tmp_path / "source"
    write_cohort(folder, patients=6, size=32)
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (24, 24), np.uint8)).save(folder / f"picture{i}.png")
    for i in range(4):
        nibabel.save(nibabel.Nifti1Image(rng.random((8, 8, 8)).astype(np.float32), np.eye(4)), folder / f"v{i}.nii.gz")
    (folder / "broken.png").write_bytes((folder / "picture0.png").read_bytes()[:60])
    return folder


def contents(store):
    """Every byte of a store, with the ledger as statements, since SQLite's file depends on when it was written."""
    files = {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    files["ledger.sqlite"] = "\n".join(sqlite3.connect(store / "ledger.sqlite").iterdump()).encode()
    return files


def test_what_a_cluster_lacks_is_one_line(cluster, tmp_path):
    def start(workers=None, path=tmp_path, version=VERSION):
        return RayPool(cluster.address, workers, INIT_MESSAGE, [str(path)], version).__enter__()

    with pytest.raises(UserError, match=r"has 2 processors; give workers=2"):
        start(workers=3)
    with pytest.raises(UserError, match=r"does not see .*none; it must be on a disk that all nodes share"):
        start(1, path=tmp_path / "none")
    with pytest.raises(UserError, match="another version of medssl"):
        start(1, version="0")


@pytest.mark.parametrize("losses", [2, 0])
def test_a_task_whose_actor_is_lost_half_way_begins_again_a_few_times(cluster, tmp_path, monkeypatch, losses):
    """One archive of 12 images for each of two actors; answers are passed on one by one."""
    for name, value in {"CHUNK": 1, "HELD": 0, "MOST_LOSSES": losses}.items():
        monkeypatch.setattr(ray_pool, name, value)
    tasks = []
    for n in range(2):
        images = np.random.default_rng(n).integers(0, 255, (12, 24, 24), np.uint8)
        np.savez(tmp_path / f"{n}.npz", train_images=images, train_labels=np.zeros((12, 1), np.int64))
        file = File(f"{n}.npz", str(tmp_path / f"{n}.npz"), "", 9000, "", "")
        tasks.append(Task({"read": vars(file), "id": str(n)}, n, 9000))
    events = []
    with RayPool(cluster.address, 2, INIT_MESSAGE, [], VERSION) as pool:
        for event in pool.run(tasks):
            events.append(event)
            if len(events) == 3:
                ray.kill(pool.actors[0])
    first, second = ([event for event in events if event.task is task] for task in tasks)
    retries = [i for i, event in enumerate(first) if "retry" in event.message]
    assert len(retries) == (losses > 0)
    assert first[-1].death == ("" if losses else "TOO_BIG_TO_READ")
    for each in (first[retries[0] :], second) if losses else (second,):
        parts = [event.message["part"] for event in each if "scan" in event.message]
        assert len(parts) == len({*parts}) == 12


def test_a_node_that_is_killed_changes_no_byte_of_the_store(cluster, source, tmp_path, monkeypatch):
    options = {"key": secret(tmp_path / "key"), "labels": None}
    local = ingest(source, tmp_path / "local", workers=1, **options)
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    while ray.cluster_resources()["CPU"] < 3:
        time.sleep(0.1)
    ray.shutdown()
    stored, put = [], StagedStore.put

    def killing(self, data):
        stored.append(len(data))
        if len(stored) == 5:
            cluster.remove_node(node, allow_graceful=False)
            while any(n["Alive"] and n["NodeID"] == node.node_id for n in ray.nodes()):
                time.sleep(0.1)  # its processes outlive it by a moment, in which they could finish these few files
        return put(self, data)

    monkeypatch.setattr(StagedStore, "put", killing)
    lost, replace = [], RayPool._replace

    def noting(self, flight, flights):
        lost.append(flight.task)
        replace(self, flight, flights)

    monkeypatch.setattr(RayPool, "_replace", noting)
    shared = ingest(source, tmp_path / "ray", engine="ray", address=cluster.address, **options)
    assert lost, "the node had a task"
    expected, found = contents(local.path), contents(shared.path)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_a_cluster_that_cannot_be_reached_and_a_missing_library_are_one_line(source, tmp_path, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{s.getsockname()[1]}"
    options = {"key": secret(tmp_path / "key"), "engine": "ray"}
    for address in (closed, "head"):
        with pytest.raises(UserError, match=f"address={address} does not answer"):
            ingest(source, tmp_path / "out", address=address, **options)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"medssl\[ray\]"):
        ingest(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"), [({"engine": "rya"}, "Did you mean 'ray'"), ({"address": "a:1"}, "add engine=ray")]
)
def test_an_engine_that_is_none_is_refused(source, tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        ingest(source, tmp_path / "out", key=secret(tmp_path / "key"), **change)
