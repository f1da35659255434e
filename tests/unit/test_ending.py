"""Who gets a deadline when signals come: the main process, and none of the pool's children."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal, sys, threading
from types import SimpleNamespace

from worker.ending import STOP_SLACK, Deadline

class Conf(dict):
    task_time_limit, worker_soft_shutdown_timeout = 600.0, 600.0

signal.signal(signal.SIGQUIT, lambda *_: None)
worker = SimpleNamespace(app=SimpleNamespace(conf=Conf({STOP_SLACK: 1.0})), pool=None)
Deadline(worker).start(worker)

def watched():
    signal.raise_signal(signal.SIGQUIT)
    return any(thread.name == "deadline" for thread in threading.enumerate())

# As the pool does when it replaces a child.
child = os.fork()
if child == 0:
    os._exit(int(watched()))
_, status = os.waitpid(child, 0)
print("child" if os.waitstatus_to_exitcode(status) else "", "main" if watched() else "")
"""


def test_a_child_that_replaced_another_has_no_deadline_of_its_own() -> None:
    """A SIGQUIT to the whole group reaches it too, and at its deadline it would kill its siblings."""
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (told.stdout.split(), told.stderr) == (["main"], "")
