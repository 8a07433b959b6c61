"""The docs site: what pages show of notebooks and source, what is refused, and the whole site as it is built from this tree."""
import ast
import base64
import importlib
import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from html import unescape
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'tools'))

from docs.api import read_entries, read_module
from docs.check import check_site, read_links
from docs.mathml import to_mathml
from docs.site import BrokenSite, build, figure, summary_html
from docs.text import highlight, relative, slug

# formulas


@pytest.mark.parametrize(('tex', 'expected'), [
    ('x', '<mi>x</mi>'),
    ('A^4', '<msup><mi>A</mi><mn>4</mn></msup>'),
    (r'\sigma_i^2', '<msubsup><mi>σ</mi><mi>i</mi><mn>2</mn></msubsup>'),
    (r'\frac{1}{n}', '<mfrac><mn>1</mn><mi>n</mi></mfrac>'),
    (r'\sqrt{d_i d_j}', '<msqrt><mrow><msub><mi>d</mi><mi>i</mi></msub><msub><mi>d</mi><mi>j</mi></msub></mrow></msqrt>'),
    (r'\hat k_{ij}', '<msub><mover accent="true"><mi>k</mi><mo stretchy="false">^</mo></mover><mrow><mi>i</mi><mi>j</mi></mrow></msub>'),
    (r'\sum_j w', '<mrow><munder><mo movablelimits="true">∑</mo><mi>j</mi></munder><mi>w</mi></mrow>'),
    (r'a < .5', '<mrow><mi>a</mi><mo>&lt;</mo><mo>.</mo><mn>5</mn></mrow>'),
    (r'\text{two words}', '<mtext>two words</mtext>'),
    ("t'", '<msup><mi>t</mi><mo>′</mo></msup>'),
    (r'\mathrm{CE}', '<mi>CE</mi>'),
])
def test_formulas_become_mathml(tex, expected):
    assert re.sub(r'^<math[^>]*>|</math>$', '', to_mathml(tex)) == expected


@pytest.mark.parametrize(('tex', 'complaint'), [(r'\frac{a}', 'ends where'), (r'\unheardof x', r'uses \\unheardof'), ('{a', 'ends where'), ('a_', 'ends where'), ('a}', "has '}'")])
def test_formulas_that_cannot_be_read_are_refused(tex, complaint):
    with pytest.raises(ValueError, match=complaint): to_mathml(tex)


# reading source

SOURCE = '''"""Heat maps of everything."""

__all__ = ['LIMIT', 'Heat', 'warm', 'cool', 'opened']

from contextlib import contextmanager
from dataclasses import dataclass
from fastcore.basics import patch

LIMIT = 3  # most maps

@dataclass(frozen=True)
class Heat:
    """A heat map."""
    values: tuple[float, ...]  # 0 to 1, one a pixel
    name: str = 'x'  # whose

    @property
    def peak(self) -> float:  # 0 to 1
        """Tell the highest value."""
        return max(self.values)

    def scaled(self, by: float) -> 'Heat': return self  # a comment in the body

def warm(
    heat: Heat,  # what is warmed
    by: float = 1.,  # degrees, above 0
    *others: Heat,
    unit='K', mode: str = "a, b",  # of both, or only of `mode`
) -> Heat:  # warmer
    """Warm a heat map by `LIMIT` at most."""
    return heat

def cool(heat, by): return heat

@contextmanager
def opened(path: str):  # yields a file
    "Open something."
    yield

@patch
def show(self: Heat,
         size: int = 4,  # inches
         ) -> str:  # a picture
    """Show a heat map."""

def _private(): pass
'''


@pytest.fixture
def heat(tmp_path):
    (tmp_path / 'kit').mkdir()
    (tmp_path / 'kit/heat.py').write_text(SOURCE)
    return read_module(tmp_path / 'kit/heat.py')


