"""Chromium without a screen, for tests and for the pictures in the documentation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement

from tests.processes import wait_until

__all__ = ["DESKTOP", "PHONE", "Browser", "browser", "missing"]

DESKTOP, PHONE = (1280, 900), (390, 844)
#: Nothing that asks the network, draws on a GPU, or needs a profile.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-US",
    "--force-prefers-reduced-motion",
)  # fmt: skip


def missing() -> str:
    """What is not installed; "" if nothing is missing."""
    names = ("chromium", "chromedriver")
    return ", ".join(one for one in names if shutil.which(one) is None)


class Browser:
    """One page at a time, and what a person does to it.

    Attributes:
        driver: Selenium's.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def size(self, size: tuple[int, int]) -> None:
        """Give the page so many pixels, as a phone or a desk has."""
        width, height = size
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )

    def script(self, text: str, *args: Any) -> Any:
        """What a function body returns in the page."""
        return self.driver.execute_script(text, *args)  # type: ignore[no-untyped-call]

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str, timeout: float = 10) -> WebElement:
        """The first visible element, once there is one."""

        def visible() -> WebElement | None:
            with suppress(StaleElementReferenceException):  # drawn anew meanwhile
                return next((one for one in self.all(selector) if one.is_displayed()), None)
            return None

        found = wait_until(visible, timeout, f"{selector} to be seen")
        assert found is not None
        return found

    def text(self, selector: str) -> str:
        """The text of the element, "" where there is none; in one step, as rows come and go."""
        return str(
            self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    def read(self, selector: str) -> str:
        """The text of the first visible element, once there is one."""
        self.one(selector)
        return self.text(selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all that fit."""
        look = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)"
        return list(self.script(look, selector))

    def wait(self, script: str, *args: Any, what: str = "", timeout: float = 10) -> Any:
        """Wait until an expression is true in the page; its value."""
        return wait_until(lambda: self.script(f"return {script}", *args), timeout, what or script)

    def click(self, selector: str) -> None:
        """Click as a person does: on what can be seen and reached."""
        self.one(selector)

        def clicked() -> bool:
            try:
                self.one(selector).click()
            except WebDriverException:  # drawn anew, or still moving
                return False
            return True

        wait_until(clicked, 5, f"a click on {selector}")

    def errors(self) -> list[str]:
        """What the console said since it was asked last, down to warnings."""
        log: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [json.dumps(one["message"]) for one in log if one["level"] in ("SEVERE", "WARNING")]

    def picture(self, path: Path) -> None:
        """What can be seen now, as PNG."""
        assert self.driver.save_screenshot(str(path))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A Chromium with a fresh *profile*; gone at the end."""
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(str(shutil.which("chromedriver"))))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
