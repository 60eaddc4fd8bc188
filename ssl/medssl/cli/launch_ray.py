"""`launcher=ray`: jobs as tasks of a Ray cluster; a job whose node is lost begins again on another one, and its run goes on.

All nodes see stores and runs under the same paths, and have the same version of medssl.
"""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medssl import __version__
from medssl.cli.job import Job
from medssl.errors import PREEMPTED, UserError
from medssl.progress import say
from medssl.ray_cluster import connect

LOSSES = 20  # nodes that a job may lose
PAUSE = 5.0  # seconds before a job that could not go on is tried again


class Preempted(Exception):
    """The node is being stopped: the run has saved, and goes on elsewhere."""


def launch_on_ray(jobs: Mapping[Path, Job], folder: Path, settings: Mapping[str, str]) -> str:
    """Run all jobs on the cluster, as many at a time as it has processors and GPUs for; returns what to print.

    folder: for the log of each job. Raises UserError without a cluster, if no node has what a job asks for, and, after all
    jobs have ended, if one failed.
    """
    address = settings.get("address", "auto")
    ray, ours = connect(address, "launcher=ray")
    try:
        asked = {"CPU": float(settings.get("cpus", 1)), "GPU": float(settings.get("gpus", 0))}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(kind, 0) >= n for kind, n in asked.items()) for node in nodes):
            has = "; ".join(", ".join(f"{kind}: {node.get(kind, 0):g}" for kind in asked) for node in nodes)
            raise UserError(
                f"no node of the cluster at {address} has cpus={asked['CPU']:g} gpus={asked['GPU']:g} ({has})"
            )
        folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"num_cpus": asked["CPU"], "num_gpus": asked["GPU"]}
        task = ray.remote(**options, max_retries=LOSSES, retry_exceptions=[Preempted])(run_on_node)
        logs = {out: folder.absolute() / f"{i}-{out.name}.log" for i, out in enumerate(jobs)}
        waiting = {task.remote(job, str(logs[out]), __version__): out for out, job in jobs.items()}
        failed = []
        try:
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                out = waiting.pop(ended)
                why = _outcome(ray, ended)
                say(f"{out}: {why or 'finished'}; {len(waiting)} to go")
                failed += [(out, why)] * bool(why)
        except KeyboardInterrupt:
            for each in waiting:
                ray.cancel(each)  # interrupts it: the run saves and ends
            ray.wait(list(waiting), num_returns=len(waiting), timeout=60)
            raise
    finally:
        if ours:
            ray.shutdown()
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs did not finish; {failed[0][0]}: {failed[0][1]}; logs: {folder}"
        )
    return f"{len(jobs)} job{'s'[: len(jobs) > 1]} finished; logs: {folder}"


def _outcome(ray: Any, ended: Any) -> str:
    """Return why a job failed, "" if it did not."""
    try:
        return str(ray.get(ended))
    except ray.exceptions.RayTaskError as e:
        return " ".join(str(e.cause).split())[:300]
    except ray.exceptions.RayError as e:
        return f"lost with its node ({type(e).__name__}); run the same command again to continue"


def run_on_node(job: Job, log: str, version: str) -> str:
    """Run a job in a process of its own, on the node; returns why it failed, "" if it did not.

    Raises Preempted if the run has saved because its node is being stopped.
    """
    if version != __version__:
        return f"a node has version {__version__} of medssl instead of {version}; install the same on every node"
    try:
        with open(log, "ab") as out:
            child = job.start(stdout=out, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent)
            try:
                code = child.wait()
            except BaseException:  # ray.cancel
                job.stop()
                raise
    except OSError as e:
        return f"a node cannot write {log} ({e.strerror}); it must be on a disk that all nodes share"
    if code == PREEMPTED:
        time.sleep(PAUSE)
        raise Preempted
    said = [line for line in Path(log).read_text(errors="replace").splitlines() if line.startswith("medssl: ")]
    return "" if not code else said[-1].removeprefix("medssl: ") if said else f"exit code {code}, see {log}"


def _end_with_parent() -> None:
    """Let the process end when Ray's does, with its node: another node goes on with the run, from its last checkpoint."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
