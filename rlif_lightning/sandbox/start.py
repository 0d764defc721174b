"""Entry point of every sandboxed process: lock down, report it, then serve or judge.

Started as ``python -s -P -S -B -c <a line> '<settings as JSON>'`` by ``isolation.py``. The message
``{"up": true}`` is sent when nothing is left to give up and before any untrusted byte is read. What
fails earlier is this machine's fault; what fails later is the candidate's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from .candidate import serve
from .channel import Channel, ChannelError
from .judge import Candidate, run_tests
from .lockdown import lock_down


def main() -> None:
    """Run one sandboxed process with the settings of the command line."""
    settings = json.loads(sys.argv[1])
    # Opened here, because after the lockdown there may be no file system to open them in.
    files, nowhere = (
        (os.memfd_create("input"), os.memfd_create("output")),
        os.open(os.devnull, os.O_RDWR),
    )
    lock_down(settings["level"], settings["limits"], settings["readable"])
    reader, writer = os.dup(0), os.dup(1)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    if settings["role"] == "judge":
        # What the trainer sends is a data set's: its tests may be of any length.
        _judge(Channel(reader, writer, sys.maxsize), settings)
    else:
        os.write(writer, b'{"up": true}\n')
        serve(reader, writer, files, settings["output_bytes"])


def _judge(parent: Channel, settings: dict[str, Any]) -> None:
    from_candidate, to_candidate = settings["candidate"]
    channel = Channel(from_candidate, to_candidate, settings["output_bytes"])
    started = time.monotonic()
    try:
        up = channel.receive(started + settings["start_seconds"])
    except ChannelError as error:
        parent.send({"failed": str(error)}, started + 2 * settings["start_seconds"])
        return
    parent.send({"up": up == {"up": True}}, time.monotonic() + settings["start_seconds"])
    job = parent.receive(time.monotonic() + settings["start_seconds"])
    candidate = Candidate(channel, settings["call_seconds"])
    candidate.load({"code": job["code"], "program": False}, settings["wall_seconds"])
    verdict = run_tests(job, candidate)
    parent.send({**verdict, "nonce": job["nonce"]}, time.monotonic() + settings["start_seconds"])
