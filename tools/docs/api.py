"""What the package offers, read from its source by `ast`: nothing is imported, so nothing heavy is loaded."""
import ast
import io
import re
import textwrap
import tokenize
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

FIELDED = ('NamedTuple', 'Protocol')  # bases whose annotated names are fields, as those of a dataclass


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function, or a field of a class."""
    name: str  # with its stars
    type: str = ''  # as written
    default: str = ''  # as written; empty: none
    meaning: str = ''  # the comment beside it


@dataclass(frozen=True)
class Entry:
    """A public name: what it is, what it takes and gives, and its source."""
    name: str
    kind: str  # function, class, constant, method or property
    doc: str = ''  # its docstring, or a constant's comment
    parameters: tuple[Parameter, ...] = ()  # of a function; fields of a class
    fields: bool = False  # the parameters are fields
    returns: Parameter | None = None  # type and meaning
    notes: tuple[str, ...] = ()  # decorators worth knowing: context manager, static method ...
    bases: tuple[str, ...] = ()
    members: tuple['Entry', ...] = ()  # public methods and properties
    owner: str = ''  # the class that a method was added to from outside
    source: str = ''
    line: int = 0


@dataclass(frozen=True)
class Module:
    """A module of the package."""
    name: str
    doc: str
    exports: tuple[str, ...]  # `__all__`
    entries: tuple[Entry, ...]  # one for each export, in the order of the source
    namespace: dict[str, str] = field(default_factory=dict)  # names it takes from its neighbours -> module


class Source:
    """A piece of Python: its tree, its comments by line, and the text of any node."""

    def __init__(self, text):
        self.text, self.lines = text, text.splitlines()
        self.coded = [line.encode() for line in self.lines]
        self.tree = ast.parse(text)
        self.comments, self.whole_lines = {}, set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT: continue
            self.comments[token.start[0]] = token.string.lstrip('#').strip()
            if token.line.lstrip().startswith('#'): self.whole_lines.add(token.start[0])

    def written(self, node):
        """Return a node as written, on one line."""
        if node is None: return ''
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and '\n' in node.value: return repr(node.value)
        first, last = node.lineno - 1, node.end_lineno - 1
        lines = self.coded[first:last + 1]
        lines[-1] = lines[-1][:node.end_col_offset]
        lines[0] = lines[0][node.col_offset:]
        if len(lines) > 1: return ast.unparse(node)
        return lines[0].decode()

    def annotation(self, node):
        """Return a type as written, without the quotes of a name that is not there yet."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str): return node.value
        return self.written(node)

    def beside(self, node):
        """Return the comment at the end of a node's last line, or of its first."""
        for line in (node.end_lineno, node.lineno):
            if line in self.comments and line not in self.whole_lines: return self.comments[line]
        return ''

    def piece(self, node):
        """Return a definition with its decorators and trailing comments, as it stands."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, 'decorator_list', []))])
        return textwrap.dedent('\n'.join(self.lines[first - 1:node.end_lineno]))


def header_end(source, node):
    """Return the line of a function's closing colon, and whether the body starts on it."""
    parts = [node, *node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs, *node.args.defaults, *filter(None, node.args.kw_defaults),
             *filter(None, [node.args.vararg, node.args.kwarg, node.returns])]
    last = max([node.lineno, *(part.end_lineno for part in parts[1:])])
    while not re.search(r':\s*(#.*)?$', source.lines[last - 1]) and last < node.body[0].lineno: last += 1
    return last, node.body[0].lineno == last


