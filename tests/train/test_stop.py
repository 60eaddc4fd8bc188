"""Signals of schedulers, processes that are gone, and runs that go on with another number of processes."""

import io
import multiprocessing
import os
import signal
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import tiny
from medssl.cli.main import main
from medssl.errors import UserError
from medssl.runs.run_folder import Run
from medssl.train.lost_process import lost_process
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


def wait_for_the_other(rank, port, path):
    """Two processes; the second one is killed, and the first one waits for its gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with lost_process(SimpleNamespace(world_size=2, global_rank=0)):
            for _ in range(2):
                dist.all_reduce(torch.ones(1))
    except UserError as e:
        path.write_text(str(e))
    os._exit(0)


def test_a_process_that_is_gone_ends_the_others_in_one_line(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=wait_for_the_other, args=(rank, port, tmp_path / "said")) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert both[0].exitcode == 0
    assert (tmp_path / "said").read_text().startswith("process 0 of 2 ends because another one of this run is gone")


def test_an_error_of_this_process_is_not_taken_for_another_one_that_is_gone():
    with pytest.raises(RuntimeError, match="shapes"), lost_process(SimpleNamespace(world_size=2, global_rank=0)):
        raise RuntimeError("shapes do not match")
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
