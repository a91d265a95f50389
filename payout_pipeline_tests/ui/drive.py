"""Clicks through the Dagster UI as a user would: a backfill of all partitions, its progress, the checks afterwards.

Run by ``test_ui.py`` with the Python of the environment that has Playwright; needs nothing else. Prints one JSON
object with what was seen, for the test to judge; screenshots go to ``--screenshots``.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1440, "height": 900}
CLICK_MS = 60_000
ENDED = ("Succeeded", "Failed", "Canceled", "Completed")


def drive(url: str, profile: Path, screenshots: Path, minutes: float) -> dict[str, object]:
    """Launch the backfill of everything, wait for its end, and read the checks pages."""
    seen: dict[str, object] = {}
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=ARGUMENTS, viewport=SIZE
        )
        page = context.new_page()
        page.set_default_timeout(CLICK_MS)
        open_page(page, f"{url}/asset-groups", "goldsky_payouts")
        page.wait_for_timeout(3_000)
        seen["lineage"] = page.inner_text("body")
        page.get_by_role("button", name="Materialize all").first.click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="All", exact=True).click()
        dialog.get_by_text("4 partitions").first.wait_for()
        seen["dialog"] = dialog.inner_text()
        dialog.get_by_role("button", name="Launch backfill").click()
        dialog.wait_for(state="detached")
        page.locator("a[href='/runs']").first.click()
        page.locator("a[href^='/runs/b/']").first.click()
        page.wait_for_url("**/runs/b/**")
        seen["backfill"] = page.url.rsplit("/", 1)[-1].partition("?")[0]
        seen["states"], seen["progress"] = follow(page, screenshots / "ui-backfill.png", minutes)
        text(page, "Hide navigation").click()  # more room for the graph
        open_page(page, f"{url}/asset-groups", "goldsky_payouts")
        page.wait_for_timeout(5_000)
        seen["lineage_after"] = page.inner_text("body")
        shoot(page, screenshots / "ui-lineage.png")
        open_page(page, f"{url}/assets/vw_resolutions_truth?view=checks", "one_row_per_condition")
        page.wait_for_timeout(2_000)
        text(page, "unique_conditions").click()
        text(page, "at least").wait_for()
        page.wait_for_timeout(1_000)
        seen["view_checks"] = page.inner_text("body")
        shoot(page, screenshots / "ui-checks.png")
        open_page(page, f"{url}/assets/goldsky_payouts?view=checks", "every_id_accounted_for")
        page.wait_for_timeout(2_000)
        seen["fetch_checks"] = page.inner_text("body")
        open_page(page, f"{url}/assets/goldsky_payouts?view=partitions", "worker_1_of_4")
        seen["partitions"] = page.inner_text("body")
        context.close()
    return seen


def open_page(page: Page, url: str, words: str) -> None:
    """Open a page and wait until these words are there."""
    page.goto(url)
    text(page, words).wait_for()


def text(page: Page, words: str) -> Locator:
    """The first element with these words that can be seen; the UI keeps hidden copies for measuring."""
    return page.get_by_text(words).locator("visible=true").first


def follow(page: Page, screenshot: Path, minutes: float) -> tuple[list[str], list[int]]:
    """The states of the backfill's page until it has ended, and how far its first bar was; pictured half-way."""
    states: list[str] = []
    progress: list[int] = []
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline and (not states or states[-1] not in ENDED):
        words = page.inner_text("body")
        state = re.search(r"\nStatus\n(.+)", words)
        done = re.search(r"(\d+)% completed", words)
        if state is not None and (not states or states[-1] != state[1]):
            states.append(state[1])
        if done is not None and (not progress or progress[-1] != int(done[1])):
            progress.append(int(done[1]))
            if progress[-1] < 100 or len(progress) == 1:
                shoot(page, screenshot)
        page.wait_for_timeout(1_000)
    return states, progress


def shoot(page: Page, path: Path) -> None:
    """A picture of what is in the window."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--screenshots", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    given = parser.parse_args()
    print(json.dumps(drive(given.url, given.profile, given.screenshots, given.minutes)))
