"""The page of metrics is compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

from celery_delay.domain.series import all_series

PAGE = Path(__file__).parents[2] / "docs/reference/metrics.rst"
ROW = re.compile(r"   \* - ``(\w+)``\n     - (\w+)\n     - (.+)\n     - (.+)\n")


def test_the_table_tells_of_each_series_what_the_code_does() -> None:
    of_store, of_beat = PAGE.read_text().split("Of the process\n---")
    told = {"store": ROW.findall(of_store), "beat": ROW.findall(of_beat)}

    for of, rows in told.items():
        assert rows == [
            (one.name, one.kind, ", ".join(one.labels) or "none", one.help)
            for one in all_series()
            if one.of == of
        ]


def test_names_are_those_that_prometheus_wants() -> None:
    for one in all_series():
        assert one.name.startswith("celery_delay_")
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert one.kind != "histogram" or one.bounds == tuple(sorted(one.bounds)) != ()
        assert one.help.endswith(".")
