"""Text as HTML: code with links to the names in it, markdown with links between pages, formulas as MathML."""
import posixpath
import re
from html import escape, unescape
from keyword import iskeyword

import mistune
from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import Token
from pygments.util import ClassNotFound

from .mathml import to_mathml

INKS = ((Token.Comment, 'c'), (Token.Literal.String, 's'), (Token.Literal.Number, 'm'), (Token.Keyword, 'k'), (Token.Operator.Word, 'k'))
PYTHON = re.compile(r"""
    (?P<c>\#[^\n]*)
  | (?P<s>\b(?:[rbfu]|rb|br|rf|fr)?(?:\'{3}(?:[^\\]|\\.)*?\'{3}|"{3}(?:[^\\]|\\.)*?"{3}|\'(?:[^\\\n']|\\.)*\'|"(?:[^\\\n"]|\\.)*")
     |(?:\'{3}(?:[^\\]|\\.)*?\'{3}|"{3}(?:[^\\]|\\.)*?"{3}|\'(?:[^\\\n']|\\.)*\'|"(?:[^\\\n"]|\\.)*"))
  | (?P<f>(?<=\bdef\ )\w+|(?<=\bclass\ )\w+)
  | (?P<m>(?<![\w.])(?:0[xXoObB][\da-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?j?))
  | (?P<name>[^\W\d]\w*)
""", re.X | re.S | re.I)  # thirty times faster than a lexer of the whole grammar, and as good for the eye


def slug(text):
    """Make an anchor of a heading."""
    return re.sub(r'[^\w.]+', '-', text.lower()).strip('-') or 'section'


def plain(html):
    """Return the words of a piece of HTML, without formulas."""
    return ' '.join(unescape(re.sub(r'<[^>]*>', ' ', re.sub(r'<(math|style|script)\b.*?</\1>', ' ', html, flags=re.S))).split())


def highlight_python(text, link):
    """Write Python as HTML."""
    parts, place, depth = [], 0, 0
    for found in PYTHON.finditer(text):
        between = text[place:found.start()]
        depth += sum(map(between.count, '([{')) - sum(map(between.count, ')]}'))
        parts.append(escape(between, quote=False))
        place, word, letter = found.end(), found[0], found.lastgroup
        if letter == 'name':
            letter = 'k' if iskeyword(word) else ''
            argument = depth and re.match(r'=(?!=)', text[place:place + 2])
            address = None if letter == 'k' or argument or between.endswith('.') else link(word)
            shown = f'<a href="{address}">{word}</a>' if address else word
        else: shown = escape(word, quote=False)
        parts.append(f'<i class="{letter}">{shown}</i>' if letter else shown)
    return ''.join([*parts, escape(text[place:], quote=False)])


def highlight(text, language='python', link=lambda name: None):
    """Write code as HTML; `link(name)` gives a public name's address, or None."""
    if language == 'python': return highlight_python(text, link)
    try: lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False) if language else None
    except ClassNotFound: lexer = None
    if not lexer: return escape(text, quote=False)
    parts = []
    for kind, value in lex(text, lexer):
        letter = next((letter for wanted, letter in INKS if kind in wanted), '')
        parts.append(f'<i class="{letter}">{escape(value, quote=False)}</i>' if letter else escape(value, quote=False))
    return ''.join(parts)


def code_block(text, language='python', link=lambda name: None, kind=''):
    """Write a block of code."""
    return f'<pre class="code{" " + kind if kind else ""}" tabindex="0"><code>{highlight(text.rstrip(), language, link)}</code></pre>'


def math(markdown):
    """Teach mistune `$...$` and `$$...$$`."""
    def parse(inline, match, state):
        shown = match['shown']
        state.append_token({'type': 'formula', 'raw': shown or match['told'], 'attrs': {'display': shown is not None}})
        return match.end()
    markdown.inline.register('formula', r'\$\$(?P<shown>[^$]+)\$\$|\$(?![\s$])(?P<told>(?:[^$\n\\]|\\.)+?)(?<!\s)\$(?!\d)', parse, before='link')


class Writer(mistune.HTMLRenderer):
    """Writes a page's markdown; the page answers what links and pictures mean."""

    def __init__(self, page):
        super().__init__(escape=False)
        self.page = page

    def formula(self, text, display=False): return to_mathml(text, display)

    def heading(self, text, level, **attrs):
        return self.page.heading(text, level)

    def codespan(self, text):
        address = self.page.address_of(unescape(text))
        shown = f'<code>{escape(unescape(text), quote=False)}</code>'
        return f'<a class="name" href="{address}">{shown}</a>' if address else shown

    def block_code(self, code, info=None):
        language = (info or '').split()[0] if info and info.strip() else ''
        return code_block(code, {'sh': 'bash', 'py': 'python'}.get(language, language), self.page.address_of_name)

    def link(self, text, url, title=None):
        title = f' title="{escape(title)}"' if title else ''
        return f'<a href="{escape(self.page.link(unescape(url)))}"{title}>{text}</a>'

    def image(self, text, url, title=None): return self.page.picture(unescape(url), plain(text), title or '')

    def table(self, text): return f'<div class="scroll"><table>{text}</table></div>\n'

    def paragraph(self, text):
        return f'<figure>{text}</figure>\n' if re.fullmatch(r'\s*<img[^>]*>\s*', text) else f'<p>{text}</p>\n'

    def inline_html(self, html): return self.page.raw_html(html)

    def block_html(self, html): return self.page.raw_html(html) + '\n'


def markdown_writer(page):
    """Make a function from markdown to HTML for a page."""
    return mistune.create_markdown(renderer=Writer(page), plugins=['table', 'strikethrough', math])


def relative(target, page):
    """Write a site's address as seen from one of its pages."""
    path, mark, fragment = target.partition('#')
    if path == page: return mark + fragment or '#'
    return posixpath.relpath(path, posixpath.dirname(page) or '.') + mark + fragment
