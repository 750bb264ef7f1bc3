"""What a request says: query arguments and fields of a body, each checked under its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from celery_delay.domain.states import State
from celery_delay.flower.answering import Refused
from celery_delay.message.instants import instant_of

if TYPE_CHECKING:
    from tornado.web import RequestHandler

    from celery_delay.app import CeleryDelay

__all__ = ["FILTERS", "Asked", "query"]

_T = TypeVar("_T")

#: Longest text that is taken for anything; ids and names are shorter.
LONGEST = 1_000
#: Names of what says which entries are meant, in queries and in bodies.
FILTERS = ("task", "queue", "namespace", "tag", "unique_key", "state", "eta_from", "eta_to")


class Asked:
    """Values by name.  What was not given, or is empty, is ``None``.

    Arguments:
        given: name → its values.
        known: the names that there are.

    Raises:
        Refused: 400 for another name; so do the methods for a value that cannot be meant.
    """

    def __init__(self, given: Mapping[str, Sequence[Any]], known: Sequence[str]) -> None:
        for name in given:
            if name not in known:
                raise Refused(400, f"there is no {name!r}: known are {', '.join(known)}")
        self._given = given

    def value(self, name: str) -> Any:
        """The one value that was given, as it is."""
        given = self._given.get(name, ())
        return given[0] if given else None

    def texts(self, name: str) -> list[str]:
        """All that was given."""
        found = [one for one in self._given.get(name, ()) if one not in (None, "")]
        for one in found:
            if not isinstance(one, str):
                raise Refused(400, f"{name} must be a text, not {one!r}")
            if len(one) > LONGEST:
                raise Refused(400, f"{name} has {len(one)} characters: {LONGEST} at most")
        return found

    def text(self, name: str) -> str | None:
        """The one text that was given."""
        found = self.texts(name)
        if len(found) > 1:
            raise Refused(400, f"{name} was given {len(found)} times")
        return found[0] if found else None

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number between two bounds."""
        given = self._given.get(name, ())
        if not given or given[0] == "":
            return default
        try:
            if isinstance(given[0], (bool, float)):
                raise ValueError
            found = int(given[0])
        except (TypeError, ValueError):
            raise Refused(400, f"{name}={given[0]!r} is no whole number") from None
        if not low <= found <= high:
            raise Refused(400, f"{name}={found} must be from {low} to {high}")
        return found

    def choice(self, name: str, default: str, *allowed: str) -> str:
        """One of some words."""
        found = self.text(name) or default
        if found not in allowed:
            raise Refused(400, f"{name}={found!r} must be one of {', '.join(allowed)}")
        return found

    def flag(self, name: str) -> bool:
        """Whether it is true; false if it was not given."""
        given = self._given.get(name, ())
        if given and not isinstance(given[0], bool):
            raise Refused(400, f"{name} must be true or false, not {given[0]!r}")
        return bool(given and given[0])

    def instant_ms(self, name: str, delayed: CeleryDelay) -> int | None:
        """An instant: ISO 8601, or milliseconds since 1970."""
        given = self._given.get(name, ())
        if not given or given[0] == "":
            return None
        value = given[0]
        if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
            return self.number(name, 0, 0, 10**15)
        return self._made(
            name,
            lambda: instant_of(
                value, app_timezone=delayed.app.timezone, naive_eta=delayed.settings.naive_eta
            ),
        )

    def filters(self, delayed: CeleryDelay) -> dict[str, Any]:
        """The filters as ``app.delayed.list`` has them."""
        states = [one.upper() for one in self.texts("state")]
        for one in states:
            if one not in State.__members__:
                known = ", ".join(State.__members__)
                raise Refused(400, f"state={one!r} is none of {known}")
        found = {
            "task": self.text("task"),
            "queue": self.text("queue"),
            "namespace": self.text("namespace"),
            "unique_key": self.text("unique_key"),
            "tag": self.texts("tag") or None,
            "state": states or None,
            "after_ms": self.instant_ms("eta_from", delayed),
            "before_ms": self.instant_ms("eta_to", delayed),
        }
        return {name: value for name, value in found.items() if value is not None}

    @staticmethod
    def _made(name: str, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except (TypeError, ValueError) as exc:
            raise Refused(400, f"{name}: {exc}") from None


def query(handler: RequestHandler, *known: str) -> Asked:
    """The query of a request."""
    names = handler.request.query_arguments
    return Asked({name: handler.get_query_arguments(name) for name in names}, known)
