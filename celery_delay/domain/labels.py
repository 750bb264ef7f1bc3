"""What a caller writes on an entry beside its message: a namespace, tags, a unique key.

They cost nothing where there are none, and change nothing in how a task runs.  A retry, and
whatever else is sent for the same task from inside a run, bears the labels of that run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from celery_delay.domain.uniqueness import Unique

__all__ = ["LONGEST_NAMESPACE", "LONGEST_TAG", "MOST_TAGS", "NO_LABELS", "Labels", "labels_for"]

#: Longest texts, in characters, and most tags of one entry; SQL cannot index more.
LONGEST_NAMESPACE, LONGEST_TAG, MOST_TAGS = 255, 100, 20


class Labels(NamedTuple):
    """The labels of one entry.

    Attributes:
        namespace: whose task it is (a tenant, a team); ``None`` for nobody's.
        tags: words to find it by, in their order, each once.
        unique: the key that no other entry may have at the same time.
    """

    namespace: str | None = None
    tags: tuple[str, ...] = ()
    unique: Unique | None = None

    def encode(self) -> str:
        """As JSON; ``""`` where there is nothing to say."""
        said = {name: value for name, value in self._asdict().items() if value}
        return json.dumps(said, separators=(",", ":")) if said else ""

    @classmethod
    def read(cls, given: Any) -> Labels:
        """What :meth:`encode` has written, read as JSON; what is not known is left out."""
        if not isinstance(given, Mapping):
            return NO_LABELS
        namespace, tags = given.get("namespace"), given.get("tags")
        return cls(
            namespace if isinstance(namespace, str) else None,
            tuple(str(one) for one in tags) if isinstance(tags, (list, tuple)) else (),
            Unique.read(given.get("unique")),
        )

    def for_next_run(self) -> Labels:
        """Those of a run that is sent from inside a run with these.

        A key that was kept until the hand-off, or the start, is not taken again.
        """
        if self.unique is None or self.unique.until == "done":
            return self
        return self._replace(unique=None)


NO_LABELS = Labels()


def labels_for(namespace: Any, tags: Any) -> Labels:
    """The labels that a caller gives.

    Raises:
        TypeError, ValueError: about the argument they name.
    """
    if namespace is None and not tags:
        return NO_LABELS
    if namespace is not None:
        _check("namespace", namespace, LONGEST_NAMESPACE)
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise TypeError(f"tags must be a list of texts, not {tags!r}")
    words = tuple(dict.fromkeys(tags))
    for one in words:
        _check("tags", one, LONGEST_TAG)
    if len(words) > MOST_TAGS:
        raise ValueError(f"tags: {len(words)} are too many, {MOST_TAGS} is the most")
    return Labels(namespace, words)


def _check(name: str, text: Any, longest: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name}: {text!r} must be a text")
    if not text or len(text) > longest or not text.isprintable():
        raise ValueError(
            f"{name}: {text!r} must have 1 to {longest} characters, and no control characters"
        )
