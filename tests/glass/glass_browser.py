"""A headless Chromium, driven through chromedriver's HTTP protocol (W3C WebDriver) by the standard library alone.

Debian's packages chromium and chromium-driver. `missing()` says why there is none.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"down": "\ue015", "up": "\ue013", "left": "\ue012", "right": "\ue014", "enter": "\ue007", "tab": "\ue004"}


def missing() -> str:
    """Why no browser can be driven here; "" if one can."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} here (Debian: chromium, chromium-driver)" if absent else ""


class Browser:
    """One page in one window. `console` holds what the page complained about."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1500, 950), dark: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environ = os.environ | {"HOME": str(folder)}
        log = (folder / "chromedriver.log").open("wb")
        self._driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=log, stderr=log, env=environ)
        log.close()
        self._base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={size[0]},{size[1]}",
            *(["--force-dark-mode", "--enable-features=WebContentsForceDark"] if dark else []),
        ]
        wanted = {
            "goog:chromeOptions": {"args": arguments, "binary": shutil.which("chromium")},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self._wait_for_driver()
        self._session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", f"/session/{self._session}")
        finally:
            self._driver.terminate()
            self._driver.wait(10)

    def open(self, path: Path) -> None:
        self._do("POST", "/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that matches."""
        self._pointer(selector, [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}])
        self.settle()

    def hover(self, selector: str) -> None:
        self._pointer(selector, [])
        self.settle()

    def press(self, *keys: str) -> None:
        """Keys, one after another, to whatever has the focus."""
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self._do("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})
        self.settle()

    def settle(self) -> None:
        """Two frames: what was asked for is drawn."""
        self._do(
            "POST",
            "/execute/async",
            {
                "script": "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))",
                "args": [],
            },
        )

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    @property
    def console(self) -> list[str]:
        entries = self._do("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if "favicon" not in entry["message"]]

    def _pointer(self, selector: str, then: list[dict[str, Any]]) -> None:
        found = self._do("POST", "/element", {"using": "css selector", "value": selector})
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": {ELEMENT: found[ELEMENT]}}
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move, *then]}
        self._do("POST", "/actions", {"actions": [pointer]})

    def _do(self, method: str, path: str, body: Any = None) -> Any:
        return self._ask(method, f"/session/{self._session}{path}", body)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None

    def _wait_for_driver(self) -> None:
        for _ in range(200):
            try:
                if self._ask("GET", "/status")["ready"]:
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise RuntimeError("chromedriver did not start")
