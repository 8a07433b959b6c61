"""The site as a whole: which pages it has, in which order, and how they come to be."""
import os
import re
import shutil
import tempfile
import tomllib
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import notebooks
from .api import read_entries, read_package
from .check import check_site
from .entries import entry_html, source_fold
from .names import Names, anchors_of
from .page import Page
from .search import search_script
from .text import plain, relative

HERE = Path(__file__).parent
FLOW = (('class names', '00_classes'), ('prompts', '02_prompts'), ('images, attention', '04_attention'), ('masks, reliability', '05_masks'),
        ('a dataset', '06_datasets'), ('a segmenter', '09_training'), ('mIoU', '10_evaluation'))  # the line: what there is, and the page that makes it
SECTIONS = (('', 'Start'), ('tutorials', 'Tutorials'), ('library', 'The line'), ('runs', 'Runs'), ('bench', 'Measurements'), ('api', 'Reference'))


class BrokenSite(ValueError):
    """The site has dead links, missing pictures or requests to elsewhere."""


class Site:
    """The pages of one project, from its notebooks and its source."""

    def __init__(self, root):
        self.root = Path(root)
        settings = tomllib.loads((self.root / 'pyproject.toml').read_text(encoding='utf-8'))['tool']['nbdev']
        self.nbs, self.title = self.root / settings['nbs_path'], settings['title']
        self.package = self.root / settings['lib_path']
        self.files, self.assets, self.complaints, self.live = {}, {}, [], []  # live: pages that were made to be shown in others
        self.cells = {path: notebooks.read_cells(self.nbs / path) for path in self.notebook_paths()}
        if 'index.ipynb' not in self.cells: raise FileNotFoundError(f'{self.nbs} has no index.ipynb, which is the start page')
        self.names = Names(self.package.name, read_package(self.package))
        self.story_of = {}  # module -> page of its notebook
        self.pages = self.plan()
        self.by_url = {page.url: page for page in self.pages}
        self.unnumbered = {re.sub(r'(^|/)\d+[a-z]?_', r'\1', page.url): page.url for page in self.pages if page.source}

    def notebook_paths(self):
        """List the notebooks, in the order of the site."""
        found = []
        for folder in ('', 'tutorials', 'runs', 'bench'):
            here = sorted(path.relative_to(self.nbs).as_posix() for path in (self.nbs / folder).glob('*.ipynb'))
            found += sorted(here, key=lambda name: (not name.endswith(('index.ipynb', '/quickstart.ipynb')), name)) if folder != 'tutorials' else here
        return found

    def plan(self):
        """Make an empty page for each notebook and each module."""
        pages = []
        for path, cells in self.cells.items():
            title, description, _ = notebooks.opening(cells, path)
            folder = path.rpartition('/')[0] or ('' if path == 'index.ipynb' else 'library')
            number = re.match(r'(\d+[a-z]?)_', Path(path).name)
            module = notebooks.default_module(cells) or ''
            page = Page(self, path.replace('.ipynb', '.html'), title, description, number[1] if number else '', folder, path, module)
            page.scope = self.names.scope(module, [cell.source for cell in cells if cell.kind == 'code'])
            if module in self.names.modules:
                self.story_of[module] = page.url
                for cell in cells:
                    if not cell.exported or cell.hidden or 'exporti' in cell.directives: continue
                    for entry in filter(page.names_public, read_entries(cell.source)):
                        own = [anchors_of(entry)[0], *(f'{entry.name}.{m.name}' for m in entry.members)]
                        page.reserved |= set(own)
                        self.names.stories.update({(module, anchor): page.url for anchor in own})
            pages.append(page)
        order = [page.module for page in pages if page.module in self.names.modules]
        modules = [*order, *sorted(set(self.names.modules) - set(order))]
        pages.append(Page(self, 'api/index.html', 'All modules', f'All that {self.title} offers, module by module, in the order of the line.', section='api'))
        for name in modules:
            page = Page(self, f'api/{name}.html', name, self.names.modules[name].doc.split('\n')[0], section='api', module=name)
            page.scope = self.names.scope(name)
            page.reserved = {anchor for entry in self.names.modules[name].entries for anchor in anchors_of(entry)}
            pages.append(page)
        rank = [section for section, _ in SECTIONS]
        return sorted(pages, key=lambda page: rank.index(page.section))

    # what pages ask

    def page_of(self, path):
        """Return the address of a notebook's page, or None; pages are also known as nbdev calls them: `.html`, and without the number."""
        url = re.sub(r'\.ipynb$', '.html', path)
        return url if url in self.by_url else self.unnumbered.get(url)

    def is_anchor(self, fragment): return any(fragment in anchors for anchors in self.names._anchors.values())

    def asset(self, path):
        """Take a file beside the notebooks into the site; return its address."""
        self.assets[path] = self.nbs / path
        return path

    def live_page(self, name, html):
        """Take a page that was made for the site; return its address. The same page is there once."""
        known = next((address for address in self.live if self.files[address] == html.encode()), None)
        address = known or f'live/{name}{f"-{len(self.live) + 1}" if self.live else ""}.html'
        self.files[address] = html.encode()
        if not known: self.live.append(address)
        return address

    # bodies

    def write_pages(self):
        """Write every page's body."""
        for page in self.pages:
            if page.url == 'api/index.html': self.write_reference_index(page)
            elif page.section == 'api': self.write_reference(page)
            else: self.write_notebook(page)

    def write_notebook(self, page):
        """Write a notebook's page."""
        cells = self.cells[page.source]
        _, _, more = notebooks.opening(cells, page.source)
        page.records.append([page.title, 'page', page.url, dict(SECTIONS)[page.section], plain(page.inline(page.description))])
        start = [notebooks.Cell('markdown', more, {}, (), (), cells[0].attachments)] if more else []
        instead = {}
        if page.section == 'runs':
            name = Path(page.source).stem
            page.facts.append(('run it', f'<code>synseg run {name}</code>'))
            instead = {'parameters': lambda cell: parameters_html(cell, self.nbs / page.source, page),
                       'sets': lambda cell: source_fold(cell.source, page, 'Source of the sets')}
        if page.module:
            entries = self.names.modules[page.module].entries if page.module in self.names.modules else ()
            page.facts.append(('module', f'<a href="{relative(f"api/{page.module}.html", page.url)}"><code>{self.package.name}.{page.module}</code></a>, {len(entries)} names'))
        result = self.read_result(page) if page.section == 'bench' else None
        above = self.result_html(page, result) if page.section == 'bench' else ''
        page.body = above + notebooks.body_html([*start, *cells[1:]], page, instead) + (entries_html(result.content['entries'], page) if result else '')

    def read_result(self, page):
        """Read the result file of a benchmark; None when there is none."""
        path = self.nbs / 'bench/results' / f'{Path(page.source).stem}.json'
        if not path.is_file(): return None
        from synseg_kit.runs import read_bench
        return read_bench(path)

    def result_html(self, page, result):
        """Show what came out of a benchmark, and of what."""
        if result is None: return '<p class="note">Not measured yet: no result of it is kept.</p>'
        content = result.content
        state = 'The source that it rests on has changed since it was measured.' if result.stale else 'The source that it rests on is as it was when it was measured.'
        page.facts.append(('state', f'<span class="{"stale" if result.stale else "fresh"}">{"stale" if result.stale else "fresh"}</span> <span class="soft">{state}</span>'))
        modules = ', '.join(f'<a href="{relative(f"api/{name}.html", page.url)}"><code>{name}</code></a>' if name in self.names.modules else name for name in content['modules'])
        page.facts += [(key, value) for key, value in (('rests on', modules), ('measured on', hardware_text(content.get('hardware', {}))), ('of commit', f'<code>{content.get("commit", "unknown")[:8]}</code>')) if value]
        page.toc.append((2, 'result', 'Result'))
        page.taken.add('result')
        return f'<h2 id="result">Result</h2>{summary_html(content["summary"])}'

    def write_reference(self, page):
        """Write a module's page of reference."""
        module = self.names.modules[page.module]
        story = self.story_of.get(page.module)
        page.title_html = f'<span class="package">{self.package.name}.</span>{module.name}'
        if story: page.facts.append(('notebook', f'<a href="{relative(story, page.url)}">{escape(self.by_url[story].title)}</a>, with the why, examples and tests'))
        page.records.append([f'{self.package.name}.{module.name}', 'module', page.url, 'Reference', page.description])
        rows, parts = [], []
        for entry in module.entries:
            anchor = anchors_of(entry)[0]
            line = entry.doc.strip().split('\n')[0]
            rows.append(f'<tr><th scope="row"><a href="#{anchor}"><code>{anchor}</code></a></th><td>{page.inline(line)}</td></tr>')
            told = self.names.stories.get((module.name, anchor))
            parts.append(entry_html(entry, page, True, relative(f'{told}#{anchor}', page.url) if told else ''))
            page.toc.append((2, anchor, f'<code>{anchor}</code>'))
            page.records.append([anchor, entry.kind, f'{page.url}#{anchor}', page.module, ' '.join([line, *(p.name for p in entry.parameters)])])
            page.records += [[f'{entry.name}.{m.name}', m.kind, f'{page.url}#{entry.name}.{m.name}', page.module, m.doc.split('\n')[0]] for m in entry.members]
        overview = f'<table class="overview"><tbody>{"".join(rows)}</tbody></table>' if len(rows) > 3 else ''
        page.body = overview + '\n'.join(parts)

    def write_reference_index(self, page):
        """Write the list of modules with their names."""
        page.records.append([page.title, 'page', page.url, 'Reference', page.description])
        parts = []
        for other in self.pages:
            if other.section != 'api' or other is page: continue
            module, story = self.names.modules[other.module], self.by_url.get(self.story_of.get(other.module))
            listed = ' '.join(f'<a href="{relative(other.url, page.url)}#{anchors_of(e)[0]}"><code>{anchors_of(e)[0]}</code></a>' for e in module.entries)
            number = f'<span class="number">{story.number}</span>' if story else ''
            parts.append(f'<h2 id="{module.name}">{number}<a href="{relative(other.url, page.url)}">{module.name}</a></h2><p>{page.inline(other.description)}</p><p class="listed">{listed}</p>')
            page.toc.append((2, module.name, f'<code>{module.name}</code>'))
        page.body = ''.join(parts)

    # the whole

    def side_bar(self, page):
        """List the side bar's sections as a page sees them."""
        shown = []
        for section, label in SECTIONS[1:]:
            here = [other for other in self.pages if other.section == section]
            if not here: continue
            items = [{'title': other.title, 'address': relative(other.url, page.url), 'number': other.number, 'current': other is page, 'code': section == 'api' and bool(other.module),
                      'inner': bool(re.search(r'[a-z]$', other.number)) or section == 'api' and bool(self.number_of(other)[2:])} for other in here]
            shown.append({'label': label, 'items': items, 'open': section in ('tutorials', 'library') or page.section == section, 'key': section})
        return shown

    def number_of(self, page):
        """Return the number in the flow of what a page of reference tells of."""
        story = self.by_url.get(self.story_of.get(page.module))
        return story.number if story else ''

    def render(self):
        """Render every page into `files`."""
        self.write_pages()
        environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.get_template('page.html')
        for place, page in enumerate(self.pages):
            flow = [(label, relative(f'{name}.html', page.url)) for label, name in FLOW if f'{name}.ipynb' in self.cells] if page.url == 'index.html' else []
            near = [self.pages[i] if 0 <= i < len(self.pages) else None for i in (place - 1, place + 1)]
            neighbours = [(other.title, relative(other.url, page.url)) if other else None for other in near]
            html = template.render(
                site=self.title, page=page, home=relative('index.html', page.url), assets=relative('assets', page.url), base=relative('.', page.url) + '/',
                title=Markup(getattr(page, 'title_html', '')) or page.title, description=Markup(page.inline(page.description)), words=plain(page.inline(page.description)),
                side_bar=self.side_bar(page), toc=[(level, anchor, Markup(text)) for level, anchor, text in page.toc], body=Markup(page.body),
                facts=[(label, Markup(text)) for label, text in page.facts], flow=flow, before=neighbours[0], after=neighbours[1], folded='class="source"' in page.body)
            self.files[page.url] = html.encode()
        for name in ('style.css', 'site.js'): self.files[f'assets/{name}'] = (HERE / name).read_bytes()
        self.files['assets/search.js'] = search_script([record for page in self.pages for record in page.records]).encode()

    def write(self, out):
        """Write the site aside, check it, and put it in place of what was there; a site that is broken changes nothing."""
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f'.{out.name}.', dir=out.parent))
        try:
            for name, data in self.files.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(data)
            for name, source in self.assets.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, aside / name)
            complaints = [*dict.fromkeys(self.complaints), *check_site(aside, {*self.live, *(name for name in self.assets if name.endswith(('.html', '.htm')))})]
            if complaints: raise BrokenSite(f'the site has {len(complaints)} faults:\n' + '\n'.join(f'  {one}' for one in complaints))
            aside.chmod(0o755)
            old = None
            if out.exists():
                old = Path(tempfile.mkdtemp(prefix=f'.{out.name}.old.', dir=out.parent))
                os.replace(out, old / 'site')
            os.replace(aside, out)
            if old: shutil.rmtree(old)
        finally:
            if aside.exists(): shutil.rmtree(aside)
        return out


