"""Put this into an app of yours: ``management/commands/move_clocked.py``."""

import contextlib
import uuid
from datetime import datetime, timedelta, timezone
from functools import partial

from django.core.management.base import BaseCommand
from django.db import transaction
from django_celery_beat.models import PeriodicTask
from kombu.utils.json import loads
from proj.celery import app

from celery_delay.exceptions import AlreadyScheduled


class Command(BaseCommand):
    help = "Move clocked one-off tasks of django-celery-beat to celery-delay."

    def add_arguments(self, parser):
        parser.add_argument("--do-it", action="store_true")
        parser.add_argument("--leave", type=float, default=600, metavar="SECONDS")

    def handle(self, do_it, leave, **_):
        soon = datetime.now(timezone.utc) + timedelta(seconds=leave)
        for found in PeriodicTask.objects.filter(one_off=True, enabled=True, total_run_count=0):
            if found.clocked is None:
                self.stdout.write(f"{found.name}: left, its time is not clocked: {found.schedule}")
                continue
            with transaction.atomic():
                row = PeriodicTask.objects.select_for_update().get(pk=found.pk)
                eta = max(filter(None, [row.schedule.clocked_time, row.start_time]))
                if not row.enabled or eta < soon:
                    self.stdout.write(f"{row.name}: left, the old beat runs it at {eta}")
                    continue
                self.stdout.write(f"{row.name}: {row.task} at {eta}")
                if do_it:
                    self.schedule(row, eta)
                    row.enabled = False  # the row stays, to go back to
                    row.save()

    @staticmethod
    def schedule(row, eta):
        given = {
            name: getattr(row, name) for name in ("queue", "exchange", "routing_key", "priority")
        }
        options = {name: value for name, value in given.items() if value is not None}
        if row.expires_:
            # beat counts seconds from the moment of sending, and there is none here
            options["expires"] = row.expires or eta + timedelta(seconds=row.expire_seconds)
        task = app.tasks.get(row.task)  # so that the task's own options count, as in beat
        send = task.apply_delayed if task else partial(app.delayed.send_task, row.task)
        # the same id each time: should this stop half-way, it can be run again
        with contextlib.suppress(AlreadyScheduled):
            send(
                loads(row.args or "[]"),
                loads(row.kwargs or "{}"),
                eta=eta,
                headers={**loads(row.headers or "{}"), "periodic_task_name": row.name},
                task_id=str(
                    uuid.uuid5(uuid.NAMESPACE_URL, f"{row.pk} {row.name} {eta.isoformat()}")
                ),
                **options,
            )
