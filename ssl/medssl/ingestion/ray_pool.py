"""`engine=ray`: the same supervised child processes on the nodes of a Ray cluster, for an ingest past one machine.

The ledger, the pseudonyms of paths and the packed images stay with the caller. An actor per processor has one child process of
the `worker_pool` and passes on its answers. All nodes see the source and the folder of the store under the same paths.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.ingestion.worker_pool import Event, Message, Task, WorkerPool
from medssl.progress import say
from medssl.ray_cluster import connect

START = 120.0  # seconds in which it must have started the first actor, which includes imports from a slow disk
CHUNK = 1 << 24  # bytes of answers that an actor collects before it sends them
MOST_LOSSES = 2  # actors lost with a task after which it is not tried again
HELD = 1 << 28  # bytes of answers to one task that wait for its end

Answers = list[tuple[Message, bytes, str]]


class Reader:
    """The actor: one child process, and the answers to one task after the other."""

    def __init__(self, init_message: Message):
        self.pool = WorkerPool(1, init_message).__enter__()

    def check(self, paths: list[str], version: str) -> str:
        """Return in words what this node lacks, "" if nothing."""
        from medssl.ingestion.pipeline import VERSION  # of this node

        if version != VERSION:
            return "has another version of medssl"
        missing = [path for path in paths if not Path(path).exists()]
        return f"does not see {missing[0]}; it must be on a disk that all nodes share" if missing else ""

    def answers(self, message: Message, size: int, most: int) -> Iterator[Answers]:
        """Yield the answers to a task, in lists of about `most` bytes."""
        chunk: Answers = []
        waiting = 0
        for event in self.pool.run([Task(message, size=size)]):
            chunk.append((event.message, event.payload, event.death))
            waiting += len(event.payload) + 1000
            if waiting > most:
                yield chunk
                chunk, waiting = [], 0
        yield chunk


@dataclass
class _Flight:
    """A task that an actor has, and what came back of it."""

    task: Task
    actor: Any
    answers: Any  # a generator of references
    waiting: list[Event] = field(default_factory=list)
    begun: bool = False  # whether some of its events were passed on
    losses: int = 0  # actors that were lost with it


class RayPool:
    """`WorkerPool` on a Ray cluster: `with RayPool(address, workers, init_message, paths, version) as pool: pool.run(tasks)`.

    Events come in the order of the tasks, so the store is byte for byte that of one local worker. If a node is lost, its
    tasks begin again on another one, and nothing of them counts twice.

    Args:
        address: host:port of the cluster's head, or auto for the cluster of this machine, which must be one of its nodes.
        workers: number of processes; None: all processors of the cluster.
        init_message: as in `WorkerPool`. It has the secret key, which travels to the nodes, as the scans do from them.
        paths: what every node must see.
        version: `pipeline.VERSION`, which every node must have too.

    Raises UserError, on entry, without Ray or a cluster that has what is needed, and later if no node is left.
    """

    def __init__(self, address: str, workers: int | None, init_message: Message, paths: list[str], version: str):
        self.address, self.workers, self.init_message = address, workers, init_message
        self.paths, self.version = paths, version
        self.ray: Any = None
        self.connected = False
        self.actors: list[Any] = []

    def __enter__(self) -> "RayPool":
        self.ray, self.connected = connect(self.address, "engine=ray")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.actors:
            with suppress(Exception):
                self.ray.kill(actor)
        if self.connected:
            self.ray.shutdown()

    def _start(self) -> None:
        ray, processors = self.ray, int(self.ray.cluster_resources().get("CPU", 0))
        workers = processors if self.workers is None else self.workers
        if not 0 < workers <= processors:
            raise UserError(
                f"the cluster at {self.address} has {processors} processors; give workers={max(1, processors)}"
            )
        actor = ray.remote(num_cpus=1, max_restarts=0)(Reader)
        self.actors = [actor.remote(self.init_message) for _ in range(workers)]
        checks = [a.check.remote(self.paths, self.version) for a in self.actors]
        try:
            lacks = [found for found in ray.get(checks, timeout=START) if found]
        except ray.exceptions.GetTimeoutError as e:
            why = "does not start the processes; others may use it: wait, or give fewer workers="
            raise UserError(f"the cluster at {self.address} {why}") from e
        except ray.exceptions.RayError as e:
            why = "cannot start medssl; install the same version with the same Python on every node"
            raise UserError(f"the cluster at {self.address} {why}") from e
        if lacks:
            raise UserError(f"a node of the cluster at {self.address} {lacks[0]}")

    def run(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """Yield the events of all tasks, in the order of the tasks.

        Raises UserError if the cluster has no node left.
        """
        todo, flights = iter(tasks), deque[_Flight]()
        while True:
            while len(flights) < 2 * len(self.actors) and (task := next(todo, None)) is not None:
                flights.append(self._begin(task, self.actors[self._next(flights)]))
            if not flights:
                return
            yield from self._events(flights)

    def _next(self, flights: Iterable[_Flight]) -> int:
        """Return the actor with the fewest tasks."""
        busy = [flight.actor for flight in flights]
        return min(range(len(self.actors)), key=lambda i: busy.count(self.actors[i]))

    def _begin(self, task: Task, actor: Any) -> _Flight:
        answers = actor.answers.options(num_returns="streaming").remote(task.message, task.size, CHUNK)
        return _Flight(task, actor, answers)

    def _events(self, flights: deque[_Flight]) -> Iterator[Event]:
        """Yield the next events of the first task; it is taken out with the last."""
        flight, errors = flights[0], self.ray.exceptions
        if flight.losses > MOST_LOSSES:  # it may exhaust the memory of its nodes
            flights.popleft()
            yield Event(flight.task, {}, death="TOO_BIG_TO_READ")
            return
        try:
            for message, payload, death in self.ray.get(next(flight.answers)):
                flight.waiting.append(Event(flight.task, message, payload, death))
        except errors.RayTaskError as e:
            if isinstance(e.cause, UserError):  # the child process cannot start
                raise e.cause from e
            raise
        except errors.RayError:
            self._replace(flight, flights)
            return
        last = bool(flight.waiting) and flight.waiting[-1].last
        if last:
            flights.popleft()
        if last or sum(len(event.payload) for event in flight.waiting) > HELD:
            yield from flight.waiting
            flight.waiting, flight.begun = [], True

    def _replace(self, lost: _Flight, flights: deque[_Flight]) -> None:
        """Give the tasks of an actor that is gone to the others; what came back of them is dropped."""
        with suppress(Exception):
            self.ray.kill(lost.actor)
        self.actors = [actor for actor in self.actors if actor is not lost.actor]
        if not self.actors:
            raise UserError(f"the cluster at {self.address} has lost its nodes; run the same command again to continue")
        say(f"a process on the Ray cluster is gone; its files begin again on the {len(self.actors)} others")
        for i, flight in enumerate(flights):
            if flight.actor is lost.actor:
                again = self._begin(flight.task, self.actors[self._next(flights)])
                again.waiting = [Event(flight.task, {"retry": True})] if flight.begun else []
                again.losses = flight.losses + (flight is lost)
                flights[i] = again
