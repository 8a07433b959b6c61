"""A notebook as it is stored, as the body of a page.

What a cell's first lines say is obeyed: `#| hide` drops it, `#| hide_input` and `#| echo: false` show its output alone,
`#| hide_output` its source alone, `#| export` shows the documentation of what it defines, with the source folded below.
`#| docs-embed: explorer.html 640` shows an HTML file that lies beside the notebook, live, 640 pixels high;
`#| docs-embed: explorer.safetensors 640 {"panel": "mask"}` the page of an explorer that was kept, opened with that view.
"""
import ast
import base64
import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .api import read_entries
from .entries import constant_html, entry_html, source_fold
from .text import code_block

PICTURES = (('image/svg+xml', '.svg'), ('image/png', '.png'), ('image/jpeg', '.jpg'), ('image/gif', '.gif'))
WIDGET = 'application/vnd.jupyter.widget-view+json'
SHELL = ('!', '%%bash', '%%sh')  # a cell that begins so is no Python
ESCAPES = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')
LONGEST_VALUES = 10  # lines of a cell of constants that are shown unfolded
EMBED_HEIGHT = 640  # CSS pixels, where a page does not say


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook."""
    kind: str  # markdown, code or raw
    source: str  # without its directives
    directives: dict  # name -> what follows it
    tags: tuple
    outputs: tuple
    attachments: dict

    @property
    def hidden(self): return 'hide' in self.directives or self.directives.get('include') == 'false'

    @property
    def exported(self): return bool({'export', 'exports', 'exporti'} & self.directives.keys())

    @property
    def input_hidden(self): return 'hide_input' in self.directives or self.directives.get('echo') == 'false'


def joined(text): return ''.join(text) if isinstance(text, list) else text


def read_cells(path):
    """Read a notebook's cells."""
    try: notebook = json.loads(Path(path).read_text(encoding='utf-8'))
    except json.JSONDecodeError as error: raise ValueError(f'{path} is not a notebook: {error}') from None
    if notebook.get('nbformat') != 4: raise ValueError(f'{path} is a notebook of format {notebook.get("nbformat")}; format 4 is needed: open and save it in JupyterLab')
    return [read_cell(cell) for cell in notebook['cells']]


def read_cell(cell):
    """Read a cell; its directives are the lines that begin with `#|`."""
    source, directives = joined(cell['source']), {}
    if cell['cell_type'] == 'code':
        for name, value in re.findall(r'^\s*#\|\s*([\w-]+)[: \t]*(.*)$', source, re.M): directives[name] = value.strip()
        source = re.sub(r'^\s*#\|.*(\n|\Z)', '', source, flags=re.M)
    return Cell(cell['cell_type'], source.strip('\n'), directives, tuple(cell['metadata'].get('tags', ())), tuple(cell.get('outputs', ())), cell.get('attachments', {}))


def opening(cells, path):
    """Split a notebook's first cell: title, the sentence under it, and what else it says."""
    found = re.match(r'\s*# (?P<title>[^\n]+)\n*(?P<said>(?:> ?[^\n]*\n?)*)', cells[0].source) if cells and cells[0].kind == 'markdown' else None
    if not found: raise ValueError(f'{path} does not open with a markdown cell `# Title`')
    said = ' '.join(line.lstrip('> ').strip() for line in found['said'].splitlines())
    return found['title'].strip(), said, cells[0].source[found.end():].strip()


def default_module(cells):
    """Return the name of the module that a notebook exports to, or None."""
    return next((cell.directives['default_exp'] for cell in cells if 'default_exp' in cell.directives), None)


def only_imports(source):
    """Say whether a cell holds imports alone."""
    return bool(re.match(r'(?:\s|#[^\n]*\n)*(?:from|import)\s', source)) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)


