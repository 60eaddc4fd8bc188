"""Signals of schedulers, processes that are gone, and runs that go on with another number of processes."""

import io
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

import processes
import tiny
from medssl.cli.main import main
from medssl.errors import UserError
from medssl.progress import say
from medssl.runs.run_folder import Run
from medssl.train.lost_process import LEFT, Silence, lost_process
from medssl.train.ranks import make_fabric
from medssl.train.stop import PREEMPTED, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_scheduler_that_repeats_its_signal_does_not_cost_the_checkpoint(number):
    with StopRequest() as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
    reason = stop.reason("at step 3")
    assert reason.code == PREEMPTED
    assert number.name in str(reason)


def test_a_second_interrupt_by_hand_does_not_wait_for_the_step():
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGUSR2, 75), (signal.SIGTERM, 75), (signal.SIGHUP, 1)]
)
def test_a_command_that_is_stopped_outside_training_ends_with_the_code_of_a_requeue(number, code, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def write(self, text):
            signal.raise_signal(number)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == code
    assert "run the same command again" in capsys.readouterr().err


def wait_for_the_other(rank, number, lost, out):
    """Wait for gradients in one of two processes, of which `lost` gets the signal `number`."""
    sys.stderr = (out / f"{rank}").open("w")
    fabric = make_fabric("cpu", 2, "32-true")
    fabric.launch()
    try:
        with lost_process(fabric, patience=1.0):
            fabric.barrier()
            if rank == lost:
                os.kill(os.getpid(), number)
            for _ in range(2):
                fabric.all_reduce(torch.ones(1))
    except UserError as e:
        say(f"medssl: {e}")
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_or_hangs_ends_the_other_in_one_line(tmp_path, number, lost):
    both = processes.start(wait_for_the_other, 2, number, lost, tmp_path).processes
    for process in both:
        process.join(60)
    assert both[lost].exitcode == -signal.SIGKILL
    assert both[1 - lost].exitcode == 1
    why = {signal.SIGKILL: "another one of this run is gone", signal.SIGSTOP: f"process {lost} does not answer"}
    (said,) = (tmp_path / f"{1 - lost}").read_text().splitlines()
    assert said.startswith(f"medssl: process {1 - lost} of 2 ends because {why[number]}")


def slow(rank, out):
    """The first process needs longer for a step than the other has patience, and is longer in the run."""
    fabric = make_fabric("cpu", 2, "32-true")
    fabric.launch()
    with lost_process(fabric, patience=0.5):
        fabric.barrier()
        if rank == 0:
            time.sleep(1.0)
        fabric.barrier()
        if rank == 0:
            time.sleep(1.0)
    (out / f"{rank}").touch()


def test_a_process_that_is_slow_is_waited_for(tmp_path):
    processes.run(slow, 2, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"0", "1"}


def test_silence_is_counted_in_looks_and_a_process_that_has_left_may_be_silent():
    silence = Silence(3, most=2)
    looks = [b"1", b"1", b"1"], [b"2", b"1", b"1"], [b"3", LEFT, b"2"], [b"4", LEFT, b"2"], [b"5", LEFT, b"2"]
    assert [silence.first(signs) for signs in looks] == [None, None, None, None, 2]


def fail(rank):
    fabric = make_fabric("cpu", 2, "32-true")
    fabric.launch()
    with lost_process(fabric):
        raise RuntimeError("shapes do not match")


def test_an_error_of_this_process_is_not_taken_for_another_one_that_is_gone():
    with pytest.raises(ProcessRaisedException, match="RuntimeError: shapes do not match"):
        processes.run(fail, 2)
    with pytest.raises(RuntimeError, match="gloo"), lost_process(SimpleNamespace(world_size=1, global_rank=0)):
        raise RuntimeError("gloo")


def test_a_run_that_goes_on_with_more_processes_says_what_stays(tmp_path, capsys):
    run = Run(tmp_path / "run")
    run.start({}, tiny.config())
    run.start({}, tiny.config())
    assert capsys.readouterr().err == ""
    run.start({}, tiny.config(devices=2))
    assert (
        "devices=1 and goes on with 2: the scans, views and masks of every step stay the same"
        in capsys.readouterr().err
    )
