"""Runs as jobs of submitit: the same folders as a sweep here, and a preempted job that goes on to the same weights."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import medssl
import tiny
from medssl.cli import run as command_line
from medssl.cli.help import LAUNCH_KEYS, command_help
from medssl.cli.job import Job
from medssl.cli.launch import launch, take_launcher
from medssl.errors import UserError
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan

submitit = pytest.importorskip("submitit")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path_factory.mktemp("launch") / "store", Pseudonyms(bytes(32))) as writer:
        for i in range(30):
            pixels = rng.integers(0, 256, (1, 8, 8)).astype(np.uint8)
            writer.add(Scan(pixels, scan=f"s{i}", patient=f"p{i}", modality="DX"), f"s{i}")
        writer.finish()
    return writer.staged.out


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_preempted_job_saves_is_requeued_and_ends_with_the_bits_of_one_that_was_not(store, tmp_path, monkeypatch):
    """As on Slurm: submitit gets the signal, the run saves, the job ends and starts again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as this process: bits are those of one number of threads
    step = {"NTASKS": 2, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NNODES": 1, "JOB_NAME": "medssl"}
    for key, value in step.items():  # of a step with two tasks, of which no second one must be waited for
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    words = [f"store={store}", *tiny.PRETRAIN, "steps=400", "save_every=100000", "log_every=1"]
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    executor.update_parameters(timeout_min=10)
    job = executor.submit(Job(["pretrain", *words, f"out={tmp_path / 'a'}"]))
    log, state = tmp_path / "a/metrics.jsonl", tmp_path / "a/checkpoints/last.ckpt"
    until = time.monotonic() + 240
    while not (log.exists() and log.read_text().count("\n") > 20):
        assert time.monotonic() < until, job.stderr()
        time.sleep(0.05)
    assert not state.exists()
    (task,) = children(job.job_id)
    (run,) = children(task)
    for pid in (run, task):  # Slurm signals all processes of a step
        os.kill(pid, signal.SIGUSR2)
    while not state.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert job.result() == 0
    assert "Requeued job" in job.stdout() + job.stderr()
    assert "saved at step" in job.stderr()
    options = {"method": "simclr", "encoder": "cnn", "encoder_options": {"widths": [4]}, "size": 8, "batch": 8}
    for key in step:
        monkeypatch.delenv(f"SLURM_{key}")
    medssl.pretrain(
        store, tmp_path / "b", steps=400, monitor_every=0, accelerator="cpu", save_every=100000, log_every=1, **options
    )
    a, b = (load_file(tmp_path / name / "encoder.safetensors") for name in "ab")
    assert all((a[k] == b[k]).all() for k in b)
    assert log.read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands, of which sbatch keeps the file that it is given; returns the jobs of a folder."""
    (tmp_path / "bin").mkdir()
    for name, code in {"sbatch": f'cat "$1" > {tmp_path}/asked; echo Submitted batch job 7', "srun": "exit 0"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def words_of(folder):
        return [submitit.core.utils.DelayedSubmission.load(p).function.words for p in folder.glob("*.pkl")]

    return words_of


def test_a_sweep_is_one_job_for_each_run_in_the_folders_of_a_sweep_here(slurm, tmp_path, capsys):
    words = [
        "-m",
        "store=s",
        f"out={tmp_path}/runs",
        "method=simclr,byol",
        "seed=0,1",
        "where=dims == 2",
        "launcher=slurm",
    ]
    command_line.run("pretrain", words)
    expected = [
        ["pretrain", "store=s", "where=dims == 2", f"method={m}", f"seed={s}", f"out={tmp_path}/runs/{m}-seed{s}"]
        for m in ("byol", "simclr")
        for s in (0, 1)
    ]
    assert sorted(slurm(tmp_path / "runs.jobs")) == expected
    assert all(f"runs/{m}-seed{s}\n" in capsys.readouterr().out for m, s in [("byol", 1)])
    command_line.run("pretrain", ["store=s", f"out={tmp_path}/one", "recipe=chest_xray_28", "launcher=slurm"])
    assert slurm(tmp_path / "one.jobs") == [["pretrain", "store=s", f"out={tmp_path}/one", "recipe=chest_xray_28"]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["launcher=slrum"], "slurm"),
        (["launcher=local", "gpus=0"], "gpus must be a positive number"),
        (["launcher=local", "hours=long"], "hours must be a positive number"),
    ],
)
def test_a_launch_that_cannot_work_is_refused(words, says):
    with pytest.raises(UserError, match=says):
        take_launcher(words)


def test_a_missing_library_and_a_missing_slurm_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch here"):
        launch({tmp_path / "a": ["pretrain"]}, tmp_path / "jobs", {"launcher": "slurm"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"medssl\[slurm\]"):
        launch({tmp_path / "a": ["pretrain"]}, tmp_path / "jobs", {"launcher": "local"})


def test_slurm_is_asked_for_what_was_said_and_devices_follow_the_gpus(slurm, tmp_path):
    settings = {"launcher": "slurm", "partition": "gpu", "gpus": "2", "hours": "12", "memory": "32", "account": "lab"}
    text = launch({tmp_path / "a": ["pretrain", "store=s"]}, tmp_path / "jobs", settings)
    assert f": {tmp_path / 'a'}" in text
    asked = (tmp_path / "asked").read_text()
    for line in (
        "partition=gpu",
        "gpus-per-node=2",
        "time=720",
        "mem=32GB",
        "account=lab",
        "signal=USR2@90",
        "nodes=1",
    ):
        assert f"#SBATCH --{line}\n" in asked, asked
    assert slurm(tmp_path / "jobs") == [["pretrain", "store=s", "devices=2", "accelerator=cuda"]]


def test_scoring_has_a_job_for_each_run(slurm, tmp_path):
    words = [f"run={tmp_path}/a,{tmp_path}/b", "store=s", "target=label", "where=dims == 2"]
    command_line.run("probe", [*words, "launcher=slurm", "gpus=1"])
    expected = [
        ["probe", f"run={tmp_path}/{name}", "store=s", "target=label", "where=dims == 2", "device=cuda"]
        for name in "ab"
    ]
    assert sorted(slurm(tmp_path / "a.jobs")) == expected
    with pytest.raises(UserError, match="needs run=RUN"):
        command_line.run("probe", ["store=s", "target=label", "launcher=slurm"])
    with pytest.raises(UserError, match=r"targt.*target"):
        command_line.run("probe", [*words[:2], "targt=label", "launcher=slurm"])


def test_help_lists_the_keys_of_a_launch():
    text = command_help("pretrain")
    assert all(f"\n  {key} " in text for key in LAUNCH_KEYS)
    assert "run=A,B is a job for each run" in " ".join(command_help("knn").split())
