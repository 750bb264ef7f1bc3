"""Celery's own tests: from the sdist of the very version that is installed, fetched by pip.

Nothing of them is copied into our repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

#: What of the sdist is unpacked: without celery itself, so that the installed one is tested.
WANTED = ("t/", "pyproject.toml", "setup.cfg")


def cache() -> Path:
    """The folder that keeps the sdist, and the logs of runs that failed."""
    default = Path(tempfile.gettempdir()) / f"celery-suite-{os.getuid()}"
    return Path(os.environ.get("CELERY_SUITE_CACHE") or default)


def fetch() -> Path:
    """The sdist of the installed Celery; from the cache, if it is there."""
    wanted = f"celery-{version('celery')}"
    archive = cache() / f"{wanted}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        only = ["--no-deps", "--no-binary", ":all:", "--dest", str(cache())]
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
