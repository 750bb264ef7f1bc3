"""Move RedBeat's one-off entries to celery-delay.

python from_redbeat.py proj.celery:app            # says what it would do
python from_redbeat.py proj.celery:app --do-it

An entry is moved when its rule comes to an end: each instant that is left becomes a delayed task.
What repeats for ever, and what is due within --leave seconds, stays with RedBeat's beat.
"""

import argparse
import contextlib
import uuid
from datetime import MINYEAR, datetime, timedelta, timezone
from functools import partial

from kombu.utils.imports import symbol_by_name
from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis
from redbeat.schedules import rrule

from celery_delay.exceptions import AlreadyScheduled


def entries(app):
    """Those that were made at run time; the others are in beat_schedule."""
    conf, client = ensure_conf(app), get_redis(app)
    static = client.smembers(conf.statics_key)
    for key in client.zrange(conf.schedule_key, 0, -1):
        entry = RedBeatSchedulerEntry.from_key(key, app=app)
        if entry.name not in static:
            yield entry


def instants(entry):
    """All that are left, as RedBeat counts them; None for what never ends."""
    rule = entry.schedule
    if not isinstance(rule, rrule) or (rule.count is None and rule.until is None):
        return None
    last = entry.last_run_at or datetime(MINYEAR, 1, 2, tzinfo=rule.tz)
    return list(rule.rrule.xafter(last))


def schedule(app, entry, eta):
    task = app.tasks.get(entry.task)  # so that the task's own options count, as in beat
    send = task.apply_delayed if task else partial(app.delayed.send_task, entry.task)
    options = dict(entry.options)
    if isinstance(options.get("expires"), (int, float)):
        # beat counts from the moment of sending, and there is none here
        options["expires"] = eta + timedelta(seconds=options["expires"])
    # the same id each time: should this stop half-way, it can be run again
    options["task_id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{entry.key} {eta.isoformat()}"))
    with contextlib.suppress(AlreadyScheduled):
        send(entry.args, entry.kwargs, eta=eta, **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("app")
    parser.add_argument("--do-it", action="store_true")
    parser.add_argument("--leave", type=float, default=600, metavar="SECONDS")
    given = parser.parse_args()
    app = symbol_by_name(given.app)
    app.loader.import_default_modules()
    soon = datetime.now(timezone.utc) + timedelta(seconds=given.leave)
    for entry in entries(app):
        left = instants(entry)
        if not entry.enabled:
            print(f"{entry.name}: left, it is disabled")
        elif left is None:
            print(f"{entry.name}: left, it repeats; put it into beat_schedule: {entry.schedule}")
        elif not left:
            print(f"{entry.name}: left, it is over")
        elif left[0] < soon:
            print(f"{entry.name}: left, RedBeat's beat runs it at {left[0]}")
        else:
            print(f"{entry.name}: {entry.task} at {', '.join(map(str, left))}")
            if given.do_it:
                for eta in left:
                    schedule(app, entry, eta)
                entry.delete()


if __name__ == "__main__":
    main()
