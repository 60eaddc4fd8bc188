"""Worker processes that open files for the parent: one file in flight each, with limits on time and memory.

A decoder that crashes, hangs or exhausts the memory costs one file. `multiprocessing.Pool` waits forever when a worker
dies, and `ProcessPoolExecutor` drops everything that was queued, so neither is used. Messages are JSON followed by a
block of bytes, never pickles, because a malicious file may control what a worker sends.
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import medssl
from medssl.errors import UserError

# Seconds between two messages of a worker, plus the time to read the file, and to process the bytes that its last message
# announced, at BYTES_PER_SECOND. Whoever makes progress sends messages, so no limit depends on the speed of the machine.
TIMEOUT = 30.0
BYTES_PER_SECOND = 50e6
MAX_WRITTEN = 1 << 36  # bytes of one file that a worker may write
MAX_MESSAGE = 1 << 31  # bytes; a longer message is not a message
CANNOT_START = "CANNOT_START"
HEADER = struct.Struct("<II")

Message = dict[str, Any]


@dataclass
class Task:
    """A message for a worker, with a context that the parent keeps and the bytes to read, which extend the timeout."""

    message: Message
    context: Any = None
    size: int = 0


@dataclass(frozen=True)
class Event:
    """A worker's answer to a task. `death` is DECODER_CRASHED, TOO_BIG_TO_READ or TOO_SLOW if the task failed, else ""."""

    task: Task
    message: Message
    payload: bytes = b""
    death: str = ""

    @property
    def last(self) -> bool:
        """Return whether no further event of this task follows."""
        return bool(self.death) or "end" in self.message


