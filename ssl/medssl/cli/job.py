"""A command as a job of a cluster."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from medssl.errors import PREEMPTED

SAVING = 60.0  # seconds that a run is given to save; a step and a checkpoint take less
OF_SLURM = (
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NNODES",
    "SLURM_STEP",
    "SLURM_TASKS",
)
"""Variables by which Lightning would wait for processes that Slurm does not start: a run starts its own."""


class Job:
    """One command, in a process of its own: what submitit or Ray runs on a node, and again after preemption.

    words: of the command line, after `medssl`.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command. Raises RuntimeError if it fails."""
        child = self.start()
        while child.poll() is None:  # not wait(), which would hold a lock that `checkpoint` needs
            time.sleep(0.2)
        if child.returncode == PREEMPTED:
            # the run got the scheduler's signal and this process did not: pass it on, so that submitit requeues
            signal.raise_signal(getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")))
        if child.returncode:
            raise RuntimeError(f"medssl {self.words[0]} ended with exit code {child.returncode}")
        return 0

    def start(self, **options: Any) -> subprocess.Popen[bytes]:
        """Start the command; options: of Popen."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(OF_SLURM)}
        self.child = subprocess.Popen([sys.executable, "-m", "medssl.cli", *self.words], env=own, **options)
        return self.child

    def stop(self) -> None:
        """Let the run save and end."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(SAVING)
            except subprocess.TimeoutExpired:
                self.child.kill()  # the last regular checkpoint remains

    def checkpoint(self) -> Any:
        """Let the run save and end, and return the same job for submitit to requeue; called on its signal."""
        from submitit.core.utils import DelayedSubmission

        self.stop()
        return DelayedSubmission(Job(self.words))
