"""Starts one command for `embedded.process`, as a script of its own: detached, or as another user, or both.

It runs before anything else is imported and imports only the standard library, because what it does (forking,
changing the user, raising capabilities) must not happen inside a program that has threads. Its single argument is
JSON: {"command", "log", "uid"?, "gid"?, "traverse"?, "cwd", "umask"}. A detached command's process id is
written to standard output.
"""

import ctypes
import json
import os
import sys

_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522


def _prctl(*arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:5]]
    if libc.prctl(*padded) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def _hold_only(capability: int) -> None:
    """Make one capability permitted, effective and inheritable, and give up the others."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    bit = 1 << capability
    data = (Data * 2)(Data(bit, bit, bit), Data(0, 0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(ctypes.byref(Header(_CAPABILITY_VERSION_3, 0)), data) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def _become(uid: int, gid: int, traverse: bool) -> None:
    """Become another user for good; with `traverse`, one that may still read and search every folder.

    The capability is ambient, so that it survives the exec; it lets the new user reach a data folder of its own that
    lies below folders closed to it, and write nowhere it could not write anyway.
    """
    if traverse:
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if traverse:
        _hold_only(_CAP_DAC_READ_SEARCH)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)


def main() -> None:
    """Do what the argument says."""
    order = json.loads(sys.argv[1])
    os.umask(order["umask"])
    os.chdir(order["cwd"])
    log = None
    if order["log"] is not None:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Twice away from whoever starts it: a session of its own, and no parent that would have to reap it.
        if os.fork():
            os._exit(0)
        os.setsid()
        child = os.fork()
        if child:
            os.write(1, str(child).encode())
            os._exit(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
    if order.get("uid") is not None:
        _become(order["uid"], order["gid"], order["traverse"])
    os.execv(order["command"][0], order["command"])  # noqa: S606


if __name__ == "__main__":
    main()
