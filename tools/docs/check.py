"""What a site must not have: dead links, missing files, and requests to anywhere but itself."""
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {'script': ('src',), 'link': ('href',), 'img': ('src', 'srcset'), 'iframe': ('src',), 'source': ('src', 'srcset'), 'video': ('src', 'poster'), 'audio': ('src',),
           'embed': ('src',), 'object': ('data',), 'track': ('src',), 'image': ('href', 'xlink:href'), 'use': ('href', 'xlink:href'), 'input': ('src',)}
ASKING = re.compile(r'(?:\b(?:fetch|import|importScripts|WebSocket|EventSource)\s*\(\s*|\bfrom\s*)["\'`]((?:https?|wss?):)?//', re.I)  # in a script
OUTSIDE = re.compile(r'\s*(?:[a-z][a-z0-9+.-]*:)?//|\s*(?:https?|ftp|wss?):', re.I)


class Links(HTMLParser):
    """Collects what a page links to, fetches and can be linked to."""

    def __init__(self):
        super().__init__()
        self.anchors, self.links, self.fetched, self.styles, self.scripts, self.twice = set(), [], [], [], [], set()
        self.inside = ''

    def handle_starttag(self, tag, attributes):
        values = {name: value or '' for name, value in attributes}
        anchor = values.get('id') or (values.get('name') if tag == 'a' else '')
        if anchor and anchor in self.anchors: self.twice.add(anchor)
        if anchor: self.anchors.add(anchor)
        if tag in ('a', 'area') and 'href' in values: self.links.append(values['href'])
        for name in FETCHED.get(tag, ()):
            if not values.get(name): continue
            self.fetched += [part.split()[0] for part in values[name].split(',') if part.strip()] if name == 'srcset' else [values[name]]
        if 'style' in values: self.styles.append(values['style'])
        self.inside = tag if tag in ('style', 'script') else ''

    def handle_endtag(self, tag):
        if tag == self.inside: self.inside = ''

    def handle_data(self, data):
        if self.inside: (self.styles if self.inside == 'style' else self.scripts).append(data)


def styled(css):
    """List what a style sheet fetches."""
    return re.findall(r'url\(\s*["\']?([^"\')]+)', css) + re.findall(r'@import\s+["\']([^"\']+)', css)


def read_links(html):
    """Read what a page links to, fetches and can be linked to."""
    parser = Links()
    parser.feed(re.sub(r'</?i(?: class="[a-z]")?>', '', html))  # the inks of code, most of all tags, neither link nor fetch
    parser.close()
    parser.fetched += [target for css in parser.styles for target in styled(css)]
    return parser


def target_of(address, page):
    """Resolve an address on a page: the file in the site and the anchor in it; None for one that leads out of the site."""
    parts = urlsplit(address)
    if parts.scheme or address.startswith('//'): return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    return path, unquote(parts.fragment)


def check_site(folder, live=()):
    """List every fault of a site's pages, style sheets and scripts; pages that are shown live and are not ours (`live`) answer for what they fetch alone."""
    folder = Path(folder)
    pages = {path.relative_to(folder).as_posix(): read_links(path.read_text(encoding='utf-8')) for path in sorted(folder.rglob('*.html'))}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
    faults = []
    for page, found in pages.items():
        for address in found.fetched: faults += fetch_faults(address, page, files)
        for script in found.scripts: faults += script_faults(script, page)
        if page in live: continue
        faults += [f'{page} has the anchor {anchor} twice' for anchor in sorted(found.twice)]
        for address in found.links:
            target = target_of(address, page)
            if target is None: continue
            path, anchor = target
            if path not in files: faults.append(f'{page} links to {address}, which is not there')
            elif anchor and path in pages and path not in live and anchor not in pages[path].anchors: faults.append(f'{page} links to {address}; {path} has no such anchor')
    for path in sorted(folder.rglob('*.css')):
        name = path.relative_to(folder).as_posix()
        for address in styled(path.read_text(encoding='utf-8')): faults += fetch_faults(address, name, files)
    for path in sorted(folder.rglob('*.js')): faults += script_faults(path.read_text(encoding='utf-8'), path.relative_to(folder).as_posix())
    return list(dict.fromkeys(faults))


def script_faults(script, page):
    """Say what a script asks for elsewhere, as far as it says so in so many words."""
    return [f'{page} has a script that asks for {script[found.start():found.end() + 60]!r} elsewhere; the site must do without' for found in ASKING.finditer(script)]


def fetch_faults(address, page, files):
    """Say what is wrong with an address that a browser fetches by itself."""
    if address.startswith(('data:', '#', 'blob:')): return []
    if OUTSIDE.match(address): return [f'{page} fetches {address[:200]} from elsewhere; the site must do without']
    target = target_of(address, page)
    return [] if target and target[0] in files else [f'{page} shows {address[:200]}, which is not there']
