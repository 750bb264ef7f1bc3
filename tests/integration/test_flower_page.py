"""Flower's tab *Delayed* in a real browser, on a real store.

One Flower behind a login and below a prefix, one beat, one browser; each test has the store for
itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from celery_delay.domain.states import State
from celery_delay.embedded import EmbeddedRedis, free_port
from tests.flower.browser import DESKTOP, PHONE, Browser, browser, missing
from tests.flower.provider import provider
from tests.flower.stage import USER, Stage
from tests.processes import wait_until
from tests.servers import RedisServers, unavailable
from tests.shards import park

HOUR = 3600
CANCEL, REMIND = "shop.orders.cancel_unpaid", "shop.mail.remind"
#: Would be seen if anything that is stored became markup.
MARKUP = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\"'&amp;"


@pytest.fixture(scope="module")
def redis(redis_servers: RedisServers) -> Iterator[EmbeddedRedis]:
    server = redis_servers.new()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def stage(redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(redis.tcp_url, tmp_path_factory.mktemp("flower"), task_default_queue="orders")
    stage.procs.beat("beat")
    yield stage
    stage.close()
    print(stage.procs)  # captured


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if missing():
        unavailable("a browser", f"{missing()} not found (Debian: chromium chromium-driver)")
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def flowers(stage: Stage) -> tuple[str, str]:
    """The address of one behind a login, and of one that anybody can reach."""
    behind = stage.flower(f"--basic-auth={USER}", prefix="some/flower")
    return behind, stage.flower(name="open")


@pytest.fixture(scope="module")
def flower(stage: Stage, flowers: tuple[str, str], chromium: Browser) -> str:
    """The address; the browser is logged in."""
    address, _ = flowers
    stage.answers(address)
    chromium.open(address.replace("://", f"://{USER}@") + "/delayed")
    stage.procs.processes["beat"].wait_for_log(r"leads \(term")
    return address


@pytest.fixture
def app(stage: Stage) -> Celery:
    stage.app.delayed.cancel_many(everything=True)
    stage.app.delayed.cancel_many(state="QUARANTINED")
    return stage.app


@pytest.fixture
def page(chromium: Browser, flower: str) -> Iterator[Browser]:
    """The browser at a desk.  Whatever it is told, the console stays empty."""
    chromium.size(DESKTOP)
    yield chromium
    assert chromium.errors() == []
    assert chromium.script("return window.hacked") is None


#: Whether the element is the one of the last look, with another text: not one that is drawn anew.
TICKS = """
    const one = document.querySelector(arguments[0]);
    if (window.seen !== one) {
        [window.seen, window.text] = [one, one.innerText];
    }
    return one.innerText !== window.text;
