"""A page in headless Chromium, driven by the Chrome DevTools Protocol: no driver to install, and every request is seen."""
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

CHROMIUM = next((found for name in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(name))), None)
OFFLINE = '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'  # no name but this machine's is found


class Page:
    """One page. Use as a context manager; `requests` lists every URL that was asked for, `errors` every uncaught error."""

    def __init__(self, width=1240, height=1000, dark=False, reduced_motion=False):
        import websocket
        self.folder = tempfile.mkdtemp(prefix='chrome')
        flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars', '--no-first-run', '--disable-background-networking', '--remote-debugging-port=0',
                 '--remote-allow-origins=*', f'--user-data-dir={self.folder}', f'--window-size={width},{height}', OFFLINE, 'about:blank']
        self.process = subprocess.Popen([CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._port()
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/json', timeout=20) as answer: page = next(one for one in json.load(answer) if one['type'] == 'page')
        self.socket = websocket.create_connection(page['webSocketDebuggerUrl'], timeout=120)
        self.count, self.requests, self.errors, self.events = 0, [], [], []
        for domain in ('Page', 'Runtime', 'Network'): self.send(f'{domain}.enable')
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'},
                                                          {'name': 'prefers-reduced-motion', 'value': 'reduce' if reduced_motion else 'no-preference'}])

    def _port(self):
        told = Path(self.folder) / 'DevToolsActivePort'
        for _ in range(300):
            if told.exists() and told.read_text().strip(): return told.read_text().split()[0]
            if self.process.poll() is not None: raise RuntimeError(f'{CHROMIUM} ended with status {self.process.returncode}')
            time.sleep(.1)
        raise TimeoutError(f'{CHROMIUM} did not open its port within 30 s')

    def __enter__(self): return self

    def __exit__(self, *error):
        try: self.socket.close()
        finally:
            self.process.terminate()
            try: self.process.wait(20)
            except subprocess.TimeoutExpired: self.process.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    def send(self, method, **params):
        """Call a method of the protocol; what happens meanwhile is noted."""
        self.count += 1
        self.socket.send(json.dumps({'id': self.count, 'method': method, 'params': params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get('id') == self.count:
                if 'error' in message: raise RuntimeError(f'{method}: {message["error"]["message"]}')
                return message['result']
            self._note(message)

    def _note(self, message):
        name, params = message.get('method', ''), message.get('params', {})
        if name == 'Network.requestWillBeSent': self.requests.append(params['request']['url'])
        elif name == 'Runtime.exceptionThrown':
            details = params['exceptionDetails']
            self.errors.append(details.get('exception', {}).get('description') or details['text'])
        self.events.append(name)

    def open(self, url):
        """Go to a page."""
        self.send('Page.navigate', url=str(url))

    def run(self, expression):
        """Evaluate JavaScript; a promise is awaited."""
        found = self.send('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in found: raise RuntimeError(found['exceptionDetails'].get('exception', {}).get('description', found['exceptionDetails']['text']))
        return found['result'].get('value')

    def wait(self, expression, seconds=20):
        """Wait until JavaScript gives something true; give it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(expression): return value
            time.sleep(.05)
        raise TimeoutError(f'within {seconds} s it did not come true: {expression}; errors: {self.errors}')

    def settle(self, milliseconds=0):
        """Wait until what was asked for is painted, and a little longer for what a page draws later."""
        self.run(f'new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, {milliseconds}))))')

    def at(self, selector, x=.5, y=.5):
        """Find a point of an element, as a share of its box, in the window."""
        return self.run(f'(() => {{ const node = {self._find(selector)}; node.scrollIntoView({{block: "nearest"}}); const b = node.getBoundingClientRect(); return [b.left + b.width * {x}, b.top + b.height * {y}]; }})()')

    @staticmethod
    def _find(selector):
        """JavaScript that finds an element: CSS, or CSS with '::text' that its text begins with."""
        css, _, text = selector.partition('::')
        return f'[...document.querySelectorAll({json.dumps(css)})].find(node => node.textContent.trim().startsWith({json.dumps(text)}) && !node.closest("[hidden]"))'

    def mouse(self, kind, x, y, buttons=0, modifiers=0, count=0):
        self.send('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left' if kind != 'mouseMoved' else 'none', buttons=buttons, clickCount=count, modifiers=modifiers)

    def hover(self, selector, x=.5, y=.5):
        """Move the pointer over an element."""
        self.mouse('mouseMoved', *self.at(selector, x, y))
        self.settle()

    def click(self, selector, x=.5, y=.5, shift=False):
        """Click an element."""
        place = self.at(selector, x, y)
        self.mouse('mouseMoved', *place)
        for kind in ('mousePressed', 'mouseReleased'): self.mouse(kind, *place, buttons=int(kind == 'mousePressed'), modifiers=8 * shift, count=1)
        self.settle(120)

    def drag(self, selector, *places):
        """Press on an element, move through places of it, and let go."""
        points = [self.at(selector, *place) for place in places]
        self.mouse('mouseMoved', *points[0])
        self.mouse('mousePressed', *points[0], buttons=1, count=1)
        for (ax, ay), (bx, by) in zip(points, points[1:]):
            for k in range(1, 5): self.mouse('mouseMoved', ax + (bx - ax) * k / 4, ay + (by - ay) * k / 4, buttons=1)
        self.mouse('mouseReleased', *points[-1], count=1)
        self.settle(120)

    def type(self, text):
        """Type text into what has the focus."""
        self.send('Input.insertText', text=text)

    def press(self, key, code=None, modifiers=0):
        """Press a key."""
        codes = {'Enter': 13, 'Escape': 27, 'ArrowRight': 39, 'ArrowLeft': 37, 'ArrowUp': 38, 'ArrowDown': 40, 'Tab': 9, ' ': 32}
        text = {'text': '\r'} if key == 'Enter' else {'text': key} if len(key) == 1 else {}
        more = dict(key=key, code=code or key, windowsVirtualKeyCode=codes.get(key, ord(key.upper()) if len(key) == 1 else 0), modifiers=modifiers)
        self.send('Input.dispatchKeyEvent', type='keyDown', **more, **text)
        self.send('Input.dispatchKeyEvent', type='keyUp', **more)
        self.settle()

    def text(self, selector):
        """Read an element's text."""
        return self.run(f'{self._find(selector)}?.textContent')

    def screenshot(self, path):
        """Save the window as PNG."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(base64.b64decode(self.send('Page.captureScreenshot', format='png')['data']))

    def downloads(self, folder):
        """Let files be saved into a folder."""
        self.send('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(folder), eventsEnabled=False)
