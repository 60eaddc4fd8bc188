"""Connection to a Ray cluster."""

import logging
import socket
from typing import Any

from medssl.errors import UserError

CONNECT = 10.0  # seconds to reach the cluster


def connect(address: str, use: str) -> tuple[Any, bool]:
    """Return Ray's module connected to the cluster at `address`, and whether this call connected it, so that the caller ends it.

    Args:
        address: host:port of the cluster's head, or auto for the cluster of this machine, which must be one of its nodes.
        use: the words of the command that ask for Ray, for errors.

    Raises UserError without Ray, and for an address that is no cluster.
    """
    try:
        import ray
    except ImportError as e:
        raise UserError(f"{use} needs Ray: pip install 'medssl[ray]'") from e
    if ray.is_initialized():
        return ray, False
    remedy = "start Ray there (ray start --head), or give the address that it prints"
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT).close()
        except (OSError, ValueError) as e:
            raise UserError(f"address={address} does not answer ({type(e).__name__}); {remedy}") from e
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as e:
        why = " ".join(str(e).split())[:200]
        raise UserError(f"address={address} is no Ray cluster for this machine: {why}; {remedy}") from e
    return ray, True
