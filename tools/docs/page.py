"""A page in the making: it knows what its links, pictures and names mean, and remembers its headings for the table of contents and the search."""
import base64
import io
import posixpath
import re
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path

from PIL import Image

from .names import anchors_of
from .text import markdown_writer, plain, relative, slug

CSS_DPI = 96  # CSS pixels of an inch


@dataclass
class Page:
    """One page of the site."""
    site: object  # the site it belongs to: its names, files and complaints
    url: str  # from the site's root
    title: str
    description: str = ''
    number: str = ''  # its place in the flow, such as 05a
    section: str = ''  # of the side bar
    source: str = ''  # path of its notebook from the folder of notebooks; '' for a page that has none
    module: str = ''  # the module that it writes, or tells of
    scope: dict = field(default_factory=dict)  # what names mean here: name -> module
    body: str = ''
    facts: list = field(default_factory=list)  # pairs of label and HTML, under the title
    toc: list = field(default_factory=list)  # (level, anchor, HTML)
    records: list = field(default_factory=list)  # for the search: (title, kind, address, context, words)

    def __post_init__(self):
        self.taken, self.reserved, self.drawings, self.cell = set(), set(), 0, None
        self.markdown = markdown_writer(self)
        self.addresses = {}

    # names

    def address(self, module, anchor):
        """Return where a public name is told of, as seen from here: on this page if it is, else on the page of its module."""
        if self.site.names.stories.get((module, anchor)) == self.url: return f'#{anchor}'
        return relative(f'api/{module}.html' + (f'#{anchor}' if anchor else ''), self.url)

    def address_of(self, text):
        """Return the address of what a code span names, or None."""
        if text not in self.addresses:
            found = self.site.names.find(text, self.scope, self.module)
            self.addresses[text] = self.address(*found) if found else None
        return self.addresses[text]

    def address_of_name(self, name):
        """Return the address of a name that is imported or defined here, or None."""
        return self.address(self.scope[name], name) if name in self.scope else None

    def names_public(self, entry):
        """Say whether an entry of this page's notebook is public."""
        if entry.owner: return not entry.name.startswith('_')
        return self.module in self.site.names.modules and entry.name in self.site.names.modules[self.module].exports

    def reference(self, entry): return relative(f'api/{self.module}.html#{anchors_of(entry)[0]}', self.url)

    def claims(self, anchor):
        """Take an anchor; False when this page has it already."""
        fresh = anchor not in self.taken
        self.taken.add(anchor)
        return fresh

    def class_of(self, name):
        """Find the class that a name means here, or None."""
        module = self.scope.get(name)
        entries = self.site.names.modules[module].entries if module else ()
        return next((e for e in entries if e.name == name and e.kind == 'class'), None)

    def class_doc(self, kind):
        """Return what the class of a parameter says of itself."""
        entry = self.class_of(kind)
        return entry.doc.split('\n')[0] if entry else ''

    def inherited(self, owner, entry):
        """Write the documentation that a method takes over from a base class."""
        known = self.class_of(owner)
        for base in known.bases if known else ():
            above = self.class_of(base)
            member = next((m for m in above.members if m.name == entry.name), None) if above else None
            if member and member.doc: return f'<div class="soft">{self.block(member.doc)}</div>'
            if above and (found := self.inherited(base, entry)): return found
        return ''

    # text

    def block(self, text): return self.markdown(text)

    def inline(self, text): return re.sub(r'^\s*<p>(.*)</p>\s*$', r'\1', self.markdown(text.replace('*', r'\*').replace('<', '&lt;')), flags=re.S)

    def heading(self, text, level):
        """Write a heading with an anchor of its own, and remember it."""
        level, anchor = max(level, 2), slug(plain(text))
        number = 1
        while (wanted := anchor if number == 1 else f'{anchor}-{number}') in self.taken | self.reserved: number += 1
        self.taken.add(wanted)
        if level < 4: self.toc.append((level, wanted, re.sub(r'</?a\b[^>]*>', '', text)))
        return f'<h{level} id="{wanted}">{text} <a class="anchor" href="#{wanted}" aria-label="Link to this section">#</a></h{level}>\n'

    def prose(self, cell):
        """Write a markdown cell, and keep its words for the search."""
        self.cell = cell
        html = self.block(cell.source)
        for piece in re.split(r'(?=<h[23] id=)', html):
            found = re.match(r'<h[23] id="([^"]+)">(.*?) <a class="anchor"', piece, re.S)
            if found:
                self.records.append([plain(found[2]), 'section', f'{self.url}#{found[1]}', self.title, plain(piece[piece.index('</h'):])])
            elif plain(piece): self.words(plain(piece))
        return html

    def words(self, text):
        """Add words to the section that is being written."""
        if not self.records: self.records.append([self.title, 'page', self.url, self.section, self.description])
        self.records[-1][4] += ' ' + text

    # links, pictures, live pages

    def complain(self, text): self.site.complaints.append(f'{self.source or self.url}: {text}')

    def inside(self, target):
        """Resolve a path that stands in the notebook, from the folder of notebooks; None when it leaves it."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self.source), target))
        return None if path.startswith('..') else path

    def link(self, target):
        """Return the address that a link of the notebook has in the site."""
        if re.match(r'[a-z][a-z0-9+.-]*:', target): return target
        path, mark, fragment = target.partition('#')
        fragment = slug(fragment) if mark and not self.site.is_anchor(fragment) else fragment
        if not path: return mark + fragment
        found = self.inside(path)
        page = found and self.site.page_of(found)
        if page: return relative(page + mark + fragment, self.url)
        if found and (self.site.nbs / found).is_file() and not found.endswith('.ipynb'):
            return relative(self.site.asset(found), self.url) + mark + fragment
        self.complain(f'the link to {target} leads to no page of the site')
        return target

    def image_tag(self, data, address, alt, title='', width=None):
        """Write a picture with its size, so that the page does not jump."""
        size = ''
        try:
            with Image.open(io.BytesIO(data)) as image:
                dpi = image.info.get('dpi', (0,))[0]
                wide = int(width or round(image.width * min(1, CSS_DPI / (dpi or CSS_DPI))))  # never enlarged: that would blur it
                size = f' width="{wide}" height="{round(wide * image.height / image.width)}"'
                if not dpi and max(image.size) <= 400: size += ' class="small"'  # pixels that are to be seen, such as a toy's
        except OSError:
            if not address.endswith('.svg'): self.complain(f'the picture {address} cannot be read')
        title = f' title="{escape(title)}"' if title else ''
        return f'<img src="{escape(address)}" alt="{escape(alt)}"{title}{size} loading="lazy" decoding="async">'

    def picture(self, target, alt, title=''):
        """Write a picture that the notebook names."""
        if target.startswith('attachment:'):
            found = (self.cell.attachments if self.cell else {}).get(target.removeprefix('attachment:'))
            if not found: self.complain(f'the picture {target} is missing'); return ''
            mime, data = next(iter(found.items()))
            return self.drawn(base64.b64decode(data), '.' + mime.partition('/')[2].partition('+')[0], {}, alt, framed=False)
        if re.match(r'data:', target): return f'<img src="{escape(target)}" alt="{escape(alt)}">'
        if re.match(r'[a-z][a-z0-9+.-]*:|//', target): self.complain(f'the picture {target} would be fetched from elsewhere; keep it in nbs/images'); return ''
        found = self.inside(target)
        path = self.site.nbs / found if found else None
        if not path or not path.is_file(): self.complain(f'the picture {target} is missing'); return ''
        return self.image_tag(path.read_bytes(), relative(self.site.asset(found), self.url), alt, title)

    def drawn(self, data, suffix, metadata, alt='', framed=True):
        """Write a picture that a cell has drawn, into a file of its own."""
        self.drawings += 1
        name = f'pictures/{self.url.removesuffix(".html").replace("/", "-")}-{self.drawings}{suffix}'
        self.site.files[name] = data
        under = next((plain(text) for level, _, text in reversed(self.toc)), self.title)
        tag = self.image_tag(data, relative(name, self.url), alt or f'What the code draws, under “{under}”', width=metadata.get('width'))
        return f'<figure>{tag}</figure>' if framed else tag

    def raw_html(self, html):
        """Pass HTML on; what it links to and shows is found in the site, a frame becomes a live page."""
        def frame(match):
            source = re.search(r'src="([^"]*)"', match[0])
            height = re.search(r'height="?(\d+)', match[0])
            if not source or re.match(r'[a-z]+:|//', source[1]): return match[0]  # refused when the site is checked
            return self.embed(unescape(source[1]), int(height[1]) if height else 640)
        html = re.sub(r'<iframe\b.*?(</iframe>|/>)', frame, html, flags=re.S)
        def image(match):
            source, alt = re.search(r'src="([^"]*)"', match[0]), re.search(r'alt="([^"]*)"', match[0])
            width = re.search(r'width="?(\d+)"?', match[0])
            if not source or source[1].startswith('data:'): return match[0]
            tag = self.picture(unescape(source[1]), unescape(alt[1]) if alt else '')
            return re.sub(r' width="\d+" height="\d+"', f' width="{width[1]}"', tag) if width else tag
        html = re.sub(r'<img\b[^>]*>', image, html)
        return re.sub(r'(<a\b[^>]*?href=")([^"]*)(")', lambda m: m[1] + escape(self.link(unescape(m[2]))) + m[3], html)

    def embed(self, target, height, view=None):
        """Show an HTML file that lies beside the notebook, live; of an explorer that was kept in a file, its page, opened with a view of its own."""
        found = self.inside(target)
        path = self.site.nbs / found if found else None
        if not path or not path.is_file(): self.complain(f'the page {target} that is to be shown live is missing'); return ''
        html = path.read_text(encoding='utf-8') if path.suffix in ('.html', '.htm') else live_page(path, view)
        told = re.search(r'<title>(.*?)</title>', html, re.S)
        title = ' '.join(unescape(told[1]).split()) if told else Path(found).stem
        address = relative(self.site.asset(found) if path.suffix in ('.html', '.htm') else self.site.live_page(Path(found).stem, html), self.url)
        return (f'<figure class="live"><iframe src="{escape(address)}" title="{escape(title)}" height="{height}" loading="lazy" '
                f'sandbox="allow-scripts allow-downloads" allow="fullscreen; clipboard-write"></iframe><figcaption>Live, in your browser. <a href="{escape(address)}">Open it alone</a></figcaption></figure>')


def live_page(path, view):
    """Write the page of an explorer that was kept in a file, with the scripts as they are now."""
    from synseg_kit.explorer import View, load_explorer, settle
    explorer = load_explorer(path)
    if view: explorer.view = settle(View(**view), explorer.shown).to_json()
    return explorer.to_html()
