"""After Redis was restored from a backup that is older than the audit: what must not run again.

While no beat runs: python after_restore.py proj.celery:app [--cancel | --cancel-all]
"""

import argparse
from importlib import import_module

from celery import Celery

ENDED = {"SUCCEEDED", "FAILED", "REVOKED", "REJECTED", "CANCELLED", "EXPIRED"}
HANDED_OFF = {"DISPATCHED", "STARTED", "RETRIED"}


def stale(app: Celery) -> dict[str, str]:
    """Ids of tasks that wait in Redis and that the audit has seen leave it, with their state."""
    found = {}
    queries = app.delayed.audit_queries()
    for entry in app.delayed.iterate():
        task_id, run = entry.entry_id
        row = queries.task(task_id)
        if row is not None and row.run >= run and row.state in ENDED | HANDED_OFF:
            found[task_id] = row.state
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("app", help="as in proj.celery:app")
    options.add_argument("--cancel", action="store_true", help="those of which an end is known")
    options.add_argument("--cancel-all", action="store_true", help="also what was handed off")
    chosen = options.parse_args()
    module, _, name = chosen.app.partition(":")
    app = getattr(import_module(module), name or "app")
    for task_id, state in stale(app).items():
        act = chosen.cancel_all or (chosen.cancel and state in ENDED)
        print(task_id, state, app.delayed.cancel(task_id).value if act else "waits again")


if __name__ == "__main__":
    main()