class Pool(Protocol):
    """What executes the tasks of an ingest."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """Yield the events of all tasks."""
        ...


class WorkerPool:
    """`with WorkerPool(4, init_message) as pool: for event in pool.run(tasks): …`.

    Args:
        workers: number of processes.
        init_message: the first message to each worker, with the settings that all tasks share.
        module: the module that a worker runs. It reads messages from standard input and answers with `send`.
        timeout: seconds without a message after which a worker is killed, see `TIMEOUT`.
    """

    def __init__(
        self, workers: int, init_message: Message, module: str = "medssl.ingestion.worker", timeout: float = TIMEOUT
    ):
        self.init_message, self.module, self.timeout = init_message, module, timeout
        self.todo: queue.Queue[Task | None] = queue.Queue()
        self.events: queue.Queue[Event] = queue.Queue(8 * workers)  # bounded, so that a slow parent slows the workers
        self.workers = [_Worker(self) for _ in range(workers)]
        self.closing = threading.Event()
        self.threads = [threading.Thread(target=self._kill_late_workers, daemon=True)]
        self.threads += [threading.Thread(target=worker.serve, daemon=True) for worker in self.workers]

    def __enter__(self) -> "WorkerPool":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for _worker in self.workers:
            self.todo.put(None)
        while any(t.is_alive() for t in self.threads):
            for worker in self.workers:
                worker.kill()  # repeatedly: it may just have been started
            with suppress(queue.Empty):  # a thread may be waiting for room in the queue
                self.events.get(timeout=0.05)

    def run(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """Yield the events of all tasks, those of different tasks interleaved. A task is tried twice before it fails.

        Raises:
            UserError: no worker can be started.
        """
        todo = iter(tasks)
        in_flight = 0
        while True:
            while in_flight < 2 * len(self.workers) and (task := next(todo, None)) is not None:
                self.todo.put(task)
                in_flight += 1
            if not in_flight:
                return
            event = self.events.get()
            if event.death == CANNOT_START:
                raise UserError(
                    "cannot start a process to read files; the machine may be out of processes or memory: "
                    "try again with workers=1"
                )
            in_flight -= event.last
            yield event

    def _kill_late_workers(self) -> None:
        while not self.closing.wait(0.2):
            now = time.monotonic()
            for worker in self.workers:
                if worker.deadline < now:
                    worker.late = True
                    worker.kill()


class _Worker:
    """The thread that feeds one worker process and replaces it when it dies."""

    def __init__(self, pool: WorkerPool):
        self.pool = pool
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline = float("inf")
        self.late = False

    def serve(self) -> None:
        while (task := self.pool.todo.get()) is not None and not self.pool.closing.is_set():
            for attempt in (1, 2):  # the first failure may not be the file's fault
                if not (death := self._attempt(task)):
                    break
                if self.pool.closing.is_set():
                    return
                if attempt == 2 or self.late:
                    self.pool.events.put(Event(task, {}, death=death))
                    break
                self.pool.events.put(Event(task, {"retry": True}))
        self.kill()

    def _attempt(self, task: Task) -> str:
        """Run a task once. Returns "" or the cause of death."""
        self.late = False
        starting = self.process is None or self.process.poll() is not None
        exited = False
        try:
            if starting:
                self._start()
                starting = False
            self._converse(task)
            return ""
        except Exception:  # the worker died, or sent an invalid message
            self.deadline = float("inf")
            if self.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(1)
                    exited = True
            self.kill()
        if starting:
            return CANNOT_START
        if self.late:
            return "TOO_SLOW"
        assert self.process is not None
        # SIGKILL from the kernel: the machine is out of memory, and this file need not be the only reason
        return "TOO_BIG_TO_READ" if exited and self.process.returncode == -signal.SIGKILL else "DECODER_CRASHED"

    def _converse(self, task: Task) -> None:
        """Send a task and pass on the answers. Raises any exception that a dead worker or an invalid answer causes."""
        stdin, stdout = self._pipes()
        wait = self.pool.timeout + task.size / BYTES_PER_SECOND
        self.deadline = time.monotonic() + wait
        send(stdin, task.message)
        message: Message = {}
        while "end" not in message:
            work = min(int(message.get("alive", 0)), MAX_WRITTEN) / BYTES_PER_SECOND
            self.deadline = time.monotonic() + wait + work
            message, payload = receive(stdout)
            self.deadline = float("inf")
            self.pool.events.put(Event(task, message, payload))

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self.process
        assert self.process.stdin
        assert self.process.stdout
        return self.process.stdin, self.process.stdout

    def _start(self) -> None:
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")
        env = os.environ | dict.fromkeys(threads, "1")
        # by default glibc returns freed memory to the system after every slice, only to request it again for the next
        env |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 29)}
        root = str(Path(medssl.__file__).resolve().parents[1])
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", self.pool.module],  # -P: no code is imported from the current folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("MEDSSL_DEBUG") == "1" else subprocess.DEVNULL,  # it may quote a header
            env=env,
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )
        self.deadline = time.monotonic() + 4 * self.pool.timeout  # imports from a slow disk
        stdin, stdout = self._pipes()
        send(stdin, self.pool.init_message)
        receive(stdout)  # the worker is ready
        self.deadline = float("inf")

    def kill(self) -> None:
        process = self.process
        if process is not None and process.poll() is None:
            process.kill()
        if process is not None and threading.current_thread() is not threading.main_thread():
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)


def limit_resources(memory: int) -> None:
    """Limit this process (POSIX): an allocation beyond `memory` bytes raises MemoryError instead of filling the machine."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {resource.RLIMIT_DATA: memory, resource.RLIMIT_FSIZE: MAX_WRITTEN, resource.RLIMIT_CORE: 0}
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        with suppress(ValueError, OSError):
            resource.setrlimit(name, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def send(stream: IO[bytes], message: Message, payload: bytes = b"") -> None:
    """Write one message: two lengths, JSON, bytes."""
    text = json.dumps(message).encode()
    stream.write(HEADER.pack(len(text), len(payload)) + text)
    if payload:
        stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Message, bytes]:
    """Read the next message. Raises EOFError at the end of the stream, ValueError for an invalid message."""
    text, payload = HEADER.unpack(_exactly(stream, HEADER.size))
    if max(text, payload) > MAX_MESSAGE:
        raise ValueError("the message is too long")
    message = json.loads(_exactly(stream, text))
    if not isinstance(message, dict):
        raise ValueError("the message is not an object")
    return message, _exactly(stream, payload)


def _exactly(stream: IO[bytes], n: int) -> bytes:
    data = stream.read(n) if n else b""
    if len(data) < n:
        raise EOFError
    return data
