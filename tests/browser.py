"""A headless Chromium for tests, driven through chromedriver's own protocol (W3C WebDriver: JSON over HTTP).

Debian: ``apt-get install chromium chromium-driver``. Nothing is downloaded, and no page outside this machine is opened.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WINDOW = (1500, 1000)
PATIENCE = 60.0  # seconds; a busy machine draws slowly
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--hide-scrollbars", f"--window-size={WINDOW[0]},{WINDOW[1]}",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference to an element
#: The innermost visible, enabled element whose text matches, upper or lower case, in the page's order.
FIND = """
const [selector, pattern] = arguments, wanted = new RegExp(pattern, 'i');
const usable = e => e.getClientRects().length && !e.disabled && e.getAttribute('aria-disabled') != 'true';
const shown = e => usable(e) && wanted.test((e.innerText || '').trim());
const found = [...document.querySelectorAll(selector)].filter(shown);
return found.find(e => !found.some(other => other !== e && e.contains(other))) || null;
"""


class Browser:
    """One tab."""

    def __init__(self, driver: str, profile: Path) -> None:
        self._driver = driver
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self._session = f"/session/{self._call('POST', '/session', wanted)['sessionId']}"

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def address(self) -> str:
        return self._call("GET", f"{self._session}/url")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body of JavaScript returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self) -> str:
        """What can be read on the page."""
        return self.run("return document.body.innerText")

    def wait(self, script: str, *arguments: Any, seconds: float = PATIENCE) -> Any:
        """Ask until the answer is true, and return it. Raises TimeoutError with what the page shows instead."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if answer := self.run(script, *arguments):
                return answer
            time.sleep(0.25)
        raise TimeoutError(f"{script.strip()} {arguments} at {self.address()}, which shows:\n{self.text()}")

    def wait_for(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until the page shows a text, upper or lower case."""
        script = "return document.body.innerText.toLowerCase().includes(arguments[0].toLowerCase())"
        self.wait(script, text, seconds=seconds)

    def click(self, pattern: str, selector: str = "button, a", seconds: float = PATIENCE) -> None:
        """Click, with the mouse, the visible element of that selector whose text matches a regular expression."""
        until = time.monotonic() + seconds
        while True:
            element = self.wait(FIND, selector, pattern, seconds=seconds)
            try:
                self._call("POST", f"{self._session}/element/{element[ELEMENT]}/click", {})
                return
            except ValueError:  # drawn anew, or covered for a moment: look again
                if time.monotonic() > until:
                    raise
                time.sleep(0.25)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def close(self) -> None:
        self._call("DELETE", self._session)

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        """The value of an answer. Raises ValueError with the driver's own message for an error."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=2 * PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["value"]["message"]) from None


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, ended with all its processes."""
    assert DRIVER, "no chromedriver"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_until_listening(port)
        tab = Browser(f"http://127.0.0.1:{port}", profile)
        try:
            yield tab
        finally:
            tab.close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its browser is closed; asked politely, it may take its time
        process.wait()


def _wait_until_listening(port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{DRIVER} does not listen")
