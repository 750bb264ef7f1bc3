"""What a verb says: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["STATE_STYLES", "Output", "printable"]

STATE_STYLES: Mapping[str, str] = {
    "SUCCEEDED": "green",
    "CANCELLED": "yellow",
    "HELD": "yellow",
    "REVOKED": "yellow",
    "EXPIRED": "yellow",
    "RETRIED": "yellow",
    "FAILED": "red",
    "REJECTED": "red",
    "QUARANTINED": "red",
    "LOST": "red",
    "GAP": "red",
}

#: Wide enough that nothing is cut or wrapped in a file or a pipe.
_PIPE_WIDTH = 100_000


def printable(value: object) -> str:
    """*value* as text that cannot steer a terminal.

    Arguments and errors are other people's words: an escape sequence in them must not recolour,
    clear or retitle an operator's terminal, nor a line break fake a row.
    """
    text = "-" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


class Output:
    """Where one verb writes.

    Attributes:
        as_json: whether a program reads it; then only :meth:`document` may be called, once.
    """

    def __init__(self, *, as_json: bool, colours: bool = True) -> None:
        self.as_json = as_json
        self._colours = colours

    def document(self, value: Mapping[str, object]) -> None:
        """The JSON document."""
        # ASCII only: what could steer a terminal is escaped
        click.echo(json.dumps(value, indent=2))

    def line(self, text: str = "", style: str = "") -> None:
        """A line of text."""
        from rich.text import Text

        self._console().print(Text(printable(text) if text else "", style=style), soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        styles: Mapping[str, str] | None = None,
        right: Sequence[str] = (),
    ) -> None:
        """A table; no cell is ever cut, on a narrow terminal it is folded.

        Arguments:
            styles: the style of cells with this text, in whatever column.
            right: columns that are aligned to the right.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        console = self._console()
        table = Table(
            box=box.SIMPLE_HEAD if console.is_terminal else None,
            pad_edge=False,
            header_style="bold",
        )
        for column in columns:
            table.add_column(
                column, overflow="fold", justify="right" if column in right else "left"
            )
        for row in rows:
            cells = [printable(one) for one in row]
            table.add_row(*(Text(one, style=(styles or {}).get(one, "")) for one in cells))
        console.print(table)

    def facts(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Names and values, one a line; pairs without a value are left out."""
        from rich.text import Text

        told = [(name, printable(value)) for name, value in pairs if value not in (None, "")]
        width = max((len(name) for name, _ in told), default=0)
        for name, value in told:
            text = Text.assemble((name.ljust(width), "bold"), "  ", value)
            self._console().print(text, soft_wrap=True)

    def _console(self) -> Console:
        from rich.console import Console

        # made anew for each use: sys.stdout may have been replaced
        terminal = sys.stdout.isatty()
        options: dict[str, Any] = {} if terminal else {"width": _PIPE_WIDTH}
        return Console(
            force_terminal=terminal,
            no_color=not self._colours or None,
            highlight=False,
            markup=False,
            emoji=False,
            **options,
        )