"""


def put(app: Celery, number: int = 1, task: str = CANCEL, **options: Any) -> list[str]:
    options = {"countdown": HOUR, **options}
    return [app.tasks[task].apply_delayed((one,), **options).id for one in range(number)]


def drained(app: Celery) -> None:
    """Wait until the audit has been told everything."""
    wait_until(lambda: app.delayed.stats().journal == 0, 10, "the drain")


def shown(page: Browser) -> list[str]:
    """The ids in the table."""
    rows = "[...document.querySelectorAll('#delayed-table tbody tr[id]')]"
    return list(page.script(f"return {rows}.map((one) => one.id)"))


def wait_for(page: Browser, *ids: str) -> None:
    """Wait until the table has these rows, in this order."""
    try:
        wait_until(lambda: shown(page) == list(ids), 10)
    except AssertionError:
        assert shown(page) == list(ids), page.text("main")


def search(page: Browser, text: str) -> None:
    box = page.one("#delayed-table_filter input")
    box.clear()
    box.send_keys(text, Keys.ENTER)


def choose(page: Browser, task_id: str, verb: str) -> None:
    """Choose a verb from the menu of a row."""
    page.click(f'[data-menu="{task_id}"]')
    page.click(f'.dropdown-menu.show [data-verb="{verb}"]')


def confirm(page: Browser) -> list[str]:
    """Say yes; the outcomes that are shown then.  Closes the dialog."""
    page.click("#delayed-dialog.show #delayed-dialog-yes")
    page.one("#delayed-dialog .delayed-answers")
    told = page.texts("#delayed-dialog .alert")
    close(page)
    return told


def close(page: Browser) -> None:
    page.click("#delayed-dialog-no")
    page.wait("!document.querySelector('.modal-backdrop')")


# --- what is shown -----------------------------------------------------------------------


def test_tasks_are_listed_the_earliest_first_with_all_that_is_known(
    app: Celery, page: Browser, flower: str
) -> None:
    [late] = put(app, task=REMIND, countdown=HOUR)
    [early] = put(app, countdown=HOUR - 60, tags=["vip", "north"], namespace="acme")

    page.open(f"{flower}/delayed")
    wait_for(page, early, late)

    [row, other] = page.texts("#delayed-table tbody tr")
    assert [
        word
        for word in (CANCEL, "0", "acme", "vip", "north", "orders", "SCHEDULED")
        if word not in row
    ] == []
    assert REMIND in other
    assert "mail" in other
    ticking = f'[id="{early}"] .delayed-countdown'
    assert page.text(ticking).startswith(("59m 0", "58m 5"))
    wait_until(lambda: page.script(TICKS, ticking), 10, "a countdown that ticks")
    page.wait("document.querySelector('#delayed-pending').innerText === '2'")
    assert "term" in page.text("#delayed-leader-facts")
    page.wait("document.querySelectorAll('#delayed-due .delayed-bar').length > 50", what="a chart")


def test_pages_go_on_by_cursor(app: Celery, page: Browser, flower: str) -> None:
    ids = [put(app, countdown=HOUR + number)[0] for number in range(33)]

    page.open(f"{flower}/delayed")
    wait_for(page, *ids[:15])
    assert page.text("#delayed-table_info") == "1 to 15 of 33"
    page.click("#delayed-table_next")
    wait_for(page, *ids[15:30])
    page.click("#delayed-table_next")
    wait_for(page, *ids[30:])
    assert "disabled" in str(page.one("#delayed-table_next").get_attribute("class"))
    page.click("#delayed-table_previous")
    wait_for(page, *ids[15:30])
    Select(page.one("#delayed-table_length select")).select_by_value("50")
    wait_for(page, *ids)


def test_what_is_due_is_paged_and_one_comes_back_to_the_same_page(
    app: Celery, page: Browser, flower: str
) -> None:
    app.delayed.pause(task=CANCEL)
    try:
        put(app, 20, countdown=0.01)
        [later] = put(app, task=REMIND)
        page.open(f"{flower}/delayed?state=DUE")
        page.wait("document.querySelectorAll('#delayed-table tbody tr[id]').length === 15")
        first = shown(page)

        page.click("#delayed-table_next")
        page.wait("document.querySelectorAll('#delayed-table tbody tr[id]').length === 5")
        second = shown(page)
        assert len({*first, *second}) == 20
        assert later not in {*first, *second}
        page.wait(
            "performance.getEntriesByType('resource').filter((one) =>"
            " one.name.includes('overview')).length > 2",
            what="two looks of its own",
        )
        assert shown(page) == second

        page.click("#delayed-table .delayed-cell-task a")
        page.one("#delayed-facts .detail-row")
        page.driver.back()
        wait_for(page, *second)
        page.driver.refresh()
        wait_for(page, *second)
        assert "16 to 20 of 20" in page.text("#delayed-table_info")
        page.click("#delayed-table_previous")
        wait_for(page, *first)
    finally:
        app.delayed.resume(task=CANCEL)


def test_a_search_finds_by_name_id_tag_queue_and_state(
    app: Celery, page: Browser, flower: str
) -> None:
    [plain] = put(app, countdown=HOUR)
    [mail] = put(app, task=REMIND, countdown=HOUR + 1)
    [tagged] = put(app, countdown=HOUR + 2, tags=["vip"])
    [held] = put(app, countdown=HOUR + 3)
    app.delayed.hold(held)
    page.open(f"{flower}/delayed")
    wait_for(page, plain, mail, tagged, held)
    drained(app)

    for text, found in {
        f"task:{REMIND}": [mail],
        "task:shop.orders.*": [plain, tagged, held],
        "queue:mail": [mail],
        "tag:vip": [tagged],
        f"id:{plain}": [plain],
        "remind": [mail],
        tagged[:13]: [tagged],
    }.items():
        search(page, text)
        wait_for(page, *found)
    search(page, "task:none.such")
    page.wait("document.querySelector('.dataTables_empty')?.innerText.includes('No task matches')")
    search(page, "")
    page.click('.task-state-filter[data-state="HELD"]')
    wait_for(page, held)
    # a page by its address, as somebody sends it to somebody else
    page.open(f"{flower}/delayed?q=tag:vip")
    wait_for(page, tagged)


# --- what is done ------------------------------------------------------------------------


def test_each_action_asks_and_changes_the_store(app: Celery, page: Browser, flower: str) -> None:
    [task_id] = put(app)
    page.open(f"{flower}/delayed")

    def does(verb: str, *told: str) -> None:
        wait_for(page, task_id)
        page.wait("document.querySelector(arguments[0])", f'[data-menu="{task_id}"]')
        choose(page, task_id, verb)
        assert task_id in page.read("#delayed-dialog-body .delayed-named")
        [answer] = confirm(page)
        assert [word for word in told if word not in answer] == []

    def stands(state: str) -> None:
        page.wait(
            "document.querySelector('#delayed-table .badge')?.innerText === arguments[0]", state
        )

    def state() -> State | None:
        entry = app.delayed.get(task_id)
        return entry.state if entry is not None else None

    does("hold", "HELD", "does not run before")
    assert state() is State.HELD
    stands("HELD")
    does("release", "RELEASED")
    assert state() is State.SCHEDULED
    stands("SCHEDULED")
    eta_ms = app.delayed.get(task_id).eta_ms
    does("reschedule", "RESCHEDULED")  # in an hour from now, which is a little later
    assert eta_ms < app.delayed.get(task_id).eta_ms < eta_ms + HOUR * 1000
    park(app, task_id)
    page.click('.task-state-filter[data-state="QUARANTINED"]')
    stands("QUARANTINED")
    does("resend", "RELEASED")
    assert state() is State.SCHEDULED
    page.click('.task-state-filter[data-state=""]')
    stands("SCHEDULED")
    does("cancel", "CANCELLED", "never runs")
    assert state() is None
    wait_for(page)

    [task_id] = put(app)
    search(page, "")
    page.click('.task-state-filter[data-state="SCHEDULED"]')
    does("run-now", "RESCHEDULED")
    wait_until(lambda: state() is None, 10, "the hand-off")


def test_what_was_handed_off_meanwhile_is_told_as_too_late(
    app: Celery, page: Browser, flower: str
) -> None:
    [gone], [stays] = put(app), put(app, countdown=HOUR + 1)
    page.open(f"{flower}/delayed")
    wait_for(page, gone, stays)
    for task_id in (gone, stays):
        page.click(f'[data-select="{task_id}"]')
    page.click('[data-many="cancel"]')
    page.one("#delayed-dialog.show")
    app.delayed.run_now(gone)
    wait_until(lambda: app.delayed.get(gone) is None, 10, "the hand-off")

    told = confirm(page)

    assert sorted(one.split(" — ")[0] for one in told) == ["1 CANCELLED", "1 TOO LATE"]
    assert any("may run" in one and gone in one for one in told), told
    assert app.delayed.get(stays) is None


def test_all_that_match_are_changed_on_all_pages(app: Celery, page: Browser, flower: str) -> None:
    mails = put(app, 20, REMIND)
    [other] = put(app)
    page.open(f"{flower}/delayed?q=queue:mail")
    page.wait("document.querySelectorAll('#delayed-table tbody tr[id]').length === 15")

    page.click("#delayed-select-page")
    page.click("#delayed-selected-all")
    page.click('[data-many="hold"]')
    page.wait("document.querySelector('#delayed-dialog-body').innerText.includes('All 20 tasks')")
    [told] = confirm(page)

    assert told.startswith("20 HELD")
    assert {app.delayed.get(one).state for one in mails} == {State.HELD}
    assert app.delayed.get(other).state is State.SCHEDULED


def test_a_dialog_is_worked_by_keys_and_gives_the_focus_back(
    app: Celery, page: Browser, flower: str
) -> None:
    [task_id] = put(app)
    page.open(f"{flower}/delayed")
    wait_for(page, task_id)
    focused = "document.activeElement.dataset.menu"

    page.one(f'[data-menu="{task_id}"]').send_keys(Keys.ENTER, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait("document.activeElement.closest('#delayed-dialog.show')")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)

    page.wait(f"{focused} === arguments[0]", task_id, what="the focus back on the menu")
    assert app.delayed.get(task_id).version == 1


def test_a_queue_is_paused_and_resumed(app: Celery, page: Browser, flower: str) -> None:
    page.open(f"{flower}/delayed?q=queue:mail")
    page.click("#delayed-pause")
    assert page.one("#delayed-pause-name").get_attribute("value") == "mail"
    page.one("#delayed-reason").send_keys("the server is moved")

    [told] = confirm(page)

    assert told.startswith("PAUSED: queue:mail")
    [gate] = app.delayed.pauses()
    assert (gate.gate, gate.reason) == ("queue:mail", "the server is moved")
    assert gate.by.startswith("ann ")
    [mail] = put(app, task=REMIND, countdown=0.01)
    wait_until(lambda: app.delayed.stats().gated == 1, 10, "the pause to keep it back")
    page.wait("document.querySelector('#delayed-pauses-list')?.innerText.includes('1 task waits')")
    page.click('[data-resume="queue:mail"]')
    [told] = confirm(page)
    assert told.startswith("RESUMED: queue:mail")
    wait_until(lambda: app.delayed.get(mail) is None, 10, "the hand-off")
    page.wait("document.querySelector('#delayed-pauses.d-none') !== null")


# --- what must not happen ----------------------------------------------------------------


def test_nothing_stored_becomes_markup(app: Celery, page: Browser, flower: str) -> None:
    task_id = f"id-{MARKUP}/é?#%2e"
    app.delayed.send_task(
        MARKUP, ("<b>x</b>", MARKUP), {"key": MARKUP}, countdown=HOUR, task_id=task_id,
        queue=MARKUP, tags=[MARKUP], namespace=MARKUP,
    )  # fmt: skip
    app.delayed.hold(task_id, reason=MARKUP)
    page.open(f"{flower}/delayed")
    wait_for(page, task_id)

    assert page.text("#delayed-table tbody").count(MARKUP) >= 4
    assert page.all("main img, main script, main b") == []
    page.click("#delayed-table .delayed-more")
    page.click('.dropdown-menu.show [data-verb="release"]')
    assert MARKUP in page.read("#delayed-dialog-body")
    assert "RELEASED" in confirm(page)[0]
    assert app.delayed.get(task_id).state is State.SCHEDULED
    drained(app)
    page.click("#delayed-table .delayed-cell-task a")
    page.wait("document.querySelectorAll('[data-event]').length === 3", what="its history")
    assert page.text("main").count(MARKUP) >= 6
    assert page.all("main img, main script, main b") == []
    search_for = page.script("return document.querySelector('#delayed-facts a').href")
    page.open(search_for)
    wait_for(page, task_id)


#: What reaches beyond the right edge of the page, or is cut off there.
BEYOND = """
    const edge = document.documentElement.clientWidth + 1;
    const aside = ".task-state-filters, .delayed-chart-table, .visually-hidden, thead";
    return [...document.querySelectorAll("main *")]
        .filter((one) => one.getBoundingClientRect().right > edge && !one.closest(aside))
        .map((one) => one.className)
