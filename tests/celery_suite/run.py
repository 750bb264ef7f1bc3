"""Run Celery's own beat tests with our scheduler in place: `tox -e celery-suite`.

The tests come with Celery's sdist, fetched by pip in the very version that is installed, into
a cache folder; nothing of them is copied here.  They run in a temporary folder, so that the
installed celery and celery_delay are what is tested, and on a Redis of our own.  Tests that
cannot hold for our scheduler are listed, with the reason, in ``deselected.txt``.

Arguments are handed to pytest.  ``CELERY_SUITE_CACHE`` names the cache folder.
Exit code: pytest's.  The outcome is written to ``docs/reports/celery-suite.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from celery_delay.embedded import EmbeddedRedis

HERE = Path(__file__).resolve().parent
REPORT = HERE.parents[1] / "docs" / "reports" / "celery-suite.json"
FILES = ("t/unit/app/test_beat.py", "t/integration/test_beat.py")
#: What of the sdist is unpacked: without celery itself.
WANTED = ("t/", "pyproject.toml", "setup.cfg")


def fetch() -> Path:
    """The sdist of the installed Celery."""
    wanted = f"celery-{version('celery')}"
    default = Path(tempfile.gettempdir()) / f"celery-suite-{os.getuid()}"
    cache = Path(os.environ.get("CELERY_SUITE_CACHE") or default)
    archive = cache / f"{wanted}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        only = ["--no-deps", "--no-binary", ":all:", "--dest", str(cache)]
        subprocess.run([*pip, *only, wanted.replace("-", "==")], check=True)
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Its tests, and their pytest configuration, into *folder*."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, path = member.name.partition("/")
            if path.startswith(WANTED) and (member.isfile() or member.isdir()):
                member.name = path
                tar.extract(member, folder)


def run(folder: Path, redis_url: str, port: int, arguments: list[str]) -> int:
    """pytest's exit code."""
    counts = folder / "counts.json"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DELAY_")},
        "PYTHONPATH": str(HERE),
        "SUITE_COUNTS": str(counts),
        "TEST_BROKER": redis_url,
        "TEST_BACKEND": redis_url,
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(port),
        "WORKER_LOGLEVEL": "INFO",
    }
    options = ["-p", "own_scheduler", "-p", "no:cacheprovider", "-r", "fE"]
    command = [sys.executable, "-m", "pytest", *options, *FILES, *arguments]
    code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
    if not arguments and counts.exists():
        outcome = {"celery": version("celery"), "files": FILES, **json.loads(counts.read_text())}
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(json.dumps(outcome, indent=2) + "\n")
    return code


def main() -> int:
    archive = fetch()
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(port=None) as server:
        unpack(archive, Path(folder))
        return run(Path(folder), server.tcp_url, server.port, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
