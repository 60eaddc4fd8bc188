"""A worker that crashes, hangs, exhausts the memory or sends invalid messages costs one task, and the parent goes on."""

import os
import threading
from pathlib import Path

import pytest

from medssl.errors import UserError
from medssl.ingestion.worker_pool import Task, WorkerPool

SECRET = "5e" * 32
INIT_MESSAGE = {"memory": 2 << 30, "key": SECRET}


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def make(workers=2, timeout=30.0):
        return WorkerPool(workers, INIT_MESSAGE, module="misbehaving_worker", timeout=timeout)

    return make


def outcomes(pool, tasks):
    """task number -> (messages, payload bytes, death)."""
    out = {}
    for event in pool.run(tasks):
        outcome = out.setdefault(event.task.context, [[], 0, ""])
        outcome[0].append(event.message)
        outcome[1] += len(event.payload)
        outcome[2] = event.death
    return out


def tasks(*messages):
    return [Task(m, i) for i, m in enumerate(messages)]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_has_one_end(pool, workers):
    with pool(workers) as p:
        got = outcomes(p, tasks(*({"do": "work", "n": i, "big": 1 + i * 3000} for i in range(20))))
    assert sorted(got) == list(range(20))
    for i, (messages, size, death) in got.items():
        assert messages == [{"did": "work", "n": i}, {"end": True}]
        assert size == 7 * (1 + i * 3000)
        assert not death


def test_a_crash_costs_one_task(pool):
    with pool(2) as p:
        got = outcomes(p, tasks({"do": "work"}, {"do": "die"}, {"do": "work"}, {"do": "work"}))
    assert [got[i][2] for i in range(4)] == ["", "DECODER_CRASHED", "", ""]
    assert {"retry": True} in got[1][0]


def test_a_task_gets_a_second_try(pool, tmp_path):
    with pool(1) as p:
        got = outcomes(p, tasks({"do": "die once", "mark": str(tmp_path / "mark")}))
    messages, _, death = got[0]
    assert not death
    assert messages[:2] == [{"half": 1}, {"retry": True}]  # answers of the first try do not count
    assert messages[-1] == {"end": True}


def test_a_hang_costs_one_task(pool):
    with pool(1, timeout=1.0) as p:
        got = outcomes(p, tasks({"do": "sleep", "seconds": 600}, {"do": "work"}))
    assert [got[i][2] for i in range(2)] == ["TOO_SLOW", ""]


def test_announced_work_extends_the_time_to_the_next_message(pool):
    announced, silent = ({"do": "announce", "bytes": n, "seconds": 2.5} for n in (2_000_000_000, 0))
    with pool(1, timeout=1.0) as p:
        got = outcomes(p, tasks(announced, silent))
    assert [got[i][2] for i in range(2)] == ["", "TOO_SLOW"]


def test_memory_is_limited(pool):
    with pool(1) as p:
        got = outcomes(p, tasks({"do": "fill"}))
    assert {"full": True} in got[0][0]


@pytest.mark.parametrize("kind", ["gibberish", "deep"])
def test_an_invalid_message_counts_as_a_crash(pool, kind):
    with pool(1) as p:
        got = outcomes(p, tasks({"do": kind}, {"do": "work"}))
    assert [got[i][2] for i in range(2)] == ["DECODER_CRASHED", ""]


def test_workers_that_cannot_start_are_not_blamed_on_the_files():
    with WorkerPool(1, INIT_MESSAGE, module="no_such_module") as p, pytest.raises(UserError, match="cannot start"):
        outcomes(p, tasks({"do": "work"}))


def test_leaving_early_leaves_no_process(pool):
    before = threading.active_count()
    with pool(2) as p:
        for n, _ in enumerate(p.run(tasks(*({"do": "sleep", "seconds": 0.01} for _ in range(200))))):
            if n == 10:
                break
    processes = [worker.process for worker in p.workers]
    for process in processes:
        process.wait(10)
    assert threading.active_count() == before


def test_workers_exit_when_the_parent_is_killed(pool):
    """They read from a pipe that closes with it."""
    with pool(1) as p:
        outcomes(p, tasks({"do": "work"}))
        process = p.workers[0].process
        process.stdin.close()
        assert process.wait(10) is not None


def test_the_key_is_in_no_command_line(pool):
    with pool(1) as p:
        outcomes(p, tasks({"do": "work"}))
        pid = p.workers[0].process.pid
        assert SECRET not in " ".join(p.workers[0].process.args)
        for place in ("cmdline", "environ") if os.path.exists("/proc") else ():
            assert SECRET not in Path(f"/proc/{pid}/{place}").read_text()
