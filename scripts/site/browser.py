#!/usr/bin/env python3
"""Reads the built site (target/site) in a real Chromium, as a reader would, and fails on what a reader would stumble over.

    scripts/site/browser.py [--shots DIR] [PAGE...]     PAGE: of the site, such as errors.html; none means all

Every page, 1280 and 390 pixels wide, light and dark: nothing may be fetched from another host, nothing may be missing, the console may
hold no error, and neither the page nor anything in it may be wider than the window without a way to scroll there. Then search, the copy
button, the switch between light and dark and the keyboard are used. --shots keeps a picture of each page that was named.

Nothing but Python's own library: Chromium speaks its protocol over two pipes (--remote-debugging-pipe), the site is served on loopback.
"""

import argparse
import base64
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SITE = Path(__file__).resolve().parents[2] / "target" / "site"
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
PATIENCE = 30.0
# Words that a reader would look for, and where they should be led.
QUERIES = {"host_refused": "errors.html", "key_file": "ssh-hosts.html", "slots": "reference/configuration.html"}

# What is too wide and cannot be scrolled to: where it stands, and by how much.
TOO_WIDE = """(() => {
  const width = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push(`the page: ${document.documentElement.scrollWidth} of ${width}`);
  const scrolls = element => {
    for (let up = element.parentElement; up && up !== document.body; up = up.parentElement) {
      const style = getComputedStyle(up);
      if (['auto', 'scroll'].includes(style.overflowX)) return true;
    }
    return false;
  };
  for (const element of document.querySelectorAll('.md-content__inner *')) {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.right <= width + 1 || scrolls(element)) continue;
    found.push(`${element.tagName.toLowerCase()} "${element.textContent.trim().slice(0, 40)}": to ${Math.round(box.right)} of ${width}`);
    if (found.length > 3) break;
  }
  return found;
})()"""


# What a page took for an element because somebody wrote `<name>` outside of code: a reader sees nothing of it.
SWALLOWED = """[...new Set([...document.querySelectorAll('.md-content__inner *')]
  .filter(element => element instanceof HTMLUnknownElement).map(element => element.tagName.toLowerCase()))]"""


class Failure(Exception):
    """What a reader would stumble over, or a browser that does not answer."""


