"""The pictures of the documentation: ``python -m tests.flower.pictures``.

A shop with two beats and a worker is started, something happens in it, and headless Chromium
looks at Flower.  They go to ``docs/images``, or to the folder that is named.  A picture that is
larger than the documentation wants is an error.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from celery import Celery

from tests.flower.browser import DESKTOP, PHONE, Browser, browser
from tests.flower.stage import USER, Stage
from tests.processes import wait_until
from tests.servers import RedisServers
from tests.shards import park

__all__ = ["take"]

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LARGEST = 150_000
MINUTE, HOUR, DAY = 60, 3600, 86_400
CUSTOMERS = ("acme", "globex", "initech")


def take(folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside, shop(Path(aside)) as stage:
        story = _happen(stage.app)
        address = stage.flower(f"--basic-auth={USER}")
        stage.answers(address)
        with browser(Path(aside) / "profile") as page:
            page.open(address.replace("://", f"://{USER}@") + "/delayed")
            for name, picture in _pictures(page, address, story):
                path = folder / f"flower-{name}.png"
                picture(path)
                size = path.stat().st_size
                print(f"{path}: {size:,} bytes")
                assert size <= LARGEST, f"{path} is larger than {LARGEST:,} bytes"
            assert page.errors() == []


@contextmanager
def shop(folder: Path) -> Iterator[Stage]:
    """The shop with its processes."""
    servers = RedisServers()
    try:
        stage = Stage(servers.get().tcp_url, folder, delay_intercept=True)
        try:
            stage.start("beat1", "beat2")
            stage.procs.worker("worker", queues="celery,mail,slow", pool="threads")
            yield stage
        finally:
            stage.close()
    finally:
        servers.close()


def _happen(app: Celery) -> str:
    """What there is to see; the id of a task with a story."""
    chance = random.Random(7)
    story = app.tasks["shop.parcels.ask_carrier"].apply_delayed(
        (7311,), {"carrier": "north"}, countdown=600, tags=["parcel"], namespace="acme"
    )
    story.hold(reason="the carrier's system is being moved")
    for number in range(600):
        app.tasks["shop.mail.welcome"].apply_delayed((number,), countdown=1 + 3 * chance.random())
    wait_until(lambda: app.delayed.count() == 1, 20, "the welcomes to be handed off")
    names = ["shop.orders.cancel_unpaid"] * 4 + ["shop.mail.remind"] * 2 + ["shop.trial.end"]
    for number in range(700):
        name = chance.choice(names)
        spread = chance.choice((20 * MINUTE, HOUR, 2 * HOUR, DAY, 30 * DAY))
        app.tasks[name].apply_delayed(
            (chance.randrange(10_000, 99_999),),
            {"attempt": 1} if number % 3 == 0 else {},
            countdown=90 + spread * abs(chance.gauss(0.5, 0.25)),
            tags=chance.choice(((), (), ("vip",), ("order", "north"))),
            namespace=chance.choice((None, *CUSTOMERS)),
        )
    first = app.delayed.list(limit=6)
    app.delayed.hold(first[2].entry_id.task_id, reason="customer called")
    park(app, first[3].entry_id.task_id)
    app.delayed.pause(task="shop.mail.remind", reason="the mail server is down")
    for number in range(2):
        app.tasks["shop.mail.remind"].apply_delayed((number,), countdown=0.5)
    story.release()
    story.run_now()
    wait_until(lambda: story.state == "SUCCESS", 20, "the task with a story")
    app.delayed.schedules.pause("ask the carrier", reason="the carrier is on strike")
    wait_until(lambda: app.delayed.stats().journal == 0, 20, "the drain")
    return str(story.id)


def _pictures(
    page: Browser, address: str, story: str
) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Name by name, when there is something to see."""
    drawn = " && ".join(
        f"document.querySelector('#delayed-{one} .delayed-bar')" for one in ("due", "lag")
    )

    page.size((DESKTOP[0], 1080))
    page.open(f"{address}/delayed")
    page.wait(drawn)
    page.one("tbody tr[id]")
    time.sleep(1)  # fonts, and numbers that are on their way
    yield "delayed", page.picture

    for number in (4, 5, 6):
        page.click(f"tbody tr:nth-child({number}) [data-select]")
    page.click('[data-many="reschedule"]')
    page.one("#delayed-dialog.show #delayed-in")
    time.sleep(0.5)
    dialog = page.one("#delayed-dialog .modal-content")
    yield "dialog", lambda path: dialog.screenshot(str(path))

    page.size((DESKTOP[0], 1400))
    page.open(f"{address}/delayed/task/{story}")
    page.one("[data-event=SUCCEEDED]")
    yield "task", page.picture

    page.size((DESKTOP[0], 640))
    page.open(f"{address}/delayed/schedules")
    page.click("tbody details summary")
    page.one("tbody details li")
    yield "schedules", page.picture

    page.size((PHONE[0], 1560))
    page.open(f"{address}/delayed")
    page.wait(drawn)
    page.one("tbody tr[id]")
    time.sleep(1)
    yield "phone", page.picture


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