def test_comments_beside_parameters_become_their_meaning(heat):
    warm = next(entry for entry in heat.entries if entry.name == 'warm')
    assert [(p.name, p.type, p.default, p.meaning) for p in warm.parameters] == [
        ('heat', 'Heat', '', 'what is warmed'), ('by', 'float', '1.', 'degrees, above 0'), ('*others', 'Heat', '', ''),
        ('unit', '', "'K'", ''), ('mode', 'str', '"a, b"', 'of both, or only of `mode`')]
    assert (warm.returns.type, warm.returns.meaning) == ('Heat', 'warmer')
    assert warm.doc == 'Warm a heat map by `LIMIT` at most.'


def test_a_class_has_its_fields_members_and_what_was_added_from_outside(heat):
    found = next(entry for entry in heat.entries if entry.name == 'Heat')
    assert [(p.name, p.meaning) for p in found.parameters] == [('values', '0 to 1, one a pixel'), ('name', 'whose')] and found.fields
    assert [(m.name, m.kind) for m in found.members] == [('peak', 'property'), ('scaled', 'method'), ('show', 'method')]
    peak, scaled, show = found.members
    assert peak.returns.meaning == '0 to 1' and scaled.returns.meaning == '' and scaled.parameters[0].name == 'by'
    assert [p.name for p in show.parameters] == ['size'] and show.returns.meaning == 'a picture'


def test_private_names_stay_private_and_constants_carry_their_comment(heat):
    assert [entry.name for entry in heat.entries] == ['LIMIT', 'Heat', 'warm', 'cool', 'opened']
    assert heat.entries[0].doc == 'most maps' and heat.entries[-1].notes == ('context manager',)


def test_an_export_that_is_not_defined_is_refused(tmp_path):
    (tmp_path / 'broken.py').write_text("__all__ = ['gone']\n")
    with pytest.raises(ValueError, match='broken.py exports gone'): read_module(tmp_path / 'broken.py')


def test_entries_of_a_cell_are_those_of_its_module(heat):
    cell = SOURCE[SOURCE.index('def warm'):SOURCE.index('def cool')]
    assert read_entries(cell)[0].parameters == next(e for e in heat.entries if e.name == 'warm').parameters


def test_code_keeps_its_text_and_links_names_only_where_they_are_names():
    code = "from kit.heat import warm\n@warm\nf'{warm}' # warm\nx.warm(warm=1, y=warm) == warm\ndef warm(): return \"<b>\" + '''a\nb'''\n"
    shown = highlight(code, link=lambda name: '#w' if name == 'warm' else None)
    assert unescape(re.sub(r'<[^>]+>', '', shown)) == code
    assert [len(re.findall('href', line)) for line in shown.split('\n')] == [1, 1, 0, 2, 0, 0, 0]
    assert '<i class="k">return</i>' in shown and '<i class="s">"&lt;b&gt;"</i>' in shown


def test_addresses_are_relative_and_anchors_plain():
    assert relative('api/heat.html#warm', 'runs/quickstart.html') == '../api/heat.html#warm'
    assert relative('index.html', 'index.html') == '#' and relative('a.html#x', 'a.html') == '#x'
    assert slug('How close is it, really?') == 'how-close-is-it-really'


@pytest.mark.parametrize(('value', 'shown'), [(.66528, '0.6653'), (400.0, '400'), (547456, '547\u2009456'), (None, '–'), (True, 'yes'), (2293.76, '2\u2009294'), (.0000123, '1.23e-05'), ('<x>', '&lt;x&gt;')])
def test_figures_read_well(value, shown): assert figure(value) == shown


def test_summaries_become_tables():
    html = summary_html({'miou': .5, 'peers': {'a': {'cost': 1, 'same': True}, 'b': {'cost': None, 'same': False}}, 'per_class': {'cat': .25}})
    assert html.count('<table') == 3
    assert re.findall(r'<th scope="row">(.*?)</th>', html) == ['miou', 'a', 'b', 'cat']
    assert '<td class="right">1</td><td class="right">yes</td>' in html


# a small project

def markdown(source, **more): return {'cell_type': 'markdown', 'metadata': {}, 'source': source, **more}