def read_parameters(source, node, method):
    """Read a function's parameters and what it returns, each with the comment beside it."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    plain = dict(zip(reversed([a.arg for a in positional]), reversed(arguments.defaults)))
    plain |= {a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults) if d}
    listed = [(a.arg, a) for a in positional]
    if arguments.vararg: listed.append(('*' + arguments.vararg.arg, arguments.vararg))
    listed += [(a.arg, a) for a in arguments.kwonlyargs]
    if arguments.kwarg: listed.append(('**' + arguments.kwarg.arg, arguments.kwarg))
    if method and listed and listed[0][0] in ('self', 'cls'): del listed[0]
    colon, on_one_line = header_end(source, node)
    ends = {name: max(a.end_lineno, plain[a.arg].end_lineno if a.arg in plain else 0) for name, a in listed}
    last_of_line = {line: name for name, line in ends.items()}
    def meaning(name):
        line = ends[name]
        if last_of_line[line] != name or line in source.whole_lines: return ''
        return '' if line == colon else source.comments.get(line, '')
    found = tuple(Parameter(name, source.annotation(a.annotation), source.written(plain.get(a.arg)), meaning(name)) for name, a in listed)
    said = '' if on_one_line else source.comments.get(colon, '')
    returns = Parameter('returns', source.annotation(node.returns), '', said) if (node.returns is not None and source.annotation(node.returns) != 'None') or said else None
    return found, returns


def read_function(source, node, owner_class=False):
    """Describe a function or a method."""
    decorators = [ast.unparse(d) for d in node.decorator_list]
    names = [d.partition('(')[0].rpartition('.')[2] for d in decorators]
    patched = 'patch' in names
    parameters, returns = read_parameters(source, node, (owner_class and 'staticmethod' not in names) or patched)
    owner = source.annotation(node.args.args[0].annotation) if patched and node.args.args else ''
    asked = any(re.match(r'patch\(.*as_prop\s*=\s*True', d) for d in decorators)
    is_property = asked or {'property', 'cached_property'} & set(names)
    kind = 'property' if is_property else 'method' if owner_class or patched else 'function'
    said = {'contextmanager': 'context manager', 'classmethod': 'class method', 'staticmethod': 'static method', 'abstractmethod': 'to be written by each subclass'}
    return Entry(node.name, kind, ast.get_docstring(node) or '', parameters, False, returns, tuple(said[n] for n in names if n in said),
                 owner=owner, source=source.piece(node), line=node.lineno)


def read_class(source, node):
    """Describe a class: its fields or what makes one, and its public members."""
    decorators = [ast.unparse(d) for d in node.decorator_list]
    bases = tuple(ast.unparse(base) for base in node.bases)
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef) and not any(ast.unparse(d).endswith('.setter') for d in n.decorator_list)]
    fielded = any(d.startswith('dataclass') for d in decorators) or set(bases) & set(FIELDED)
    annotated = tuple(Parameter(n.target.id, source.annotation(n.annotation), source.written(n.value), source.beside(n))
                      for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith('_'))
    start = next((n for n in functions if n.name == '__init__'), None)
    if fielded: parameters, fields = annotated, True
    else: parameters, fields = (read_parameters(source, start, True)[0] if start else ()), False
    members = tuple(read_function(source, n, True) for n in functions if not n.name.startswith('_') or n.name == '__call__')
    notes = tuple(note for note, holds in (('dataclass', any(d.startswith('dataclass') for d in decorators)),
                                           ('frozen', any('frozen=True' in d for d in decorators))) if holds)
    return Entry(node.name, 'class', ast.get_docstring(node) or '', parameters, fields, None, notes, bases, members, source=source.piece(node), line=node.lineno)


def read_constants(source, node):
    """Describe the names that an assignment makes."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [t.id for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target]) if isinstance(t, ast.Name)]
    doc = source.beside(node)
    if not doc and node.lineno - 1 in source.whole_lines: doc = source.comments[node.lineno - 1]
    kind = source.annotation(getattr(node, 'annotation', None))
    returns = Parameter('type', kind) if kind else None
    return [Entry(name, 'constant', doc, returns=returns, source=source.piece(node), line=node.lineno) for name in names]


@lru_cache(maxsize=4096)
def read_entries(text):
    """Describe every definition at the top of a piece of Python, public or not, in order."""
    source, found = Source(text), []
    for node in source.tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): found.append(read_function(source, node))
        elif isinstance(node, ast.ClassDef): found.append(read_class(source, node))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) : found += read_constants(source, node)
    return tuple(found)


def imported_names(tree, package):
    """List the names that a tree's imports take from the package: name -> module; a star maps to nothing."""
    found = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.module: continue
        if not (node.level == 1 or node.module.startswith(f'{package}.')): continue
        module = node.module.removeprefix(f'{package}.')
        found |= {alias.asname or alias.name: module for alias in node.names if alias.name != '*'}
    return found


def read_module(path):
    """Describe a module of the package."""
    path = Path(path)
    text = path.read_text(encoding='utf-8')
    tree = ast.parse(text)
    exports = next((tuple(ast.literal_eval(n.value)) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'), ())
    found = read_entries(text)
    added = {}
    for entry in found:
        if entry.owner and not entry.name.startswith('_'): added.setdefault(entry.owner, []).append(entry)
    public = {e.name: e for e in found if e.name in exports and not e.owner}
    missing = [name for name in exports if name not in public]
    if missing: raise ValueError(f'{path.name} exports {", ".join(missing)}, which its source does not define at the top')
    public = {name: replace(e, members=(*e.members, *added.get(name, ()))) for name, e in public.items()}
    strangers = {owner: members for owner, members in added.items() if owner not in public}
    entries = [*public.values(), *(e for members in strangers.values() for e in members)]
    return Module(path.stem, ast.get_docstring(tree) or '', exports, tuple(sorted(entries, key=lambda e: e.line)), imported_names(tree, path.parent.name))


def read_package(folder):
    """Describe every public module of a package, by name."""
    return {path.stem: read_module(path) for path in sorted(Path(folder).glob('*.py')) if not path.stem.startswith('_')}