"""


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_page(
    app: Celery, page: Browser, flower: str, size: tuple[int, int]
) -> None:
    long = "i" * 120
    app.delayed.send_task(
        "shop." + "very_long_name_of_a_task" * 6, ("x" * 300,), countdown=HOUR, task_id=long,
        queue="q" * 60, tags=["t" * 100, "short"], namespace="n" * 90,
    )  # fmt: skip
    app.delayed.schedules.pause("reindex", reason="r" * 80)
    page.size(size)

    for path, what in {
        "/delayed": "tbody tr[id] [data-menu]",
        f"/delayed/task/{long}": "#delayed-facts .detail-row",
        "/delayed/schedules": "tbody strong",
    }.items():
        page.open(flower + path)
        page.one(what)
        assert page.script("return document.documentElement.scrollWidth") == size[0], path
        assert page.script(BEYOND) == [], path
    app.delayed.schedules.resume("reindex")


def test_a_wrong_token_changes_nothing(app: Celery, page: Browser, flower: str) -> None:
    [task_id] = put(app)
    page.open(f"{flower}/delayed")
    wait_for(page, task_id)
    choose(page, task_id, "cancel")

    # and it stays so: the page renews its token whenever it looks again
    page.script(
        "Object.defineProperty(document.querySelector('meta[name=delayed-csrf]'), 'content',"
        " {get: () => 'made up', set: () => {}})"
    )
    [told] = confirm(page)

    assert told.startswith("Refused. ")
    assert "load the page again" in told
    assert app.delayed.get(task_id) is not None
    [console] = page.errors()
    assert "403" in console


def test_without_a_login_nothing_can_be_changed_and_the_page_says_why(
    app: Celery, page: Browser, stage: Stage, flowers: tuple[str, str]
) -> None:
    [task_id] = put(app)
    _, address = flowers
    stage.answers(address)

    page.open(f"{address}/delayed")
    wait_for(page, task_id)

    page.wait("document.querySelector('#delayed-read-only-why').innerText.includes('--basic-auth')")
    assert page.all("[data-menu], [data-select], [data-many], #delayed-dialog") == []
    assert page.all("#delayed-pause, [data-resume]") == []
    [new] = put(app, countdown=HOUR + 1)
    wait_for(page, task_id, new)  # it looks again by itself
    page.open(f"{address}/delayed/task/{task_id}")
    page.one("#delayed-facts .detail-row")
    assert page.all("[data-verb]") == []
    page.open(f"{address}/delayed/schedules")
    page.one(".delayed-schedules tbody strong")
    assert page.all("[data-verb]") == []
    assert "--basic-auth" in page.text("#delayed-read-only-why")


def test_without_redis_the_page_says_what_to_do_and_goes_on_by_itself(
    app: Celery, page: Browser, flower: str, redis: EmbeddedRedis
) -> None:
    [task_id] = put(app)
    page.open(f"{flower}/delayed")
    wait_for(page, task_id)
    assert redis.pid is not None

    os.kill(redis.pid, signal.SIGSTOP)
    try:
        assert "delay doctor" in page.one("#delayed-trouble", timeout=20).text
        assert shown(page) == [task_id]
        page.open(f"{flower}/delayed")
        page.one("#delayed-trouble", timeout=20)
        page.wait("document.querySelector('.dataTables_empty')?.innerText.includes('no answer')")
        page.wait(
            "performance.getEntriesByType('resource').some((one) => one.responseStatus === 503"
            " && one.name.endsWith('overview'))"
        )
    finally:
        os.kill(redis.pid, signal.SIGCONT)

    wait_for(page, task_id)
    page.wait("document.querySelector('#delayed-trouble.d-none') !== null")
    page.one("#delayed-due .delayed-bar, #delayed-due .delayed-empty")
    assert any("503" in one for one in page.errors())


def test_who_has_logged_in_by_oauth_may_change_something(
    app: Celery, page: Browser, stage: Stage
) -> None:
    [task_id] = put(app)
    with provider("ann@example.com") as okta:
        port = free_port()
        address = stage.flower(
            "--auth=.*@example.com", "--auth-provider=flower.views.auth.OktaLoginHandler",
            "--oauth2-key=key", "--oauth2-secret=secret", "--cookie-secret=of this Flower",
            f"--oauth2-redirect-uri=http://127.0.0.1:{port}/login", name="oauth", port=port,
            env={"FLOWER_OAUTH2_OKTA_BASE_URL": okta},
        )  # fmt: skip
        stage.answers(address)

        page.open(f"{address}/delayed")  # to the provider, and back to Flower's first page
        page.wait("document.title && location.pathname === '/'")
        page.click('.navbar a[href="/delayed"]')
        wait_for(page, task_id)
        choose(page, task_id, "hold")
        [told] = confirm(page)

    assert "HELD" in told
    assert app.delayed.get(task_id).state is State.HELD
    drained(app)
    page.click("#delayed-table .delayed-cell-task a")
    page.wait("document.querySelector('[data-event=HELD]')?.innerText.includes('ann@example.com')")
    page.driver.delete_all_cookies()
    page.open(f"{address}/api/delayed")
    assert "log in first" in page.text("body")
    assert any("401" in one for one in page.errors())


def test_the_chart_goes_with_the_numbers(app: Celery, page: Browser, flower: str) -> None:
    put(app, 3, countdown=600)
    page.open(f"{flower}/delayed")
    page.wait("document.querySelector('#delayed-due-sum').innerText.startsWith('3 tasks')")

    app.delayed.cancel_many(everything=True)

    # the whole is asked for each 30 seconds
    page.wait("document.querySelector('#delayed-due .delayed-empty') !== null", timeout=15)


# --- the other pages ---------------------------------------------------------------------


def test_a_task_s_page_tells_its_whole_history(
    app: Celery, page: Browser, flower: str, stage: Stage
) -> None:
    [task_id] = put(app, queue="nobody")
    app.delayed.hold(task_id, reason="the line is busy")
    drained(app)
    page.open(f"{flower}/delayed/task/{task_id}")

    page.wait(
        "[...document.querySelectorAll('[data-event]')].map((one) => one.dataset.event).join()"
        " === 'SCHEDULED,HELD'"
    )
    assert "the line is busy" in page.text("#delayed-history")
    page.click('[data-verb="run-now"]')
    assert "RESCHEDULED" in confirm(page)[0]

    page.wait(
        "[...document.querySelectorAll('[data-event]')].at(-1).dataset.event === 'DISPATCHED'",
        what="the hand-off",
    )
    assert "lag " in page.text('[data-event="DISPATCHED"]')
    assert page.text("#delayed-facts .badge") == "DISPATCHED"
    assert page.all("[data-verb]") == []
    [again] = put(app, queue="nobody", task_id="used-again")
    app.delayed.cancel(again)
    drained(app)
    put(app, queue="nobody", task_id=again)
    drained(app)
    page.open(f"{flower}/delayed/task/{again}")
    page.one("[data-event=CANCELLED]")
    assert page.texts("#delayed-history h3") == ["Run 1", "Run 2"]
    [other] = put(app)
    app.delayed.cancel(other, reason="the customer has paid")
    drained(app)
    page.open(f"{flower}/delayed/task/{other}")
    page.one("[data-event=CANCELLED]")
    assert "Reason\nthe customer has paid" in page.text("#delayed-facts")
    assert "Error" not in page.text("#delayed-facts")
    page.open(f"{flower}/delayed/task/no-such-task")
    page.one("#delayed-unknown")
    [console] = page.errors()
    assert "404" in console


def test_schedules_are_paused_resumed_and_triggered(
    app: Celery, page: Browser, flower: str
) -> None:
    page.open(f"{flower}/delayed/schedules")
    page.wait("document.querySelectorAll('.delayed-schedules tbody strong').length === 3")

    def does(verb: str) -> str:
        page.click(f'[data-verb="{verb}"][data-schedule="daily report"]')
        page.one("#delayed-dialog.show")
        if verb == "pause":
            page.one("#delayed-reason").send_keys("stocktaking")
        [told] = confirm(page)
        return told

    assert "triggered" in does("trigger").lower()
    does("pause")
    paused = app.delayed.schedules.get("daily report")
    assert (paused.enabled, paused.reason) == (False, "stocktaking")
    page.wait("document.querySelector('.delayed-schedules').innerText.includes('stocktaking')")
    does("resume")
    assert app.delayed.schedules.get("daily report").enabled
