"""Where each public name has its place in the site, and which one a text means by it."""
import ast
import re
from dataclasses import dataclass, field

from .api import imported_names


@dataclass(frozen=True)
class Names:
    """The public names of the package and the pages that tell of them."""
    package: str
    modules: dict  # module name -> api.Module
    stories: dict = field(default_factory=dict)  # (module, anchor) -> notebook page with its entry
    _makers: dict = field(default_factory=dict)  # name -> modules that export it
    _anchors: dict = field(default_factory=dict)  # module -> its anchors: names and Class.member
    _members: dict = field(default_factory=dict)  # module -> member -> its anchors

    def __post_init__(self):
        for module in self.modules.values():
            for name in module.exports: self._makers.setdefault(name, []).append(module.name)
            self._anchors[module.name] = {anchor for e in module.entries for anchor in anchors_of(e)}
            for anchor in sorted(self._anchors[module.name]):
                if '.' in anchor: self._members.setdefault(module.name, {}).setdefault(anchor.partition('.')[2], []).append(anchor)

    def scope(self, module=None, sources=()):
        """Say what each name means where it stands: a module's own names, and those that its source or cells import."""
        found = {}
        for text in sources:
            if f'from {self.package}' not in text and 'from .' not in text: continue
            try: tree = ast.parse(text)
            except SyntaxError: continue  # a cell of shell or magics
            found |= imported_names(tree, self.package)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or '').startswith(f'{self.package}.') and node.names[0].name == '*':
                    taken = node.module.removeprefix(f'{self.package}.')
                    if taken in self.modules: found |= dict.fromkeys(self.modules[taken].exports, taken)
        if module in self.modules:
            found |= self.modules[module].namespace | dict.fromkeys(self.modules[module].exports, module)
        return {name: maker for name, maker in found.items() if maker in self.modules and name in self._anchors[maker]}

    def find(self, text, scope, module=''):
        """Find what `text` means: (module, anchor), anchor '' for a module; None when it is no public name.

        Told apart are names that are imported or defined where the text stands (`scope`), methods of the module's own classes, an object
        called after its class (`trace.class_maps`), and names that one module alone has and that are no everyday words.
        """
        called = text.endswith(')') and '(' in text
        name = re.sub(r'\(.*\)$', '', text, flags=re.S).removeprefix('@')
        if not re.fullmatch(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', name): return None
        if name.startswith(f'{self.package}.'):
            module, _, anchor = name.removeprefix(f'{self.package}.').partition('.')
            return (module, anchor) if module in self.modules and (not anchor or anchor in self._anchors[module]) else None
        head, _, member = name.partition('.')
        if head in self.modules and member in self._anchors[head]: return head, member
        maker = scope.get(head)
        own = self._members.get(module, {}).get(name, ())
        if maker is None and len(own) == 1: return module, own[0]
        if maker is None and member:
            for known, place in scope.items():
                if known.lower() == head and f'{known}.{member}' in self._anchors[place]: return place, f'{known}.{member}'
        if maker is None:
            makers = self._makers.get(head, ())
            telling = called or member or '_' in head.strip('_') or head != head.lower()
            if len(makers) != 1 or not telling: return None  # `image` is an everyday word, `show_image` is not
            maker = makers[0]
        return (maker, name) if name in self._anchors[maker] else None


def anchors_of(entry):
    """List the anchors of an entry: its name, and its members' as Class.member."""
    own = f'{entry.owner}.{entry.name}' if entry.owner else entry.name
    return [own, *(f'{entry.name}.{member.name}' for member in entry.members)]
