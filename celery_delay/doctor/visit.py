"""What one visit has found out so far, so that it is asked for once."""

from __future__ import annotations

from functools import cached_property

from celery_delay.delayed.findings import Situation
from celery_delay.delayed.supervision import Supervision
from celery_delay.store.connection import Link
from celery_delay.store.examination import ServerFacts, examine_server

__all__ = ["Visit"]


class Visit:
    """One visit to *delayed*.  The properties raise StoreUnavailable."""

    def __init__(self, delayed: Supervision) -> None:
        self.delayed = delayed

    @cached_property
    def link(self) -> Link:
        """A connection to the store, made now."""
        link = self.delayed.links().link()
        link.connect()
        return link

    @cached_property
    def server(self) -> ServerFacts:
        """The store's server."""
        return examine_server(self.link)

    @cached_property
    def situation(self) -> Situation:
        """The shards, and who leads them."""
        return self.delayed.situation()

    def close(self) -> None:
        """Drop the connection."""
        if "link" in self.__dict__:
            self.link.close()