def code(source, *outputs): return {'cell_type': 'code', 'metadata': {}, 'source': source, 'outputs': list(outputs), 'execution_count': None}


def notebook(*cells): return json.dumps({'cells': cells, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5})


def stream(text, name='stdout'): return {'output_type': 'stream', 'name': name, 'text': text}


def shown(**data): return {'output_type': 'execute_result', 'metadata': {}, 'execution_count': None, 'data': {name.replace('__', '/'): value for name, value in data.items()}}


def png(size=(4, 2), **settings):
    buffer = BytesIO()
    Image.new('RGB', size).save(buffer, format='png', **settings)
    return buffer.getvalue()


@pytest.fixture
def make(tmp_path):
    """Build a small project with cells; return the site's folder and the page of its notebook."""
    root = tmp_path / 'project'
    (root / 'kit').mkdir(parents=True)
    (root / 'nbs/images').mkdir(parents=True)
    (root / 'pyproject.toml').write_text('[tool.nbdev]\nlib_path = "kit"\nnbs_path = "nbs"\ntitle = "kit"\n')
    (root / 'kit/heat.py').write_text(SOURCE)
    (root / 'nbs/images/map.png').write_bytes(png())
    (root / 'nbs/index.ipynb').write_text(notebook(markdown('# kit\n\n> A kit of `warm(heat)`.\n\nSee [heat](00_heat.ipynb#How-to-warm).')))

    def build_with(*cells):
        (root / 'nbs/00_heat.ipynb').write_text(notebook(markdown('# Heat\n\n> Maps of it.'), code('#| default_exp heat'), markdown('## How to warm\n\nIt is warm.'), *cells))
        build(root, tmp_path / 'site')
        return (tmp_path / 'site/00_heat.html').read_text()
    build_with.root, build_with.site = root, tmp_path / 'site'
    return build_with


def article(html): return html[html.index('<article>'):html.index('</article>')]


def test_directives_are_obeyed(make):
    html = article(make(code('#| hide\nsecret = 1', stream('hidden said')), code('#| hide_input\nunseen = 2', stream('seen')), code('#| echo: false\nquiet = 3', stream('heard')),
                        code('#| hide_output\nonly = 4', stream('swallowed')), code('plain = 5', stream('Loading 10%', 'stderr'), stream('\x1b[31mred\x1b[0m <b>'))))
    for gone in ('secret', 'hidden said', 'unseen', 'quiet', 'swallowed', 'Loading', '\x1b', '#|'): assert gone not in html, gone
    for there in ('seen', 'heard', 'only', 'plain', 'red &lt;b&gt;'): assert there in html, there


def test_exported_cells_show_signature_table_and_folded_source(make):
    cells = [code('#| export\n' + part) for part in ('from dataclasses import dataclass', SOURCE[SOURCE.index('@dataclass'):SOURCE.index('def warm')], SOURCE[SOURCE.index('def warm'):SOURCE.index('def cool')],
                                                      'LIMIT = 3  # most maps', 'def _private(): pass')]
    html = article(make(*cells))
    entry = html[html.index('id="warm"'):]
    assert '<b>warm</b>(' in entry and '<td data-label="meaning">degrees, above 0</td>' in entry
    assert re.search(r'<th scope="row"><code>heat</code></th><td class="type" data-label="type"><code class="short"><a href="#Heat">Heat</a></code>', entry)
    assert 'returns</span></th>' in entry and '>warmer</td>' in entry
    assert html.count('<details class="source">') == 4  # imports, class, function, private function; a constant is its own documentation
    assert '<span id="LIMIT"></span>' in html and 'Source of <code>_private</code>' in html
    assert 'href="api/heat.html#warm">reference</a>' in html


