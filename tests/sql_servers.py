"""PostgreSQL and MariaDB servers of a test's own, which it may kill.

Each lives in a folder of its own under ``/tmp``, since neither server runs as root and the
folders of pytest are root's alone.  It listens on a free port of 127.0.0.1, and the kernel
ends it with the test.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.processes import wait_until
from tests.servers import unavailable
from tests.sql import administrator, run_sql

__all__ = ["OwnMariaDB", "OwnPostgreSQL", "OwnServer"]


class OwnServer:
    """One server; :meth:`kill` ends it without warning, :meth:`start` starts it again.

    Arguments:
        options: more words for its command line, which outdo ours.
        of: the primary that it is a standby of; it has all that is there when this returns, and
            :meth:`promote` makes it take writes.

    Attributes:
        url: of an empty database in it.
    """

    user: str
    default: str
    ends_by: signal.Signals
    scheme: str

    def __init__(self, *options: str, of: OwnServer | None = None) -> None:
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="celery-delay-"))
        with socket.create_server(("127.0.0.1", 0)) as one:
            self.port = one.getsockname()[1]
        self.url = f"{self.scheme}@127.0.0.1:{self.port}/shop_audit"
        if os.getuid() == 0:
            owner = pwd.getpwnam(self.user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            if of is None:
                self.make()
                self.start()
                self.run_sql("CREATE DATABASE shop_audit")
            else:
                self.follow(of)
        except BaseException:
            self.close()
            raise

    def make(self) -> None:
        """Fill the folder."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """How the server is started."""
        raise NotImplementedError

    def follow(self, primary: OwnServer) -> None:
        """Become a standby of *primary*, which commits nothing from now on that is not here."""
        raise NotImplementedError

    def promote(self) -> None:
        """Make a standby whose primary is gone take writes."""
        raise NotImplementedError

    def run_sql(self, *statements: str) -> Any:
        """Run statements as the administrator; what the last one returns, if anything."""
        with administrator(self._default_url) as engine:
            return run_sql(engine, *statements)

    def start(self) -> None:
        """Start it; returns when it answers."""
        log = (self.folder / "log").open("ab")
        command = self._as_user(["--pdeathsig", self.ends_by.name.removeprefix("SIG")])
        self._process = subprocess.Popen(command + self.command(), stdout=log, stderr=log)
        log.close()
        wait_until(self._answers, 60, f"{self}")

    def kill(self) -> None:
        """End it at once: no shutdown, no farewell to its clients."""
        assert self._process is not None
        self._process.send_signal(self.ends_by)
        self._process.wait(30)

    def close(self) -> None:
        """End it, and remove what it kept."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __str__(self) -> str:
        log = self.folder / "log"
        tail = log.read_text(errors="replace")[-2_000:] if log.exists() else ""
        return f"{type(self).__name__} on port {self.port}\n{tail}"

    @property
    def _default_url(self) -> str:
        return f"{self.url.rpartition('/')[0]}/{self.default}"

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self
        try:
            return bool(self.run_sql("SELECT 1") == 1)
        except DBAPIError:
            return False

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            self._as_user([]) + list(command), capture_output=True, text=True, check=False,
            cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout

    def _as_user(self, options: Sequence[str]) -> list[str]:
        become = ["--reuid", self.user, "--regid", self.user, "--clear-groups"]
        return ["setpriv", *(become if os.getuid() == 0 else []), *options]


class OwnPostgreSQL(OwnServer):
    """``kill`` is the server's *immediate* shutdown: its processes end as in a crash."""

    user, default, ends_by = "postgres", "postgres", signal.SIGQUIT
    scheme = "postgresql+psycopg://postgres"

    def __init__(self, *options: str, of: OwnServer | None = None) -> None:
        self._bin = _newest("/usr/lib/postgresql", "*/bin/postgres", "postgres").parent
        super().__init__(*options, of=of)

    def make(self) -> None:
        self._run(
            f"{self._bin}/initdb", "-D", f"{self.folder}/data", "-U", "postgres", "-A", "trust",
            "--no-sync", "--no-locale", "-E", "UTF8",
        )  # fmt: skip

    def follow(self, primary: OwnServer) -> None:
        self._run(
            f"{self._bin}/pg_basebackup", "-h", "127.0.0.1", "-p", str(primary.port), "-U",
            "postgres", "-D", f"{self.folder}/data", "-R", "--checkpoint=fast", "--no-sync",
        )  # fmt: skip
        self.start()
        # after the copy, which would wait for a standby of its own otherwise
        primary.run_sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.run_sql("SELECT pg_reload_conf()")
        sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_until(lambda: primary.run_sql(sync) == 1, 20, "the standby has caught up")

    def promote(self) -> None:
        self.run_sql("SELECT pg_promote()")

    def command(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [f"{self._bin}/postgres", "-D", f"{self.folder}/data", *options, *self.options]


class OwnMariaDB(OwnServer):
    """``kill`` is SIGKILL."""

    user, default, ends_by = "mysql", "mysql", signal.SIGKILL
    scheme = "mysql+pymysql://root"

    def __init__(self, *options: str, of: OwnServer | None = None) -> None:
        self._server = _newest("/usr/sbin", "mariadbd", "mariadbd")
        super().__init__(*options, of=of)

    def make(self) -> None:
        self._run(
            "mariadb-install-db", "--no-defaults", f"--datadir={self.folder}/data",
            "--auth-root-authentication-method=normal", "--skip-test-db",
            "--skip-name-resolve",
        )  # fmt: skip

    def follow(self, primary: OwnServer) -> None:
        self.make()
        self.options = (
            "--read-only=ON", "--rpl-semi-sync-slave-enabled=ON", "--log-bin", "--server-id=2",
            *self.options,
        )  # fmt: skip
        self.start()
        self.run_sql(
            f"CHANGE MASTER TO master_host='127.0.0.1', master_port={primary.port},"
            " master_user='root', master_use_gtid=slave_pos",
            "START SLAVE",
        )
        primary.run_sql("SET GLOBAL rpl_semi_sync_master_enabled = ON")
        ready = "SELECT variable_value FROM information_schema.global_status"
        ready += " WHERE variable_name = 'Rpl_semi_sync_master_clients'"
        wait_until(lambda: primary.run_sql(ready) == "1", 20, "the replica is there")
        here = primary.run_sql("SELECT @@global.gtid_binlog_pos")
        self.run_sql(f"SELECT master_gtid_wait('{here}', 20)")

    def promote(self) -> None:
        # what came over is not all done yet
        with administrator(self._default_url) as engine, engine.connect() as connection:
            [status] = connection.execute(text("SHOW SLAVE STATUS")).mappings()
        self.run_sql(
            f"SELECT master_gtid_wait('{status['Gtid_IO_Pos']}', 20)",
            "STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL read_only = OFF",
        )  # fmt: skip

    def command(self) -> list[str]:
        return [
            str(self._server), "--no-defaults", f"--datadir={self.folder}/data",
            f"--port={self.port}", "--bind-address=127.0.0.1", f"--socket={self.folder}/socket",
            f"--pid-file={self.folder}/pid", "--innodb-buffer-pool-size=16M",
            "--innodb-log-file-size=8M", "--skip-name-resolve", *self.options,
        ]  # fmt: skip


def _newest(folder: str, pattern: str, name: str) -> Path:
    """A server's program, which distributions do not put on the path."""
    found = shutil.which(name)
    if found:
        return Path(found).resolve()
    installed = sorted(Path(folder).glob(pattern), key=lambda one: one.parts)
    return installed[-1] if installed else unavailable(name, f"no {folder}/{pattern}")