def exported_html(cell, page):
    """Show what an exported cell defines, its source folded below."""
    if not cell.source.strip(): return ''
    if only_imports(cell.source): return source_fold(cell.source, page, 'Imports')
    found = read_entries(cell.source)
    public = [e for e in found if page.names_public(e)] if 'exporti' not in cell.directives else []
    values = [e for e in public if e.kind == 'constant']
    if values and len(values) == len(found) and cell.source.count('\n') < LONGEST_VALUES:  # a line of code is its own documentation
        marks = ''.join(f'<span id="{e.name}"></span>' for e in values if page.claims(e.name))
        return marks + code_block(cell.source, link=page.address_of_name)
    told = {}  # lines of source, each told once: a line may make several constants
    for e in values: told.setdefault(e.source, []).append(e)
    shown = ''
    for e in public:
        if e.kind != 'constant': shown += entry_html(e, page, full=False, elsewhere=page.reference(e))
        elif told[e.source][0] is e:
            marks = ''.join(f'<span id="{one.name}"></span>' for one in told[e.source] if page.claims(one.name))
            shown += marks + constant_html(e, page)
    inner = [f'<code>{escape(e.name)}</code>' for e in found if e not in public]
    label = 'Source' if public else f'Source of {", ".join(inner)}' if inner else 'Source'
    return shown + source_fold(cell.source, page, label)


def output_html(output, page):
    """Show a stored output: the richest form of it that a static page can show."""
    kind = output['output_type']
    if kind == 'stream':
        if output.get('name') == 'stderr': return ''  # progress bars and warnings
        text = ESCAPES.sub('', joined(output['text'])).rstrip()
        return f'<pre class="said" tabindex="0">{escape(text, quote=False)}</pre>' if text else ''
    if kind == 'error':
        text = ESCAPES.sub('', f'{output["ename"]}: {output["evalue"]}')
        return f'<pre class="said error" tabindex="0">{escape(text, quote=False)}</pre>'
    data = output.get('data', {})
    if 'text/html' in data: return f'<div class="rich">{page.raw_html(joined(data["text/html"]))}</div>'
    for mime, suffix in PICTURES:
        if mime in data:
            raw = joined(data[mime])
            return page.drawn(raw.encode() if suffix == '.svg' else base64.b64decode(raw), suffix, output.get('metadata', {}).get(mime, {}))
    if 'text/markdown' in data: return f'<div class="rich">{page.block(joined(data["text/markdown"]))}</div>'
    if 'text/latex' in data: return f'<div class="rich">{page.block(joined(data["text/latex"]))}</div>'
    if WIDGET in data: return '<p class="soft">A widget stands here when the notebook runs.</p>'
    text = ESCAPES.sub('', joined(data.get('text/plain', ''))).rstrip()
    return f'<pre class="said" tabindex="0">{escape(text, quote=False)}</pre>' if text else ''


def embed_html(value, page):
    """Show what `#| docs-embed: FILE [HEIGHT] [VIEW]` names."""
    found = re.fullmatch(r'(\S+\.(?:html?|safetensors))(?:\s+(\d+))?(?:\s+(\{.*\}))?', value)
    if not found: raise ValueError(f'`#| docs-embed: {value}` is not FILE.html or FILE.safetensors, then HEIGHT, then a view as {{...}}')
    return page.embed(found[1], int(found[2] or EMBED_HEIGHT), json.loads(found[3]) if found[3] else None)


def code_html(cell, page):
    """Show a code cell with its outputs."""
    if 'docs-embed' in cell.directives: embedded = embed_html(cell.directives['docs-embed'], page)
    else: embedded = ''
    source = '' if cell.input_hidden or not cell.source.strip() else exported_html(cell, page) if cell.exported else code_block(
        cell.source, 'bash' if cell.source.startswith(SHELL) else 'python', page.address_of_name)
    shown = embedded or ('' if 'hide_output' in cell.directives else ''.join(output_html(output, page) for output in cell.outputs))
    return f'{source}<div class="output">{shown}</div>' if shown else source


def body_html(cells, page, instead=None):
    """Show a notebook's cells; `instead` maps a tag to what shows a cell that carries it."""
    parts = []
    for cell in cells:
        if cell.hidden or 'default_exp' in cell.directives and not cell.source.strip(): continue
        own = next((how for tag, how in (instead or {}).items() if tag in cell.tags), None)
        if own: parts.append(own(cell))
        elif cell.kind == 'markdown': parts.append(page.prose(cell))
        elif cell.kind == 'code': parts.append(code_html(cell, page))
    return '\n'.join(part for part in parts if part)