def test_names_in_backticks_lead_to_their_entries(make):
    html = article(make(code('#| export\ndef cool(heat, by): return heat'), markdown('`cool`, `warm`, `Heat.peak`, `kit.heat`, `heat`, `image`, `Heat.gone`, `kit.gone`, `warm(heat)`, `heat.show()`, `scaled`.')))
    links = {text: address for address, text in re.findall(r'<a class="name" href="([^"]*)"><code>([^<]*)</code></a>', html)}
    assert links == {'cool': '#cool', 'Heat.peak': 'api/heat.html#Heat.peak', 'kit.heat': 'api/heat.html', 'warm(heat)': 'api/heat.html#warm',
                                                                       'warm': 'api/heat.html#warm', 'heat.show()': 'api/heat.html#Heat.show', 'scaled': 'api/heat.html#Heat.scaled'}
    assert '<code>image</code>' in html and '<code>Heat.gone</code>' in html
    assert '<a class="name" href="api/heat.html#warm"><code>warm(heat)</code></a>' in (make.site / 'index.html').read_text()


@pytest.mark.parametrize('address', ['00_heat.ipynb#How-to-warm', '00_heat.html#how-to-warm', 'heat.html#how-to-warm'])
def test_links_between_notebooks_become_links_between_pages(make, address):
    html = make(markdown(f'[here]({address})'))
    assert 'href="00_heat.html#how-to-warm"' in (make.site / 'index.html').read_text() and '<a href="#how-to-warm">here</a>' in html


def test_pictures_are_files_with_a_size(make):
    html = article(make(code('draw()', shown(image__png=base64.b64encode(png((30, 20))).decode(), text__plain='<Figure>')), markdown('![A map of heat](images/map.png)')))
    assert (make.site / 'pictures/00_heat-1.png').read_bytes() == png((30, 20)) and (make.site / 'images/map.png').is_file()
    assert re.search(r'<img src="pictures/00_heat-1.png" alt="[^"]*How to warm[^"]*" width="30" height="20"', html)
    assert '<img src="images/map.png" alt="A map of heat" width="4" height="2"' in html and 'Figure' not in html


@pytest.mark.parametrize(('dpi', 'width', 'small'), [(192, 150, False), (80, 300, False), (None, 300, True)])
def test_figures_are_as_large_as_they_were_meant(make, dpi, width, small):
    drawn = png((300, 20), **({'dpi': (dpi, dpi)} if dpi else {}))
    html = article(make(code('draw()', shown(image__png=base64.b64encode(drawn).decode()))))
    assert f' width="{width}" ' in html and ('class="small"' in html) == small


def test_formulas_tables_and_folds_of_markdown(make):
    html = article(make(markdown('With $p_i$ and\n\n$$r = \\frac{a}{b}$$\n\n| a | b |\n|---|---|\n| `$x$` | 1 |\n\n<details><summary>Solution</summary>\n\n**So**\n\n</details>')))
    assert '<math alttext="p_i">' in html and 'display="block"' in html and '<code>$x$</code>' in html
    assert '<details><summary>Solution</summary>' in html and '<strong>So</strong>' in html


EXPORT = '<!doctype html><title>Heat &amp; more</title><p id="a"><p id="a"><a href="#made-by-script">x</a><script>draw("https://in.a/text")</script>'


@pytest.mark.parametrize('cell', [code('#| docs-embed: explorer.html 480\nexplore(pipe)', shown(text__plain='Explorer()')),
                                  code('IFrame("explorer.html", 700, 480)', shown(text__html='<iframe width="700" height="480" src="explorer.html" frameborder="0"></iframe>'))])
def test_live_pages_stand_in_the_page(make, cell):
    (make.root / 'nbs/explorer.html').write_text(EXPORT)
    html = article(make(cell))
    assert re.search(r'<iframe src="explorer.html" title="Heat &amp; more" height="480" loading="lazy" sandbox="allow-scripts', html)
    assert 'Explorer()' not in html and (make.site / 'explorer.html').read_text() == EXPORT