class Browser:
    """A Chromium with one page, spoken to over pipes."""

    def __init__(self, program):
        self.profile = tempfile.mkdtemp(prefix="jobcell-site-")
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()

        def pipes():
            # The child's ends may stand at each other's numbers.
            spare = os.dup(to_write)
            os.dup2(to_read, 3)
            os.dup2(spare, 4)
            os.set_inheritable(3, True)
            os.set_inheritable(4, True)

        order = [program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={self.profile}", "--disable-gpu"]
        order += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        order += ["--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        if os.geteuid() == 0:
            order.append("--no-sandbox")  # Chromium's own sandbox refuses root; it reads nothing but this site.
        # It is started before there are threads: `preexec_fn` is safe then.
        self.child = subprocess.Popen(
            order, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=pipes
        )
        os.close(to_read)
        os.close(to_write)
        self.rest, self.last, self.events, self.session = b"", 0, [], None
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def message(self, end):
        while b"\0" not in self.rest:
            if not select.select([self.read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Failure("the browser does not answer")
            piece = os.read(self.read, 1 << 20)
            if not piece:
                raise Failure("the browser has ended")
            self.rest += piece
        one, self.rest = self.rest.split(b"\0", 1)
        return json.loads(one)

    def call(self, method, **params):
        self.last += 1
        order = {"id": self.last, "method": method, "params": params}
        if self.session:
            order["sessionId"] = self.session
        os.write(self.write, json.dumps(order).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            message = self.message(end)
            if message.get("id") == self.last:
                if "error" in message:
                    raise Failure(f"{method}: {message['error']['message']}")
                return message["result"]
            if "method" in message:
                self.events.append(message)

    def wait(self, method):
        end = time.monotonic() + PATIENCE
        while not any(event["method"] == method for event in self.events):
            message = self.message(end)
            if "method" in message:
                self.events.append(message)

    def ask(self, expression):
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in said:
            raise Failure(f"{expression}: {said['exceptionDetails'].get('exception', {}).get('description', said)}")
        return said["result"].get("value")

    def until(self, what, expression):
        end = time.monotonic() + PATIENCE
        while not (value := self.ask(expression)):
            if time.monotonic() > end:
                raise Failure(f"{what}: not within {PATIENCE:.0f} s")
            time.sleep(0.05)
        return value

    def press(self, key, code=0, text=""):
        key = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def dress(self, width, scheme):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, address):
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait("Page.loadEventFired")
        self.until("the theme's script", "document.body && !!document.querySelector('[data-md-color-scheme]')")

    def shot(self, path):
        height = min(self.ask("document.documentElement.scrollHeight"), 1500)
        clip = {"x": 0, "y": 0, "width": self.ask("innerWidth"), "height": height, "scale": 1}
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self):
        self.child.kill()
        self.child.wait()
        shutil.rmtree(self.profile, ignore_errors=True)


def faults(events, origin):
    """What the browser said while a page was read."""
    for event in events:
        said = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            address = said["request"]["url"]
            if not address.startswith((origin, "data:", "blob:")):
                yield f"asks another host: {address}"
        elif event["method"] == "Network.responseReceived" and said["response"]["status"] >= 400:
            yield f"{said['response']['status']}: {said['response']['url']}"
        elif event["method"] == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            yield f"exception: {details.get('exception', {}).get('description') or details['text']}"
        elif event["method"] == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            yield f"console: {[one.get('value') for one in said['args']]}"
        elif event["method"] == "Log.entryAdded" and said["entry"]["level"] == "error":
            yield f"console: {said['entry']['text']} {said['entry'].get('url', '')}"


def read_page(browser, origin, page, shots):
    for scheme in SCHEMES:
        browser.dress(WIDTHS[0], scheme)
        browser.open(f"{origin}/{page}")
        wanted = {"light": "default", "dark": "slate"}[scheme]
        shown = browser.ask("document.body.dataset.mdColorScheme")
        if shown != wanted:
            yield f"{scheme}: its colours are {shown!r}"
        for found in browser.ask(SWALLOWED):
            yield f"{scheme}: <{found}> is taken for an element, and not shown"
        for width in WIDTHS:
            browser.dress(width, scheme)
            # Laid out anew, and painted.
            browser.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            for found in browser.ask(TOO_WIDE):
                yield f"{scheme}, {width} wide: too wide: {found}"
            if shots:
                browser.shot(shots / f"{page.replace('/', '_').removesuffix('.html')}-{width}-{scheme}.png")
        for fault in faults(browser.events, origin):
            yield f"{scheme}: {fault}"


def search(browser, origin, width):
    for query, wanted in QUERIES.items():
        browser.dress(width, "light")
        browser.open(f"{origin}/index.html")
        # As a reader does: by the key where there is one, by a finger on a telephone.
        if width > 600:
            browser.press("/", 191, "/")
        else:
            browser.ask("document.querySelector('.md-header label[for=__search]').click()")
        browser.until("the search is open", "document.activeElement?.matches('.md-search__input')")
        browser.call("Input.insertText", text=query)
        listed = "[...document.querySelectorAll('.md-search-result__link')].map(one => one.href)"
        found = browser.until(f"results for {query}", f"(list => list.length && list)({listed})")
        if not any(f"/{wanted}" in address for address in found):
            yield f"search at {width}: {query!r} does not lead to {wanted}, but to {found[:5]}"
        browser.press("ArrowDown", 40)
        browser.press("Enter", 13, "\r")
        browser.until(f"{query} leads on", "!location.pathname.endsWith('/index.html')")
        for fault in faults(browser.events, origin):
            yield f"search at {width}: {fault}"


def use(browser, origin):
    yield from search(browser, origin, 1280)
    yield from search(browser, origin, 390)
    browser.dress(1280, "light")
    browser.open(f"{origin}/start-developer.html")
    # Into the text without the mouse.
    browser.press("Tab", 9)
    skip = browser.ask("document.activeElement.className")
    if "md-skip" not in skip:
        yield f"keyboard: the first tab leads to {skip!r}, not past the navigation"
    # A block of code is copied as it is shown.
    browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    button = browser.until("a copy button", "document.querySelector('.md-content button[data-clipboard-target]') && 'is there'")
    if button:
        # The page has to be in front for the clipboard to be given.
        browser.call("Page.bringToFront")
        browser.ask("document.querySelector('.md-content button[data-clipboard-target]').click()")
        copied = browser.until("something copied", "navigator.clipboard.readText()")
        shown = browser.ask("document.querySelector(document.querySelector('.md-content button[data-clipboard-target]').dataset.clipboardTarget).innerText")
        if copied.strip() != shown.strip():
            yield f"copy: {copied!r} in place of {shown!r}"
    # Dark by hand, and on the next page too.
    for _ in ("light", "dark"):
        browser.ask("document.querySelector('.md-header__option label:not([hidden])').click()")
    browser.until("dark by hand", "document.body.dataset.mdColorScheme === 'slate'")
    browser.open(f"{origin}/errors.html")
    browser.until("still dark", "document.body.dataset.mdColorScheme === 'slate'")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shots", type=Path, metavar="DIR")
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    given = parser.parse_args()
    program = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if not program:
        sys.exit("browser.py: there is no chromium. On Debian: apt-get install --no-install-recommends chromium.")
    if not (SITE / "index.html").is_file():
        sys.exit(f"browser.py: {SITE} has no site: run `make docs` first.")
    if given.shots:
        given.shots.mkdir(parents=True, exist_ok=True)
    pages = given.pages or sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html") if page.name != "404.html" and "files" not in page.parts)
    browser = Browser(program)
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}"
        told = [f"{page}, {fault}" for page in pages for fault in read_page(browser, origin, page, given.shots)]
        if not given.pages:
            told += list(use(browser, origin))
        version = browser.call("Browser.getVersion")["product"]
    finally:
        browser.close()
    if told:
        print("\n".join(told), file=sys.stderr)
        sys.exit(f"browser.py: {len(told)} faults in {len(pages)} pages")
    print(f"browser.py: {len(pages)} pages read by {version}, {len(WIDTHS)} widths, light and dark: nothing to mend")


if __name__ == "__main__":
    main()