def build(root, out):
    """Build a project's site; return it. It is written whole or not at all."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir()) and not (out / 'assets/search.js').is_file()):
        raise FileExistsError(f'{out} is there and is no docs site; name another folder, or remove it')
    site = Site(root)
    site.render()
    site.write(out)
    return site


# tables of runs and benchmarks

def parameters_html(cell, path, page):
    """Show a run notebook's parameters: what each means, and its value in each set."""
    from synseg_kit.runs import read_run
    head, *rows = read_run(path).table()
    sets = head[2:-1]
    body = []
    for name, kind, *values, meaning in rows:
        shown = ''.join(f'<td data-label="{sets[i]}"><code{" class=soft" if i and value == values[0] else ""}>{escape(value)}</code></td>' for i, value in enumerate(values))
        body.append(f'<tr><th scope="row"><code>{escape(name)}</code></th><td class="type" data-label="type"><code>{escape(kind)}</code></td><td data-label="meaning">{page.inline(meaning)}</td>{shown}</tr>')
    heads = ''.join(f'<th scope="col">{title}</th>' for title in ('parameter', 'type', 'meaning', *sets))
    return f'<div class="scroll"><table class="parameters run"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>' + source_fold(cell.source, page, 'Source of the parameters')


def figure(value):
    """Write a value of a result as a reader wants to see it: four significant digits, thin spaces between thousands."""
    if value is None or value != value: return '–'
    if isinstance(value, bool): return 'yes' if value else 'no'
    if isinstance(value, dict): return ', '.join(f'{escape(str(name))} {figure(one)}' for name, one in value.items())
    if isinstance(value, list): return ', '.join(figure(one) for one in value)
    if not isinstance(value, (int, float)): return escape(str(value))
    if value == int(value) and abs(value) < 1e15: return f'{int(value):,}'.replace(',', '\u2009')
    if abs(value) >= 1000: return f'{value:,.0f}'.replace(',', '\u2009')
    return f'{value:.4g}' if abs(value) >= 1e-4 else f'{value:.2e}'