def test_an_explorer_that_was_kept_is_live_with_a_view_of_its_own(make, root):
    (make.root / 'nbs/images').mkdir(exist_ok=True)
    shutil.copyfile(root / 'nbs/images/explorer.safetensors', make.root / 'nbs/images/explorer.safetensors')
    same = code('#| docs-embed: images/explorer.safetensors 700\nx', shown(text__plain='a picture'))
    html = article(make(same, same, code('#| docs-embed: images/explorer.safetensors 700 {"panel": "mask", "words": ["dog"]}\nx')))
    assert re.findall(r'<iframe src="([^"]*)" title="([^"]*)" height="(\d+)"', html) == [(address, 'a photo of a cat and a dog on grass', '700') for address in ('live/explorer.html', 'live/explorer.html', 'live/explorer-2.html')]
    assert 'a picture' not in html
    views = [json.loads(re.search(r'id="values">(.*?)</script>', (make.site / f'live/{name}.html').read_text())[1])['values']['view'] for name in ('explorer', 'explorer-2')]
    assert [(view['panel'], view['words']) for view in views] == [('look', [4]), ('mask', [7])]
    with pytest.raises(ValueError, match="'wolf' is no word here"): make(code('#| docs-embed: images/explorer.safetensors 700 {"words": ["wolf"]}'))


@pytest.mark.parametrize(('cell', 'complaint'), [
    (markdown('[x](01_gone.ipynb)'), 'the link to 01_gone.ipynb leads to no page'),
    (markdown('[x](../../README.md)'), 'leads to no page'),
    (markdown('[x](index.ipynb#nowhere)'), 'index.html has no such anchor'),
    (markdown('![x](images/gone.png)'), 'images/gone.png is missing'),
    (markdown('![x](https://example.org/x.png)'), 'would be fetched from elsewhere'),
    (markdown('<img src="https://example.org/x.png">'), 'would be fetched from elsewhere'),
    (markdown('<script src="https://example.org/x.js"></script>'), 'fetches https://example.org/x.js'),
    (code('x', shown(text__html='<script src="//example.org/x.js"></script>')), 'fetches //example.org/x.js'),
    (code('x', shown(text__html='<style>p { background: url(https://example.org/x.png) }</style>')), 'fetches https://example.org/x.png'),
    (code('x', shown(text__html='<script type="module">import x from "https://example.org/x.js"</script>')), 'a script that asks for'),
    (code('x', shown(text__html='<iframe src="https://example.org/"></iframe>')), 'fetches https://example.org/'),
    (code('#| docs-embed: gone.html'), 'gone.html that is to be shown live is missing'),
    (markdown('<p id="same"></p>\n\n<p id="same"></p>'), 'the anchor same twice'),
])
def test_a_fault_ends_the_build_and_the_site_that_was_there_stays(make, cell, complaint):
    before = make()
    with pytest.raises(BrokenSite, match=re.escape(complaint)): make(cell, markdown('never seen'))
    assert (make.site / '00_heat.html').read_text() == before
    assert [path.name for path in make.site.parent.iterdir() if path.name.startswith('.')] == []


def test_a_live_page_that_asks_the_net_is_refused(make):
    (make.root / 'nbs/explorer.html').write_text('<script src="https://cdn.example.org/require.js"></script>')
    with pytest.raises(BrokenSite, match='explorer.html fetches https://cdn'): make(code('#| docs-embed: explorer.html'))


@pytest.mark.parametrize(('cell', 'complaint'), [(markdown(r'$\unheardof$'), 'unheardof'), (code('#| docs-embed: page.pdf'), 'is not FILE.html')])
def test_what_cannot_be_read_is_refused(make, cell, complaint):
    with pytest.raises(ValueError, match=complaint): make(cell)


def test_a_folder_of_something_else_is_not_replaced(make, tmp_path):
    make.site.mkdir()
    (make.site / 'thesis.txt').write_text('years of work')
    with pytest.raises(FileExistsError, match='is no docs site'): make()
    assert (make.site / 'thesis.txt').read_text() == 'years of work'


def test_the_page_needs_a_title(make):
    (make.root / 'nbs/01_untitled.ipynb').write_text(notebook(markdown('No title')))
    with pytest.raises(ValueError, match='01_untitled.ipynb does not open'): make()


