"""The index that the search box reads: a script beside the pages, so that it works from a disk as well as from a server."""
import json

KINDS = ('page', 'section', 'module', 'function', 'class', 'constant', 'method', 'property')


def search_script(records):
    """Write the records (title, kind, address, context, words) as a script that sets `docsIndex`."""
    unknown = {kind for _, kind, *_ in records} - set(KINDS)
    if unknown: raise ValueError(f'the search knows {", ".join(KINDS)}, got {", ".join(sorted(unknown))}')
    lines = ',\n'.join(json.dumps([title, KINDS.index(kind), address, context, ' '.join(words.split())], ensure_ascii=False).replace('</', '<\\/')
                       for title, kind, address, context, words in records)
    return f'window.docsIndex = {{kinds: {json.dumps(KINDS)}, records: [\n{lines}\n]}};\n'
