"""TeX formulas as MathML, which browsers draw by themselves: the commands that our pages use, and an error for any other."""
import re
from html import escape

LETTERS = dict(zip(
    'alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi varphi chi psi omega '
    'Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell infty partial nabla emptyset'.split(),
    'αβγδϵεζηθικλμνξπρστϕφχψωΓΔΘΛΞΠΣΦΨΩℓ∞∂∇∅'))
OPERATORS = dict(zip(
    'cdot times otimes oplus odot circ approx propto to in notin le leq ge geq ne neq sim equiv subset subseteq cup cap pm mid '
    'ldots dots cdots top mapsto leftarrow rightarrow langle rangle lfloor rfloor lceil rceil'.split(),
    '⋅×⊗⊕⊙∘≈∝→∈∉≤≤≥≥≠≠∼≡⊂⊆∪∩±∣…… ⋯⊤↦←→⟨⟩⌊⌋⌈⌉'.replace(' ', '')))
LIMITS = {'sum': '∑', 'prod': '∏', 'int': '∫', 'max': 'max', 'min': 'min', 'argmax': 'argmax', 'argmin': 'argmin', 'lim': 'lim'}
FUNCTIONS = ('exp', 'log', 'ln', 'sin', 'cos', 'tan', 'tanh', 'det', 'Pr')
SPACES = {',': '.167em', ':': '.222em', ';': '.278em', '!': '-.167em', ' ': '.25em', 'quad': '1em', 'qquad': '2em'}
ACCENTS = {'hat': '^', 'bar': '¯', 'tilde': '~', 'vec': '→', 'dot': '˙'}
BIG = {'big': '1.2em', 'Big': '1.8em', 'bigl': '1.2em', 'bigr': '1.2em', 'left': None, 'right': None}
FENCES = '()[]|‖⟨⟩⌊⌋⌈⌉'


class _Parser:
    """Reads a formula from left to right."""

    def __init__(self, tex):
        self.tex = tex
        self.tokens = re.findall(r'\\(?:text|mathrm|mathbf|operatorname)\{[^{}]*\}|\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|\S', tex)
        self.place = 0

    def peek(self): return self.tokens[self.place] if self.place < len(self.tokens) else ''

    def take(self, wanted=''):
        token = self.peek()
        if not token or wanted and token != wanted:
            raise ValueError(f'the formula {self.tex!r} {f"has {token!r}" if token else "ends"} where {wanted or "more"!r} is needed')
        self.place += 1
        return token

    def row(self, end=''):
        """Read until a closing token, or to the end."""
        parts = []
        while self.peek() != end: parts.append(self.scripted())
        return parts[0] if len(parts) == 1 else f'<mrow>{"".join(parts)}</mrow>'

    def group(self):
        """Read an argument: `{...}`, or one token."""
        if self.peek() != '{': return self.atom()
        self.take('{')
        row = self.row('}')
        self.take('}')
        return row

    def scripted(self):
        """Read an atom with what stands below and above it."""
        limits = self.peek()[1:] in LIMITS and self.peek()[0] == '\\'
        base, below, above = self.atom(), '', ''
        while self.peek() in ('_', '^', "'"):
            if self.peek() == "'":
                primes = 0
                while self.peek() == "'": self.take(); primes += 1
                above = f'<mo>{"′" * primes}</mo>'
            elif self.take() == '_': below = self.group()
            else: above = self.group()
        if not below and not above: return base
        kind = ('munder', 'mover') if limits else ('msub', 'msup')
        if below and above: return f'<{"munderover" if limits else "msubsup"}>{base}{below}{above}</{"munderover" if limits else "msubsup"}>'
        return f'<{kind[0]}>{base}{below}</{kind[0]}>' if below else f'<{kind[1]}>{base}{above}</{kind[1]}>'

    def fence(self, token, size=None):
        """Write a bracket; one that has a size is drawn that large."""
        sized = f' minsize="{size}" maxsize="{size}"' if size else ' stretchy="false"'
        return f'<mo{sized} lspace="0" rspace="0">{escape(token)}</mo>'

    def application(self):
        """Write the invisible sign between a function and its argument, unless an index comes first."""
        return '' if self.peek() in ('_', '^') else '<mo>&#8289;</mo>'

    def atom(self):
        """Read one symbol, number, group or command."""
        if self.peek() == '{': return self.group()
        token = self.take()
        if token[0] == '\\': return self.command(token[1:])
        if token[0].isdigit(): return f'<mn>{token}</mn>'
        if token.isalpha(): return f'<mi>{token}</mi>'
        if token in FENCES: return self.fence(token)
        if token == '/': return '<mo lspace=".1em" rspace=".1em">/</mo>'
        if token in '_^}&#%$~': raise ValueError(f'the formula {self.tex!r} has {token!r} where a symbol is needed')
        return f'<mo>{escape({"-": "−", "*": "∗"}.get(token, token))}</mo>'

    def command(self, name):
        if name in LETTERS: return f'<mi>{LETTERS[name]}</mi>'
        if name in OPERATORS: return self.fence(OPERATORS[name]) if OPERATORS[name] in FENCES else f'<mo>{OPERATORS[name]}</mo>'
        if name in LIMITS: return f'<mo movablelimits="true">{LIMITS[name]}</mo>'
        if name in FUNCTIONS: return f'<mi>{name}</mi>{self.application()}'
        if name in SPACES: return f'<mspace width="{SPACES[name]}"></mspace>'
        if name in ACCENTS: return f'<mover accent="true">{self.group()}<mo stretchy="false">{ACCENTS[name]}</mo></mover>'
        if name in BIG: return self.fence(self.take().lstrip('\\').replace('.', ''), BIG[name])
        if name in '{}': return self.fence(name)
        if name == '|': return self.fence('‖')
        if name == 'frac': return f'<mfrac>{self.group()}{self.group()}</mfrac>'
        if name == 'sqrt': return f'<msqrt>{self.group()}</msqrt>'
        if '{' in name:
            kind, word = name[:-1].split('{')
            if kind == 'text': return f'<mtext>{escape(word)}</mtext>'
            upright = ' mathvariant="normal"' if len(word) == 1 else ''
            return f'<mi{upright}>{escape(word)}</mi>{self.application() if kind == "operatorname" else ""}'
        raise ValueError(f'the formula {self.tex!r} uses \\{name}, which tools/docs/mathml.py does not know; add it there or write it otherwise')


def to_mathml(
    tex,  # a formula without its dollar signs
    display=False,  # on a line of its own
):  # a `math` element
    """Convert a TeX formula to MathML."""
    parser = _Parser(tex)
    row = parser.row()
    return f'<math{" display=block" if display else ""} alttext="{escape(" ".join(tex.split()))}">{row}</math>'.replace('display=block', 'display="block"')
