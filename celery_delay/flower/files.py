"""Our scripts and styles, beside Flower's own static files."""

from __future__ import annotations

from pathlib import Path

from tornado.web import RequestHandler, StaticFileHandler

from celery_delay.flower.answering import HEADERS

__all__ = ["FOLDER", "FilesHandler", "address_of"]

FOLDER = Path(__file__).parent / "static"
#: Not of files: they have their version in their address, and may be kept.
_NOT_OF_FILES = "Cache-Control"


class FilesHandler(StaticFileHandler):
    """A file; like Flower's, also for who has not logged in."""

    def set_default_headers(self) -> None:
        """Those of all our answers, but for the one about caches."""
        for name, value in HEADERS.items():
            if name != _NOT_OF_FILES:
                self.set_header(name, value)

    def set_extra_headers(self, path: str) -> None:
        """A script that another one imports has no version in its address: it is looked after
        each time, lest a page mixes two releases."""
        if not self.get_query_argument("v", ""):
            self.set_header("Cache-Control", "no-cache")


def address_of(handler: RequestHandler, name: str) -> str:
    """Where *handler*'s browser finds the file; another address once its content is another."""
    version = FilesHandler.get_version({"static_path": str(FOLDER)}, name)
    address = handler.reverse_url("delayed_files", name)
    return f"{address}?v={version}" if version else address
