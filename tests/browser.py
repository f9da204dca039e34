"""A headless Chromium, driven over its DevTools protocol: as much of it as the test of a page needs."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

aiohttp = pytest.importorskip("aiohttp")

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --disable-extensions "
    "--disable-background-networking --no-proxy-server --remote-debugging-port=0 --window-size=1400,900"
).split()


class Tab:
    """An open page: runs commands of the protocol, one after the other."""

    def __init__(self, socket: Any):
        self.socket, self.numbers = socket, itertools.count(1)

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its own answer; events in between are passed over."""
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = json.loads(await self.socket.receive_str(timeout=30))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def evaluate(self, code: str) -> Any:
        """The value of an expression of JavaScript."""
        result = await self.command("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def wait_for(self, code: str, seconds: float = 30) -> Any:
        """Evaluates until the value counts as true."""
        end = time.monotonic() + seconds
        while not (value := await self.evaluate(code)):
            assert time.monotonic() < end, f"after {seconds} s still not: {code}"
            await asyncio.sleep(0.1)
        return value

    async def upload(self, selector: str, file: Path) -> None:
        """Chooses a file, as a user does in the dialogue."""
        root = (await self.command("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.command("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.command("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    async def click(self, selector: str) -> None:
        """Presses and releases the mouse in the middle of an element."""
        middle = await self.evaluate(
            f"(() => {{ const element = document.querySelector({selector!r}); element.scrollIntoView(); "
            "const box = element.getBoundingClientRect(); "
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2} })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.command("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **middle)

    async def type(self, selector: str, text: str) -> None:
        """Clicks into a field and types."""
        await self.click(selector)
        await self.command("Input.insertText", text=text)

    async def wait_for_file(self, file: Path, seconds: float = 30) -> None:
        """Until a download is there; Chromium writes it under another name."""
        end = time.monotonic() + seconds
        while not file.exists():
            assert time.monotonic() < end, f"after {seconds} s there is no {file.name}"
            await asyncio.sleep(0.1)

    async def screenshot(self, file: Path) -> None:
        """Saves what the window shows, as PNG."""
        data = (await self.command("Page.captureScreenshot"))["data"]
        file.write_bytes(base64.b64decode(data))


class Browser:
    """An async context manager: starts Chromium with a profile of its own, opens a page, and saves downloads."""

    def __init__(self, address: str, profile: Path, downloads: Path):
        self.address, self.profile, self.downloads = address, profile, downloads

    async def __aenter__(self) -> Tab:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.session = aiohttp.ClientSession()
        try:
            port = await self._port()
            async with self.session.get(f"http://127.0.0.1:{port}/json/list") as response:
                (target,) = [each for each in await response.json() if each["type"] == "page"]
            self.socket = await self.session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
            tab = Tab(self.socket)
            allowed = {"behavior": "allow", "downloadPath": str(self.downloads)}
            await tab.command("Browser.setDownloadBehavior", **allowed)
            await tab.command("Page.navigate", url=self.address)
            return tab
        except BaseException:
            await self.__aexit__()
            raise

    async def _port(self) -> str:
        file, end = self.profile / "DevToolsActivePort", time.monotonic() + 30
        while not (file.exists() and file.read_text().strip()):
            assert self.process.poll() is None and time.monotonic() < end, "Chromium did not start"
            await asyncio.sleep(0.1)
        return file.read_text().splitlines()[0]

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