def said(key): return escape(str(key).replace('_', ' '))


def is_number(value): return value is None or isinstance(value, (int, float))


def table_html(columns, rows, caption=''):
    """Write rows as a table; columns of numbers are set to the right."""
    numeric = [all(is_number(row[i]) for row in rows) and i > 0 for i in range(len(columns))]
    css = ['' if not one else ' class="right"' for one in numeric]
    head = ''.join(f'<th scope="col"{css[i]}>{said(name)}</th>' for i, name in enumerate(columns))
    body = ''.join('<tr>' + f'<th scope="row">{figure(row[0])}</th>' + ''.join(f'<td{css[i + 1]}>{figure(cell)}</td>' for i, cell in enumerate(row[1:])) + '</tr>' for row in rows)
    caption = f'<caption>{escape(caption)}</caption>' if caption else ''
    return f'<div class="scroll"><table class="figures">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def summary_html(summary):
    """Show a benchmark's summary: single figures in one table, what is told of several things in one each."""
    single = {name: value for name, value in summary.items() if not isinstance(value, dict)}
    least = {name for name in single if name.endswith('_min') and name.removesuffix('_min') in single}  # of the seeds, beside their mean
    rows = [(name.replace('_', ' '), value, *([single.get(f'{name}_min')] if least else [])) for name, value in single.items() if name not in least]
    parts = [table_html(('figure', 'value', *(['min'] if least else [])), rows)] if single else []
    for name, value in summary.items():
        if not isinstance(value, dict): continue
        if value and all(isinstance(one, dict) for one in value.values()):
            columns = list(dict.fromkeys(key for one in value.values() for key in one))
            parts.append(table_html((name, *columns), [(who, *(one.get(key) for key in columns)) for who, one in value.items()]))
        else: parts.append(table_html((name, 'value'), list(value.items())))
    return ''.join(parts)


def entries_html(entries, page):
    """Show a benchmark's entries, folded; those of one kind in one table."""
    kinds = {}
    for entry in entries: kinds.setdefault(tuple(entry), []).append(entry)
    if not kinds: return ''
    tables = ''.join(table_html(columns, [tuple(entry.get(key) for key in columns) for entry in rows]) for columns, rows in kinds.items())
    page.toc.append((2, 'entries', 'Every entry'))
    page.taken.add('entries')
    return f'<h2 id="entries">Every entry</h2><details class="source"><summary>{len(entries)} entries of the result file</summary>{tables}</details>'


def hardware_text(hardware):
    """Write what a benchmark ran on."""
    if not hardware: return ''
    parts = [str(hardware['cpu'])] if hardware.get('cpu') else []
    if hardware.get('cores'): parts.append(f'{hardware["cores"]} core{"s" if hardware["cores"] > 1 else ""}')
    if hardware.get('memory_gb'): parts.append(f'{hardware["memory_gb"]} GB')
    parts.append(str(hardware['gpu']) if hardware.get('gpu') else 'no GPU')
    return escape(', '.join(parts))
