"""Jobs on a real Ray cluster of this machine: a run whose node is killed ends with the bits of a run here."""

import json
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import medssl
import tiny
from explored import write_store
from medssl.cli import launch_ray
from medssl.cli import run as command_line
from medssl.cli.job import Job
from medssl.cli.launch_ray import launch_on_ray, run_on_node
from medssl.errors import UserError
from medssl.files import locked

cluster_utils = pytest.importorskip("ray.cluster_utils")
ray = pytest.importorskip("ray")
MEMORY = 80 << 20  # bytes of a node's object store


@pytest.fixture(scope="module")
def cluster():
    """A head without processors and a node of one, which a test replaces by another."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")  # as this process: bits are those of one number of threads
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
    )
    made.add_node(num_cpus=1, object_store_memory=MEMORY)
    yield made
    made.shutdown()
    patch.undo()


@pytest.mark.skipif(sys.platform != "linux", reason="a killed node's processes end with it by a call of Linux")
def test_a_run_goes_on_when_its_node_is_killed_and_a_score_follows(cluster, tmp_path, capsys, monkeypatch):
    store, out = tmp_path / "store", tmp_path / "seed1"
    write_store(store)
    words = [f"store={store}", *tiny.PRETRAIN, "steps=150", "save_every=10", "log_every=1"]
    (node,) = cluster.worker_nodes
    ray.init(address=cluster.address, log_to_driver=False)
    wait, killed = ray.wait, []

    def killing(*args, **options):
        """Kill the node when the run on it has saved, and start another one."""
        if not killed:
            while not (out / "checkpoints/last.ckpt").exists():
                time.sleep(0.05)
            cluster.remove_node(node, allow_graceful=False)
            killed.append(cluster.add_node(num_cpus=1, object_store_memory=MEMORY))
        return wait(*args, **options)

    monkeypatch.setattr(ray, "wait", killing)
    try:
        command_line.run("pretrain", [*words, "seed=1", f"out={out}", "launcher=ray"])
        assert "1 job finished" in capsys.readouterr().out
        command_line.run("knn", [f"run={out}", f"store={store}", "target=finding", "baselines=[]", "launcher=ray"])
    finally:
        ray.shutdown()
    (log,) = out.with_name("seed1.jobs").glob("*.log")
    assert log.read_text().count("simclr, cnn on CPU") == 2, "it began on the first node and went on at the second"
    here = medssl.pretrain(
        store, tmp_path / "here", method="simclr", encoder="cnn", encoder_options={"widths": [4]}, size=8, batch=8,
        accelerator="cpu", monitor_every=0, steps=150, save_every=10, log_every=1, seed=1,
    )  # fmt: skip
    a, b = (load_file(folder / "encoder.safetensors") for folder in (out, here))
    assert all((a[k] == b[k]).all() for k in b)
    assert (out / "metrics.jsonl").read_bytes() == (here / "metrics.jsonl").read_bytes()
    assert json.loads((out / "scores.json").read_text())


def test_what_a_cluster_lacks_and_failed_jobs_are_one_line(cluster, tmp_path):
    settings = {"launcher": "ray", "address": cluster.address}
    jobs = {tmp_path / "a": Job(["pretrain", "store=none", f"out={tmp_path / 'a'}"])}
    with pytest.raises(UserError, match=r"no node of the cluster at .* has cpus=1 gpus=2 \("):
        launch_on_ray(jobs, tmp_path / "jobs", settings | {"gpus": "2"})
    with pytest.raises(UserError, match=r"1 of 1 jobs did not finish; .*/a: none"):
        launch_on_ray(jobs, tmp_path / "jobs", settings)
    assert not ray.is_initialized()


def test_a_job_on_a_node_says_what_is_wrong(tmp_path, monkeypatch):
    job, log = Job(["runs", str(tmp_path / "none")]), str(tmp_path / "log")
    assert f"version {medssl.__version__} of medssl instead of 0;" in run_on_node(job, log, "0")
    assert "cannot write" in run_on_node(job, str(tmp_path / "none/log"), medssl.__version__)
    why = run_on_node(job, log, medssl.__version__)
    assert str(tmp_path / "none") in why
    assert "\n" not in why
    store, out = tmp_path / "store", tmp_path / "run"
    write_store(store)
    medssl.pretrain(store, out, method="simclr", encoder="cnn", encoder_options={"widths": [4]}, size=8, batch=8, steps=1,
                    monitor_every=0, accelerator="cpu")  # fmt: skip
    monkeypatch.setattr(launch_ray, "PAUSE", 0.0)
    with locked(out, "medssl pretrain"), pytest.raises(launch_ray.Preempted):
        run_on_node(
            Job(["pretrain", f"store={store}", f"out={out}", *tiny.PRETRAIN, "steps=1"]), log, medssl.__version__
        )
    assert "another medssl pretrain is running" in Path(log).read_text()
