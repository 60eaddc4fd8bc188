"""Children that open files so that the parent need not: one file in flight each, with limits on time and memory.

A decoder that crashes, hangs or fills the memory costs one file. `multiprocessing.Pool` waits for ever when a child
dies and `ProcessPoolExecutor` gives up all that was queued, so neither is used. Messages are JSON with a block of bytes
beside it, never pickles: what a child says may be the work of a malicious file.
"""

import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import medssl
from medssl.errors import UserError

PATIENCE = 30.0  # seconds between two words of a child, and a second more for each
PER_SECOND = 50e6  # bytes of the file
MOST_WRITTEN = 1 << 36  # bytes of one file a child may write
LONGEST = 1 << 31  # bytes of a message; more is a child gone mad
CANNOT_START = "CANNOT_START"
HEAD = struct.Struct("<II")

Message = dict[str, Any]


@dataclass
class Task:
    """A message for a child, and what the parent wants to remember of it. `size`: bytes to be read, for the clock."""

    message: Message
    about: Any = None
    size: int = 0
    tries: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Event:
    """What a child said about a task. `death` is "" until the child died of it: DECODER_CRASHED or TOO_SLOW."""

    task: Task
    message: Message
    payload: bytes = b""
    death: str = ""

    @property
    def last(self) -> bool:
        """Whether the task is over."""
        return bool(self.death) or "end" in self.message


class WorkerPool:
    """`with Supervisor(4, hello) as children: for event in children.run(tasks): …`.

    Args:
        workers: how many children.
        hello: the first message to each, which it answers when it is ready: what every task needs to know.
        module: what a child runs; it reads messages from its standard input and answers with `send`.
        patience: seconds a child may be silent.
    """

    def __init__(
        self, workers: int, init_message: Message, module: str = "medssl.ingestion.worker", patience: float = PATIENCE
    ):
        self.init_message, self.module, self.patience = init_message, module, patience
        self.todo: queue.Queue[Task | None] = queue.Queue()
        self.events: queue.Queue[Event] = queue.Queue(8 * workers)  # a parent that lags holds the children back
        self.children = [_Child(self) for _ in range(workers)]
        self.closing = threading.Event()
        self.threads = [threading.Thread(target=self._watch, daemon=True)]
        self.threads += [threading.Thread(target=child.work, daemon=True) for child in self.children]

    def __enter__(self) -> "WorkerPool":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for _child in self.children:
            self.todo.put(None)
        while any(t.is_alive() for t in self.threads):
            for child in self.children:
                child.kill()  # again and again: it may just have been started
            with suppress(queue.Empty):  # a thread may wait for room
                self.events.get(timeout=0.05)

    def run(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """Every task's events; those of different tasks are interleaved. A task is tried twice before it counts as dead."""
        todo = iter(tasks)
        flying = 0
        while True:
            while flying < 2 * len(self.children) and (task := next(todo, None)) is not None:
                self.todo.put(task)
                flying += 1
            if not flying:
                return
            event = self.events.get()
            if event.death == CANNOT_START:
                raise UserError(
                    "cannot start a process that reads files; the machine may be out of processes or memory: "
                    "try again, with workers=1"
                )
            flying -= event.last
            yield event

    def _watch(self) -> None:
        while not self.closing.wait(0.2):
            now = time.monotonic()
            for child in self.children:
                if child.deadline < now:
                    child.slow = True
                    child.kill()


class _Child:
    """One process at a time, and the thread that talks to it."""

    def __init__(self, owner: WorkerPool):
        self.owner = owner
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline = float("inf")
        self.slow = self.lost = self.nonsense = False

    def work(self) -> None:
        while (task := self.owner.todo.get()) is not None and not self.owner.closing.is_set():
            while not self._do(task):  # it died: a second try tells an unlucky file from a bad one
                if self.owner.closing.is_set():
                    return
                task.tries += 1
                code = self._cause()
                if task.tries >= 2 or self.slow:
                    self.owner.events.put(Event(task, {}, death=code))
                    break
                self.owner.events.put(Event(task, {"again": True}))
        self.kill()

    def _cause(self) -> str:
        """What to call a death. The kernel kills what takes the last memory, and that is not the file's fault alone."""
        if self.lost:
            return CANNOT_START
        if self.slow:
            return "TOO_SLOW"
        killed = self.process is not None and self.process.returncode == -signal.SIGKILL and not self.nonsense
        return "TOO_BIG_TO_READ" if killed else "DECODER_CRASHED"

    def _do(self, task: Task) -> bool:
        """Whether the child lived through the task."""
        self.slow = self.lost = False
        try:
            if self.process is None or self.process.poll() is not None:
                self.lost = True
                self._start()
                self.lost = False
            assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None  # noqa: PT018
            wait = self.owner.patience + task.size / PER_SECOND
            self.deadline = time.monotonic() + wait
            send(self.process.stdin, task.message)
            while True:
                self.deadline = time.monotonic() + wait
                message, payload = receive(self.process.stdout)
                self.deadline = float("inf")
                self.owner.events.put(Event(task, message, payload))
                if "end" in message:
                    return True
        except Exception:  # it died, or talks nonsense however deep
            self.deadline = float("inf")
            self.nonsense = False
            if self.process is not None:
                try:
                    self.process.wait(1)
                except subprocess.TimeoutExpired:
                    self.nonsense = True  # it lives: what it said ended the talk
            self.kill()
            return False

    def _start(self) -> None:
        env = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS"), "1"
        )
        # glibc gives freed memory back to the system after every slice, and takes it again for the next, unless told not to
        env |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 29)}
        root = str(Path(medssl.__file__).resolve().parents[1])
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", self.owner.module],  # -P: nothing in the current folder is code
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("MEDSSL_DEBUG") == "1" else subprocess.DEVNULL,  # it may quote a header
            env=env,
            start_new_session=True,  # Ctrl-C is the parent's to answer
        )
        self.deadline = time.monotonic() + 4 * self.owner.patience  # imports, on a slow disk
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        send(self.process.stdin, self.owner.init_message)
        receive(self.process.stdout)  # it is ready
        self.deadline = float("inf")

    def kill(self) -> None:
        process = self.process
        if process is not None and process.poll() is None:
            process.kill()
        if process is not None and threading.current_thread() is not threading.main_thread():
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)


def limit(memory: int) -> None:
    """Bounds on what this process may take (POSIX): an allocation beyond them is a MemoryError, not a full machine."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, MOST_WRITTEN),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        with suppress(ValueError, OSError):
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def send(stream: IO[bytes], message: Message, payload: bytes = b"") -> None:
    """One message: two lengths, JSON, bytes."""
    text = json.dumps(message).encode()
    stream.write(HEAD.pack(len(text), len(payload)) + text)
    if payload:
        stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Message, bytes]:
    """The next message. Raises EOFError at the end, ValueError for what is no message."""
    text, payload = HEAD.unpack(_exactly(stream, HEAD.size))
    if max(text, payload) > LONGEST:
        raise ValueError("a message too long to be one")
    message = json.loads(_exactly(stream, text))
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message, _exactly(stream, payload)


def _exactly(stream: IO[bytes], n: int) -> bytes:
    data = stream.read(n) if n else b""
    if len(data) < n:
        raise EOFError
    return data
