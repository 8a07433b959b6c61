"""A public name as HTML: its signature, what it says of itself, a table of its parameters, its source folded below."""
import re
from html import escape

from .text import code_block, highlight

LONGEST_DEFAULT = 42  # characters of a default in a signature; the table has all of it
LONGEST_TYPE = 34  # characters of a type that stay on one line
LONGEST_VALUE = 6  # lines of a constant that are shown unfolded


def shown_default(text):
    """Write a default for a signature."""
    return text if len(text) <= LONGEST_DEFAULT else '…'


def signature(entry, page, owner=''):
    """Write a signature: names and defaults; types stand in the table."""
    name = f'<span class="owner">{escape(owner)}.</span><b>{entry.name}</b>' if owner else f'<b>{entry.name}</b>'
    returns = entry.returns and entry.returns.type
    gives = f' <span class="gives">→ {type_text(returns, page)}</span>' if returns else ''
    if entry.kind in ('constant', 'property'):
        kind = f' <span class="gives">: {type_text(returns, page)}</span>' if returns else ''
        return f'<code class="signature">{name}{kind}</code>'
    if entry.kind == 'class' and not entry.parameters: return f'<code class="signature">{name}</code>'
    parts, typed = [], not tabled(entry)
    for parameter in entry.parameters:
        kind = f'<span class="gives">: {type_text(parameter.type, page)}</span>' if typed and parameter.type else ''
        default = f'<span class="default">={highlight(shown_default(parameter.default))}</span>' if parameter.default else ''
        parts.append(f'<span class="parameter">{escape(parameter.name)}{kind}{default}</span>')
    return f'<code class="signature">{name}({", ".join(parts)}){gives}</code>'


def type_text(text, page):
    """Write a type; public names in it are links."""
    def linked(match):
        address = page.address_of_name(match[0])
        return f'<a href="{address}">{match[0]}</a>' if address else match[0]
    pieces = re.split(r'("[^"]*"|\'[^\']*\')', text)
    return ''.join(escape(piece, quote=False) if i % 2 else re.sub(r'(?<![\w.])[A-Za-z_]\w*(?![\w.])', linked, escape(piece, quote=False))
                   for i, piece in enumerate(pieces))


def meaning_text(parameter, page):
    """Write what a parameter means; where nothing is said, what its class is."""
    if parameter.meaning: return page.inline(parameter.meaning)
    told = page.class_doc(parameter.type)
    return f'<span class="soft">{page.inline(told)}</span>' if told else ''


def tabled(entry):
    """Say whether an entry has a table: where nothing has a meaning of its own, types in the signature say as much."""
    if entry.kind == 'constant': return False
    return any(p.meaning for p in entry.parameters) or bool(entry.returns and entry.returns.meaning) or entry.fields


def parameter_table(entry, page):
    """Write the table of parameters; nothing where the signature says it all."""
    if not tabled(entry): return ''
    rows = [(p, f'<code>{escape(p.name)}</code>') for p in entry.parameters]
    if entry.returns and entry.kind != 'constant': rows.append((entry.returns, '<span class="returns">returns</span>'))
    if not rows: return ''
    with_default = any(p.default for p, _ in rows)
    head = ('field' if entry.fields else 'parameter' if entry.parameters else '', 'type', *(['default'] if with_default else []), 'meaning')
    body = []
    for parameter, name in rows:
        default = f'<td data-label="default">{f"<code>{highlight(parameter.default)}</code>" if parameter.default else ""}</td>' if with_default else ''
        short = ' class="short"' if len(parameter.type) <= LONGEST_TYPE else ''
        kind = f'<code{short}>{type_text(parameter.type, page)}</code>' if parameter.type else ''
        body.append(f'<tr><th scope="row">{name}</th><td class="type" data-label="type">{kind}</td>{default}<td data-label="meaning">{meaning_text(parameter, page)}</td></tr>')
    heads = ''.join(f'<th scope="col">{title}</th>' for title in head)
    return f'<div class="scroll"><table class="parameters"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def source_fold(text, page, label='Source'):
    """Write source that opens on demand."""
    return f'<details class="source"><summary>{label}</summary>{code_block(text, link=page.address_of_name)}</details>'


def doc_text(entry, page):
    """Write a docstring."""
    return page.block(entry.doc) if entry.doc else ''


def member_html(entry, owner, page, full):
    """Write a method or property of a class."""
    notes = ' '.join(f'<span class="kind">{note}</span>' for note in entry.notes)
    identity = f' id="{owner}.{entry.name}"' if page.claims(f'{owner}.{entry.name}') else ''
    heading = 'h3' if full else 'div'
    inherited = page.inherited(owner, entry) if not entry.doc else ''
    said = doc_text(entry, page) or inherited
    table = parameter_table(entry, page) if full else ''
    return f'<div class="member"{identity}><{heading} class="head">{signature(entry, page)} {notes}</{heading}>{said}{table}</div>'


def constant_html(entry, page):
    """Write a constant's value with the comment beside it; a long one is folded, its comment is not."""
    if entry.source.count('\n') < LONGEST_VALUE: return code_block(entry.source, link=page.address_of_name)
    return doc_text(entry, page) + source_fold(entry.source, page, 'Value')


def entry_html(entry, page, full=True, elsewhere=''):
    """Write an entry; `full` as on the page of its module, with all of its members and its source."""
    anchor = f'{entry.owner}.{entry.name}' if entry.owner else entry.name
    identity = f' id="{anchor}"' if page.claims(anchor) else ''
    heading = 'h2' if full else 'h4'
    kind = ' '.join([*entry.notes[::-1], '' if 'dataclass' in entry.notes or entry.kind == 'function' else entry.kind]).strip()
    sort = f'<span class="kind">{kind}</span>' if kind else ''
    bases = f'<span class="bases">of {type_text(", ".join(entry.bases), page)}</span>' if entry.bases else ''
    also = f'<a class="elsewhere" href="{elsewhere}">{"notebook" if full else "reference"}</a>' if elsewhere else ''
    parts = [f'<header><{heading} class="head">{signature(entry, page, entry.owner)}</{heading}>{sort}{bases}{also}</header>']
    if entry.kind == 'constant': parts.append(constant_html(entry, page))
    else: parts += [doc_text(entry, page), parameter_table(entry, page)]
    members = entry.members if full else [m for m in entry.members if not m.owner]
    if members: parts.append(f'<div class="members">{"".join(member_html(m, entry.name, page, full) for m in members)}</div>')
    if full and entry.kind != 'constant': parts.append(source_fold(entry.source, page))
    return f'<section class="entry"{identity}>{"".join(parts)}</section>'
