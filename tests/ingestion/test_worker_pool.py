"""A child that crashes, hangs, fills the memory or talks nonsense costs one task, and the parent goes on."""

import os
import threading
from pathlib import Path

import pytest

from medssl.errors import UserError
from medssl.ingestion.worker_pool import Task, WorkerPool

SECRET = "5e" * 32
HELLO = {"memory": 2 << 30, "key": SECRET}


@pytest.fixture
def children(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # naughty_child.py lies there

    def make(workers=2, patience=30.0):
        return WorkerPool(workers, HELLO, module="naughty_child", patience=patience)

    return make


def outcomes(supervisor, tasks):
    """task number -> (messages, payload bytes, death)."""
    out = {}
    for event in supervisor.run(tasks):
        said = out.setdefault(event.task.about, [[], 0, ""])
        said[0].append(event.message)
        said[1] += len(event.payload)
        said[2] = event.death
    return out


def tasks(*messages):
    return [Task(m, i) for i, m in enumerate(messages)]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_has_one_end(children, workers):
    with children(workers) as c:
        got = outcomes(c, tasks(*({"do": "work", "n": i, "big": 1 + i * 3000} for i in range(20))))
    assert sorted(got) == list(range(20))
    for i, (messages, size, death) in got.items():
        assert messages == [{"did": "work", "n": i}, {"end": True}]
        assert size == 7 * (1 + i * 3000)
        assert not death


def test_a_crash_costs_one_task(children):
    with children(2) as c:
        got = outcomes(c, tasks({"do": "work"}, {"do": "die"}, {"do": "work"}, {"do": "work"}))
    assert [got[i][2] for i in range(4)] == ["", "DECODER_CRASHED", "", ""]
    assert {"again": True} in got[1][0]


def test_an_unlucky_task_gets_a_second_try(children, tmp_path):
    with children(1) as c:
        got = outcomes(c, tasks({"do": "die once", "mark": str(tmp_path / "mark")}))
    messages, _, death = got[0]
    assert not death
    assert messages[:2] == [{"half": 1}, {"again": True}]  # what the first try said does not count
    assert messages[-1] == {"end": True}


def test_a_hang_costs_one_task(children):
    with children(1, patience=1.0) as c:
        got = outcomes(c, tasks({"do": "sleep", "seconds": 600}, {"do": "work"}))
    assert [got[i][2] for i in range(2)] == ["TOO_SLOW", ""]


def test_memory_has_a_bound(children):
    with children(1) as c:
        got = outcomes(c, tasks({"do": "fill"}))
    assert {"full": True} in got[0][0]


@pytest.mark.parametrize("kind", ["gibberish", "deep"])
def test_nonsense_counts_as_a_crash(children, kind):
    with children(1) as c:
        got = outcomes(c, tasks({"do": kind}, {"do": "work"}))
    assert [got[i][2] for i in range(2)] == ["DECODER_CRASHED", ""]


def test_children_that_cannot_start_are_no_fault_of_the_files():
    with WorkerPool(1, HELLO, module="no_such_module") as c, pytest.raises(UserError, match="cannot start"):
        outcomes(c, tasks({"do": "work"}))


def test_leaving_early_leaves_no_process(children):
    before = threading.active_count()
    with children(2) as c:
        for n, _ in enumerate(c.run(tasks(*({"do": "sleep", "seconds": 0.01} for _ in range(200))))):
            if n == 10:
                break
    processes = [child.process for child in c.children]
    for process in processes:
        process.wait(10)
    assert threading.active_count() == before


def test_children_leave_when_the_parent_is_killed(children):
    """They read from a pipe that closes with it."""
    with children(1) as c:
        outcomes(c, tasks({"do": "work"}))
        process = c.children[0].process
        process.stdin.close()
        assert process.wait(10) is not None


def test_the_key_is_in_no_command_line(children):
    with children(1) as c:
        outcomes(c, tasks({"do": "work"}))
        pid = c.children[0].process.pid
        assert SECRET not in " ".join(c.children[0].process.args)
        for place in ("cmdline", "environ") if os.path.exists("/proc") else ():
            assert SECRET not in Path(f"/proc/{pid}/{place}").read_text()
