"""What a verb says: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

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
    "DROPPED": "yellow",
}

#: Wide enough that nothing is cut or wrapped in a file or a pipe.
_PIPE_WIDTH = 100_000
#: Columns of a line with a bar in a pipe.
_PIPE_BARS = 80


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


#: A full cell, and its eighths.
_CELL, _EIGHTHS = "\u2588", ("", *map(chr, range(0x258F, 0x2588, -1)))


def _bar(length: float, encoding: str) -> str:
    """A bar of that many cells; a number that is not zero can be seen."""
    cells, eighths = divmod(max(round(length * 8), 1 if length else 0), 8)
    if "utf" not in encoding.lower():
        return "#" * max(cells, 1 if length else 0)
    return _CELL * cells + _EIGHTHS[eighths]


def _width(rows: Sequence[Sequence[str]], number: int, column: str) -> int:
    from rich.cells import cell_len

    return max(len(column), *(cell_len(row[number]) for row in rows), 0)


def _cell(text: str, may_be_cut: bool, styles: Mapping[str, str]) -> Text:
    from rich.text import Text

    overflow: Any = "ellipsis" if may_be_cut else "fold"
    return Text(text, style=styles.get(text, ""), overflow=overflow, no_wrap=may_be_cut)


def _fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, spare: Sequence[str]
) -> list[int]:
    """The numbers of the columns to show: without *spare* ones if the table is too wide."""
    kept = list(range(len(columns)))
    for name in spare:
        wide = [_width(rows, n, columns[n]) for n in kept]
        if sum(wide) + 3 * (len(wide) - 1) + 2 <= width:  # with what rich puts between
            break
        kept = [n for n in kept if columns[n] != name]
    return kept


class Output:
    """Where one verb writes.

    Attributes:
        as_json: whether a program reads it; then only :meth:`document` may be called, once.
    """

    def __init__(self, *, as_json: bool, colours: bool = True) -> None:
        self.as_json = as_json
        self._colours = colours
        #: Catches what is written, for :meth:`live`.
        self._captive: Console | None = None

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
        spare: Sequence[str] = (),
        cut: Sequence[str] = (),
    ) -> None:
        """A table; no cell is cut but for *cut*, on a narrow terminal it is folded.

        Arguments:
            styles: the style of cells with this text, in whatever column.
            right: columns that are aligned to the right.
            spare: columns that are left out on a terminal that is too narrow, the first one
                first.
            cut: columns whose texts are then cut.
        """
        from rich import box
        from rich.table import Table

        console = self._console()
        table = Table(
            box=box.SIMPLE_HEAD if console.is_terminal else None,
            pad_edge=False,
            header_style="bold",
        )
        told = [[printable(one) for one in row] for row in rows]
        kept = _fitting(columns, told, console.width, spare)
        for number in kept:
            column = columns[number]
            # what may be cut gives way first; rich would take from all alike
            table.add_column(
                column,
                no_wrap=bool(cut) and column not in cut,
                overflow="fold",
                justify="right" if column in right else "left",
            )
        for row in told:
            table.add_row(*(_cell(row[n], columns[n] in cut, styles or {}) for n in kept))
        console.print(table)

    def bars(self, rows: Sequence[tuple[str, int, bool]]) -> None:
        """Names, numbers and a bar for each; the longest bar ends where the terminal does.

        Arguments:
            rows: name, number, and whether it has a bar.
        """
        from rich.text import Text

        console = self._console()
        names = max((len(name) for name, _, _ in rows), default=0)
        numbers = max((len(str(number)) for _, number, _ in rows), default=0)
        most = max((number for _, number, has_bar in rows if has_bar), default=0)
        columns = console.width if console.is_terminal else _PIPE_BARS
        room = max(1, columns - names - numbers - 5)
        for name, number, has_bar in rows:
            text = Text(f"{printable(name).ljust(names)}  {number:>{numbers}}")
            if has_bar and number:
                text.append("  " + _bar(number / most * room, console.encoding), "cyan")
            console.print(text, soft_wrap=True)

    def named(self, name: str, text: str, style: str, names: Sequence[str]) -> None:
        """A line of text after a coloured name, which is as wide as the widest of *names*."""
        from rich.text import Text

        width = max(map(len, names))
        line = Text.assemble((name.ljust(width), style), "  ", printable(text))
        self._console().print(line, soft_wrap=True)

    def facts(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Names and values, one a line; pairs without a value are left out."""
        from rich.text import Text

        told = [(name, printable(value)) for name, value in pairs if value not in (None, "")]
        width = max((len(name) for name, _ in told), default=0)
        for name, value in told:
            text = Text.assemble((name.ljust(width), "bold"), "  ", value)
            self._console().print(text, soft_wrap=True)

    @contextmanager
    def live(self) -> Iterator[Callable[[Callable[[], None]], None]]:
        """A place that is written again and again; where that is no terminal, lines go on.

        Yields:
            What to call with a function that writes all of it.
        """
        console = self._console()
        if not console.is_terminal:
            yield lambda write: write()
            return
        from rich.live import Live
        from rich.text import Text

        with Live(console=console, auto_refresh=False, screen=True) as live:

            def shown(write: Callable[[], None]) -> None:
                self._captive = console
                try:
                    with console.capture() as captured:
                        write()
                finally:
                    self._captive = None
                text = Text.from_ansi(captured.get())
                text.overflow, text.no_wrap = "crop", True
                live.update(text, refresh=True)

            yield shown

    def _console(self) -> Console:
        if self._captive is not None:
            return self._captive
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
