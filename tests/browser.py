"""A headless Chromium, driven over a pipe by its DevTools protocol. Needs no package."""

import json
import os
import subprocess
import time
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path


class Browser:
    """One page of a browser. `requests` are the addresses that it has asked for, `errors` what its scripts complained of."""

    def __init__(self, to_browser: int, from_browser: int):
        self.pipe, self.replies = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb", buffering=0)
        self.rest, self.number, self.session = b"", 0, None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.ask(f"{domain}.enable")

    def read(self) -> dict:
        """The browser's next message. They end with a zero byte."""
        while b"\0" not in self.rest:
            chunk = self.replies.read(1 << 16)
            assert chunk, "the browser has ended"
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def ask(self, method: str, **parameters) -> dict:
        self.number += 1
        asked = {"id": self.number, "method": method, "params": parameters}
        self.pipe.write(json.dumps(asked | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (message := self.read()).get("id") != self.number:
            found = message.get("params", {})
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(found["request"]["url"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(found["exceptionDetails"]))
        assert "error" not in message, message
        return message["result"]

    def run(self, script: str):
        """What a JavaScript expression is worth in the page."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30):
        """Waits until an expression holds, and returns its value."""
        until = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < until, f"never true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def type(self, selector: str, text: str) -> None:
        """Puts a text in the place of what stands in a text box, as a user's keyboard would."""
        self.run(f"(box => {{ box.focus(); box.select(); }})(document.querySelector({json.dumps(selector)}))")
        self.ask("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextmanager
def browse(chromium: str, url: str, profile: Path, size: str = "1280,1000"):
    """A page at an address, in a browser that ends with the block."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    options = f"--headless --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run --window-size={size}"
    command = f'exec "{chromium}" {options} --user-data-dir="{profile}" 3<&{their_in} 4>&{their_out}'
    process = subprocess.Popen(["bash", "-c", command], pass_fds=(their_in, their_out), stderr=subprocess.DEVNULL)
    os.close(their_in), os.close(their_out)
    try:
        browser = Browser(our_out, our_in)
        browser.ask("Page.navigate", url=url)
        yield browser
    finally:
        process.terminate()
        process.wait(10)