def test_tutorials_come_first_when_there_are_any(make):
    (make.root / 'nbs/tutorials').mkdir()
    (make.root / 'nbs/tutorials/1_look.ipynb').write_text(notebook(markdown('# Where does a word look\n\n> See it.\n\n[heat](../00_heat.ipynb), ![m](../images/map.png)')))
    make()
    html = (make.site / 'tutorials/1_look.html').read_text()
    assert 'href="../00_heat.html"' in html and 'src="../images/map.png"' in html
    assert html.index('>Tutorials</summary>') < html.index('>The line</summary>')


# the site of this tree

@pytest.fixture(scope='module')
def site(root, tmp_path_factory):
    """The whole site, and the processor's seconds that it took."""
    folder = tmp_path_factory.mktemp('docs') / 'site'
    importlib.import_module('synseg_kit.runs')  # what it takes to import is not the site's
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build(root, folder)
    return folder, time.process_time() - start


def exports(path):
    """A module's `__all__`, read apart from the tool."""
    tree = ast.parse(path.read_text())
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__')


def index_of(folder):
    """The search index as data."""
    script = (folder / 'assets/search.js').read_text()
    return json.loads(re.sub(r'^window\.docsIndex = \{kinds: (.*?), records: (.*)\};\s*$', r'{"kinds": \1, "records": \2}', script, flags=re.S))


def test_it_takes_less_than_twenty_seconds(site): assert site[1] < 20, f'{site[1]:.1f} s of the processor'


def test_every_notebook_and_module_has_its_page(root, site):
    folder, _ = site
    wanted = {path.relative_to(root / 'nbs').with_suffix('.html').as_posix() for path in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts}
    wanted |= {f'api/{path.stem}.html' for path in (root / 'synseg_kit').glob('[!_]*.py')}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob('*.html')} >= wanted


def test_no_dead_link_and_no_request_to_elsewhere(site):
    folder, _ = site
    assert check_site(folder) == []
    for path in folder.rglob('*.html'):  # and once more, by plain expressions
        html = path.read_text()
        for tag, address in re.findall(r'<(script|link|img|iframe|a)\b[^>]*?\b(?:src|href)="([^"]*)"', html):
            if tag == 'a' and re.match(r'https?:|mailto:', address): continue
            if address.startswith('data:'): continue
            target, _, anchor = unescape(address).partition('#')
            found = (path.parent / target.partition('?')[0]).resolve() if target else path
            assert found.is_file(), f'{path.name}: {address}'
            if anchor and tag == 'a': assert f'id="{anchor}"' in found.read_text(), f'{path.name}: {address}'


def test_every_public_name_has_an_entry_and_is_found(root, site):
    folder, _ = site
    found = {(title, address) for title, _, address, *_ in index_of(folder)['records']}
    count = 0
    for path in (root / 'synseg_kit').glob('[!_]*.py'):
        anchors = read_links((folder / f'api/{path.stem}.html').read_text()).anchors
        for name in exports(path):
            assert name in anchors, f'{path.stem}.{name}'
            assert (name, f'api/{path.stem}.html#{name}') in found
            count += 1
    assert count > 500


def test_every_address_of_the_search_is_there(site):
    folder, _ = site
    anchors = {}
    for _, _, address, *_ in index_of(folder)['records']:
        page, _, anchor = address.partition('#')
        if page not in anchors: anchors[page] = read_links((folder / page).read_text()).anchors
        assert not anchor or anchor in anchors[page], address


def test_a_parameter_has_its_meaning_on_both_pages(site):
    folder, _ = site
    for page in ('05a_refinement.html', 'api/refinement.html'):
        html = (folder / page).read_text()
        entry = html[html.index('id="CRFSettings"'):]
        row = re.search(r'<code>gaussian_sigma</code></th>(.*?)</tr>', entry)[1]
        assert '3.0' in row and 'reach of the position kernel, in pixels' in row


