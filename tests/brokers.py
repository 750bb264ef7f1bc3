"""RabbitMQ for tests: a virtual host on the common server, and nodes that a test may kill.

A node lives in a folder of its own, on free ports of 127.0.0.1, without plug-ins; the kernel
ends it with the test.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import trustme
from kombu import Connection

from celery_delay.embedded import die_with_parent, free_port
from tests.processes import wait_until
from tests.servers import unavailable

__all__ = ["MAX_MESSAGE_SIZE", "OwnRabbitMQ", "taken"]

#: What our nodes take at most, in bytes; RabbitMQ's own bound is 128 MiB.
MAX_MESSAGE_SIZE = 100_000
_CONFIGURATION = f"""\
max_message_size = {MAX_MESSAGE_SIZE}
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.relative = 0.4
listeners.ssl.default = 127.0.0.1:{{tls_port}}
ssl_options.cacertfile = {{folder}}/ca.pem
ssl_options.certfile = {{folder}}/server.pem
ssl_options.keyfile = {{folder}}/server.key
"""


class OwnRabbitMQ:
    """One node.

    Attributes:
        url: of its virtual host, as ``broker_url`` has it.
        port: where it listens.
        tls_url: the same by TLS.
        ca: file with the certificate to verify it by.
    """

    def __init__(self) -> None:
        self._programs = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="celery-delay-rabbitmq-"))
        self.port, tls_port, distribution = (free_port() for _ in range(3))
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self.tls_url = f"amqps://guest:guest@127.0.0.1:{tls_port}//"
        self.ca = self._folder / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(self._folder / "server.key")
        certificate.cert_chain_pems[0].write_to_path(self._folder / "server.pem")
        configuration = _CONFIGURATION.format(tls_port=tls_port, folder=self._folder)
        (self._folder / "rabbitmq.conf").write_text(configuration)
        self._name = f"celery-delay-{self.port}@localhost"
        self._env = {
            **{key: value for key, value in os.environ.items() if "RABBITMQ" not in key},
            "HOME": str(self._folder),  # the cookie is made there
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "logs"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            # the shell script becomes the node, so that what we kill is the node
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._alarmed = False
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start it, with the data that it left; returns when it takes connections."""
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                die_with_parent([str(self._programs / "rabbitmq-server")]),
                env=self._env,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self._answers, 120, f"{self}")

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: it answers nobody until :meth:`resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def alarm(self, *, on: bool) -> None:
        """Be in memory alarm, in which publishers are blocked."""
        self._alarmed = on
        self.control("set_vm_memory_high_watermark", "0.0000001" if on else "0.4")

    def mend(self) -> None:
        """Let it run, and take messages."""
        assert self._process is not None
        if self._process.poll() is not None:
            self.start()
        self.resume()
        if self._alarmed:
            self.alarm(on=False)

    def control(self, *words: str) -> str:
        """``rabbitmqctl WORDS``; what it prints."""
        command = [str(self._programs / "rabbitmqctl"), "-q", "-n", self._name, *words]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def close(self) -> None:
        """End it, and remove what it kept."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __str__(self) -> str:
        output = self._folder / "output"
        tail = output.read_text(errors="replace")[-2_000:] if output.exists() else ""
        return f"{self._name}\n{tail}"

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self
        try:
            with Connection(self.url, connect_timeout=1) as connection:
                connection.connect()
        except OSError:
            return False
        return True


def taken(url: str, queue: str) -> list[Any]:
    """All messages on the queue, as py-amqp has them, the oldest first; they are gone then.

    Of a queue that does not exist: none.
    """
    messages = []
    with Connection(url, connect_timeout=5) as connection:
        channel = connection.channel()
        try:
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                messages.append(message)
        except connection.channel_errors as exc:
            if getattr(exc, "reply_code", None) != 404:
                raise
    return messages


def _programs() -> Path:
    """Where RabbitMQ's own scripts are: Debian's on the path become another user."""
    found = shutil.which("rabbitmq-server", path=f"/usr/lib/rabbitmq/bin:{os.environ['PATH']}")
    return Path(found).parent if found else unavailable("rabbitmq", "no rabbitmq-server is here")
