"""A primary, a replica, and three Sentinels that watch them, all on free ports of ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import redis

from celery_delay.embedded import EmbeddedRedis, die_with_parent
from tests.processes import wait_until
from tests.servers import REDIS, RedisServers

__all__ = ["NAME", "SentinelGroup"]

#: What the Sentinels call the primary.
NAME = "mymaster"


class SentinelGroup:
    """A context manager; the Sentinels fail over half a second after the primary falls silent.

    Attributes:
        servers: the primary of the beginning, and its replica.
        url: ``sentinel://…;sentinel://…;sentinel://…``, without a DB.
    """

    def __init__(self, servers: RedisServers, sentinels: int = 3) -> None:
        self.servers = [
            servers.new(REDIS, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
            for _ in range(2)
        ]
        self._home = tempfile.TemporaryDirectory(prefix="sentinels-")
        self._count = sentinels
        self.ports: list[int] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{port}/0" for port in self.ports)

    def __enter__(self) -> SentinelGroup:
        first, second = self.servers
        with _client(second) as client:
            client.replicaof("127.0.0.1", str(first.port))
        for number in range(self._count):
            self._start(number)
        wait_until(self._is_complete, 30, "Sentinels that know each other and the replica")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for server in self.servers:
            if server.pid is not None:
                os.kill(server.pid, signal.SIGCONT)
            server.stop()
        self._home.cleanup()

    def primary(self) -> EmbeddedRedis:
        """The server that a Sentinel names now."""
        ports = [int(self._ask(0, "GET-MASTER-ADDR-BY-NAME", NAME)[1])]
        return next(one for one in self.servers if one.port in ports)

    def replica(self) -> EmbeddedRedis:
        """The other one."""
        primary = self.primary()
        return next(one for one in self.servers if one is not primary)

    def await_replication(self) -> None:
        """Return when the replica has all that the primary has acknowledged."""
        with _client(self.primary()) as client:
            assert client.wait(1, 5_000) == 1, "the replica does not follow"

    def await_promotion(self, after: EmbeddedRedis) -> EmbeddedRedis:
        """Return the new primary when all Sentinels name it, and it is one."""

        def promoted() -> EmbeddedRedis | None:
            named = {
                int(self._ask(number, "GET-MASTER-ADDR-BY-NAME", NAME)[1])
                for number in range(self._count)
            }
            return None if after.port in named or len(named) > 1 else self.primary()

        found: EmbeddedRedis = wait_until(promoted, 30, "a new primary")
        with _client(found) as client:
            wait_until(lambda: client.role()[0] == b"master", what="its role")
        return found

    def heal(self) -> None:
        """Bring back who is down or stopped, and wait until it follows the primary."""
        for server in self.servers:
            if server.pid is None:
                server.start()
            assert server.pid is not None
            os.kill(server.pid, signal.SIGCONT)
        # Sentinel would do it too, in the same words, but takes ten seconds
        with _client(self.replica()) as client, client.pipeline(transaction=True) as demotion:
            demotion.replicaof("127.0.0.1", str(self.primary().port))
            demotion.execute_command("CLIENT", "KILL", "TYPE", "normal")
            demotion.execute()
        wait_until(self._is_complete, 60, "the former primary as a replica")

    def _is_complete(self) -> bool:
        """Whether one server follows the other, and each Sentinel knows all others and it."""
        try:
            with _client(self.replica()) as client:
                said = client.info("replication")
            if said["role"] != "slave" or said["master_link_status"] != "up":
                return False
            return all(self._sees_all(number) for number in range(self._count))
        except redis.RedisError:
            return False

    def _sees_all(self, number: int) -> bool:
        flat = self._ask(number, "MASTER", NAME)
        said: Mapping[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
        others = int(said[b"num-other-sentinels"]) == self._count - 1
        flat = (self._ask(number, "REPLICAS", NAME) or [[]])[0]
        replica = dict(zip(flat[::2], flat[1::2], strict=True))
        return others and said[b"flags"] == b"master" and replica.get(b"flags") == b"slave"

    def _ask(self, number: int, *command: str) -> list:  # type: ignore[type-arg]
        connection = redis.Connection(port=self.ports[number], socket_timeout=5, protocol=2)
        try:
            connection.send_command("SENTINEL", *command)
            answer: list = connection.read_response()  # type: ignore[type-arg]
            return answer
        finally:
            connection.disconnect()

    def _start(self, number: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        folder = Path(self._home.name) / str(number)
        folder.mkdir()
        conf = folder / "sentinel.conf"
        conf.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.servers[0].port} {self._count // 2 + 1}\n"
            f"sentinel down-after-milliseconds {NAME} 500\n"
            f"sentinel failover-timeout {NAME} 3000\n"
            f"sentinel parallel-syncs {NAME} 1\n"
        )
        command = [str(self.servers[0].executable), str(conf), "--sentinel"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                die_with_parent(command), stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        self.ports.append(port)

        def answers() -> bool:
            with socket.socket() as attempt:
                return attempt.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, what="a Sentinel")


def _client(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket), socket_timeout=5)