def test_runs_show_their_parameters_in_every_set(root, site):
    html = (site[0] / 'runs/quickstart.html').read_text()
    rows = dict(re.findall(r'<tr><th scope="row"><code>(\w+)</code></th>(.*?)</tr>', html))
    cell = next(''.join(cell['source']) for cell in json.loads((root / 'nbs/runs/quickstart.ipynb').read_text())['cells'] if 'parameters' in cell['metadata'].get('tags', []))
    assert rows.keys() == set(re.findall(r'^(\w+):', cell, re.M)) - {'set', 'out'}
    assert [re.sub('<.*?>', '', value) for value in re.findall(r'data-label="(?:smoke|small|paper)">(.*?)</td>', rows['images'])] == ['8', '400', '40000']
    assert 'synseg run quickstart' in html


def test_benchmarks_show_the_result_that_is_kept(root, site):
    for path in (root / 'nbs/bench/results').glob('*.json'):
        html = (site[0] / f'bench/{path.stem}.html').read_text()
        summary = json.loads(path.read_text())['summary']
        for name, value in summary.items():
            if not isinstance(value, float): continue
            row_of = name.removesuffix('_min') if name.removesuffix('_min') in summary else name  # the least of seeds stands beside their mean, where there is one
            row = re.search(rf'<th scope="row">{row_of.replace("_", " ")}</th>(.*?)</tr>', html)[1]
            assert f'>{figure(value)}</td>' in row, (path.stem, name)
    unmeasured = {path.stem for path in (root / 'nbs/bench').glob('*.ipynb')} - {path.stem for path in (root / 'nbs/bench/results').glob('*.json')}
    for name in unmeasured: assert 'Not measured yet' in (site[0] / f'bench/{name}.html').read_text()


def test_formulas_are_drawn_and_no_tex_is_left(site):
    html = article((site[0] / '05a_refinement.html').read_text())
    assert html.count('<math') > 10
    outside = re.sub(r'<(pre|code|math)\b.*?</\1>', '', html, flags=re.S)
    assert not re.search(r'\$[^$\s]+\$|\\(sum|exp|frac)', outside)


@pytest.mark.skipif(not shutil.which('node'), reason='needs node to run the search by itself')
def test_the_search_puts_the_name_that_was_asked_for_first(root, site):
    program = '''const {rank} = require(process.argv[1]); global.window = {}; require(process.argv[2])
console.log(JSON.stringify(process.argv.slice(3).map(query => rank(window.docsIndex, query).map(record => record[0]))))'''
    queries = ['dense_crf', 'dense crf', 'CRFSettings', 'class_maps', 'Trace.class_maps', 'xyzzy plugh', 'potts compatibility']
    done = subprocess.run(['node', '-e', program, site[0] / 'assets/site.js', site[0] / 'assets/search.js', *queries], capture_output=True, text=True, check=True)
    found = dict(zip(queries, json.loads(done.stdout), strict=True))
    assert [found[query][0] for query in queries[:5]] == ['dense_crf', 'dense_crf', 'CRFSettings', 'Trace.class_maps', 'Trace.class_maps']
    assert found['xyzzy plugh'] == [] and found['potts compatibility'][0] == 'The dense CRF'


CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@pytest.mark.skipif(not CHROMIUM, reason='needs Chromium')
def test_the_search_works_from_a_disk(site, tmp_path):
    done = subprocess.run([CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}', '--virtual-time-budget=5000', '--dump-dom',
                           f'{(site[0] / "runs/quickstart.html").as_uri()}?q=dense_crf'], capture_output=True, text=True, timeout=120)
    first = re.search(r'<ol id="found".*?<a href="([^"]*)"', done.stdout, re.S)
    assert first and first[1] == '../api/refinement.html#dense_crf', done.stdout[-500:]


def test_make_docs_says_what_is_wrong(root, tmp_path):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis/work.txt').write_text('years')
    done = subprocess.run([sys.executable, '-W', 'error', root / 'tools/make_docs.py', '--out', tmp_path / 'thesis'], capture_output=True, text=True)
    assert done.returncode == 1 and 'is no docs site' in done.stderr and 'Traceback' not in done.stderr
