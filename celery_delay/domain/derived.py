"""What follows from the settings, in the words that the code asks in."""

from __future__ import annotations

__all__ = ["Derived"]


class Derived:
    """The part of ``Settings`` that nobody sets."""

    database_url: str | tuple[str, ...] | None
    database_engine: object | None
    audit: str
    hot_window: float
    guard: str
    guard_patience: float
    guard_keep: float
    add_window: float

    @property
    def has_database(self) -> bool:
        """Whether there is an audit database, written to or not."""
        return self.database_url is not None or self.database_engine is not None

    @property
    def audited(self) -> bool:
        """Whether transitions are journalled."""
        return self.audit != "off" and self.has_database

    @property
    def is_sync(self) -> bool:
        """Whether SQL has each entry before Redis is told of it."""
        return self.audit == "sync"

    @property
    def is_backed(self) -> bool:
        """Whether SQL may have entries that are changed there first."""
        return self.is_sync or bool(self.hot_window)

    @property
    def hot_window_ms(self) -> int:
        """:attr:`hot_window` in milliseconds."""
        return round(self.hot_window * 1000)

    @property
    def tracks(self) -> bool:
        """Whether what was handed off is watched until it begins."""
        return self.guard != "off"

    @property
    def guards(self) -> bool:
        """Whether workers claim a run before they begin it."""
        return self.guard == "guard"

    @property
    def patience_ms(self) -> int:
        """:attr:`guard_patience` in milliseconds."""
        return round(self.guard_patience * 1000)

    @property
    def keep_ms(self) -> int:
        """:attr:`guard_keep` in milliseconds."""
        return round(self.guard_keep * 1000)

    @property
    def window_ms(self) -> int:
        """:attr:`add_window` in milliseconds."""
        return round(self.add_window * 1000)
