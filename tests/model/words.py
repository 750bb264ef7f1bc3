"""The answers and states of the model, and how SQL ranks the states."""

from __future__ import annotations

Id = tuple[str, int]  # an entry: (task_id, run)

OK, GONE, LATE, ALREADY, EPOCH = "OK", "GONE", "LATE", "ALREADY", "EPOCH"
CANCELLED, TOO_LATE, NOT_FOUND, UNKNOWN = "CANCELLED", "TOO_LATE", "NOT_FOUND", "UNKNOWN"
SCHEDULED, LOST, DISPATCHED, STARTED = "SCHEDULED", "LOST", "DISPATCHED", "STARTED"
RETRIED, SUCCEEDED = "RETRIED", "SUCCEEDED"
# LOST is a guess from absence, so any evidence of a hand-off outranks it.
RANK = {SCHEDULED: 0, LOST: 1, DISPATCHED: 2, STARTED: 3, RETRIED: 4, SUCCEEDED: 4, CANCELLED: 4}
