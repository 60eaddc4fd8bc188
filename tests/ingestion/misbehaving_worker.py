"""A worker for tests of the pool: it follows each message, including crashing, hanging and invalid answers."""

import os
import signal
import sys
import time

from medssl.ingestion.worker_pool import HEADER, limit_resources, receive, send


def main():
    messages, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    init_message, _ = receive(messages)
    limit_resources(init_message["memory"])
    send(answers, {"ready": True})
    while True:
        message, _ = receive(messages)
        if message["do"] == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if message["do"] == "die once" and not os.path.exists(message["mark"]):
            send(answers, {"half": 1}, b"x" * 1000)
            with open(message["mark"], "w"):
                os.kill(os.getpid(), signal.SIGKILL)
        if message["do"] == "sleep":
            time.sleep(message["seconds"])
        if message["do"] == "announce":
            send(answers, {"alive": message["bytes"]})
            time.sleep(message["seconds"])
        if message["do"] == "gibberish":
            answers.write(b"\xff" * 64)
            answers.flush()
        if message["do"] == "deep":
            text = b"[" * 100_000
            answers.write(HEADER.pack(len(text), 0) + text)
            answers.flush()
        if message["do"] == "fill":
            try:
                bytearray(1 << 40)
            except MemoryError:
                send(answers, {"full": True})
        send(answers, {"did": message["do"], "n": message.get("n")}, b"payload" * message.get("big", 1))
        send(answers, {"end": True})


if __name__ == "__main__":
    sys.exit(main())
