// What the explorer and the browser share: elements, files of tensors, interpolation, colours, themes.

function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value == null) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'class') node.className = value;
    else if (name in node && name !== 'list') node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat(2).filter(child => child != null && child !== false));
  return node;
}

// A safetensors file: length, header in JSON, tensors one after the other.
function unpack(data) {
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  const { __metadata__, ...entries } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(entries)) {
    const part = bytes.slice(8 + length + from, 8 + length + to);  // a copy, so that floats are aligned
    tensors[name] = { shape, data: dtype === 'F32' ? new Float32Array(part.buffer) : part };
  }
  return { about: JSON.parse(__metadata__.about), tensors };
}

// Bilinear interpolation with pixel areas aligned, as torch has it with align_corners=False.
const axes = new Map();
function axis(from, to) {
  const key = from * 65536 + to;
  if (!axes.has(key)) {
    const low = new Int32Array(to), high = new Int32Array(to), share = new Float32Array(to);
    for (let i = 0; i < to; i++) {
      const at = Math.max(0, (i + .5) * from / to - .5);
      low[i] = Math.min(Math.floor(at), from - 1);
      high[i] = Math.min(low[i] + 1, from - 1);
      share[i] = at - low[i];
    }
    axes.set(key, { low, high, share });
  }
  return axes.get(key);
}

let between = new Float32Array(0);
function enlarge(map, rows, columns, height, width, out = new Float32Array(height * width)) {
  const x = axis(columns, width), y = axis(rows, height);
  if (between.length < rows * width) between = new Float32Array(rows * width);
  for (let r = 0; r < rows; r++) {
    for (let i = 0, from = r * columns, to = r * width; i < width; i++) {
      const a = map[from + x.low[i]];
      between[to + i] = a + (map[from + x.high[i]] - a) * x.share[i];
    }
  }
  for (let j = 0; j < height; j++) {
    const a = y.low[j] * width, b = y.high[j] * width, share = y.share[j];
    for (let i = 0, to = j * width; i < width; i++) out[to + i] = between[a + i] + (between[b + i] - between[a + i]) * share;
  }
  return out;
}

// The value of a map at one place of a picture of another size.
function valueAt(map, rows, columns, height, width, px, py) {
  const x = Math.max(0, Math.min(columns - 1, (px + .5) * columns / width - .5)), y = Math.max(0, Math.min(rows - 1, (py + .5) * rows / height - .5));
  const left = Math.floor(x), top = Math.floor(y), right = Math.min(left + 1, columns - 1), bottom = Math.min(top + 1, rows - 1);
  const upper = map[top * columns + left] + (map[top * columns + right] - map[top * columns + left]) * (x - left);
  const lower = map[bottom * columns + left] + (map[bottom * columns + right] - map[bottom * columns + left]) * (x - left);
  return upper + (lower - upper) * (y - top);
}

function extent(map) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < map.length; i++) { const v = map[i]; if (v < low) low = v; if (v > high) high = v; }
  return [low, high];
}

function stretched(map) {
  const [low, high] = extent(map), span = high - low;
  return map.map(span > 1e-6 * Math.abs(high) ? v => (v - low) / span : () => 0);
}

// Otsu's threshold of values from 0 to 1, as `masks.otsu` finds it.
function otsu(map, bins = 256) {
  const counts = new Float64Array(bins);
  for (let i = 0; i < map.length; i++) counts[Math.max(0, Math.min(bins - 1, Math.floor(map[i] * bins)))]++;
  let mean = 0, below = 0, sum = 0, best = -1, at = 0;
  for (let i = 0; i < bins; i++) mean += i * counts[i] / map.length;
  for (let i = 0; i < bins; i++) {
    below += counts[i] / map.length;
    sum += i * counts[i] / map.length;
    const apart = (mean * below - sum) ** 2 / Math.max(below * (1 - below), 1e-9);
    if (apart > best) { best = apart; at = i; }
  }
  return (at + 1) / bins;
}

// 4-connected pieces of each label: runs of rows, joined with the runs above that they touch.
function countPieces(labels, height, width) {
  const pieces = new Int32Array(256), parent = [], start = [], end = [];
  const root = run => { while (parent[run] !== run) run = parent[run] = parent[parent[run]]; return run; };
  let above = 0, count = 0;  // first run of the row above, runs so far
  for (let y = 0; y < height; y++) {
    const row = y * width, first = count;
    let near = above;
    for (let x = 0; x < width;) {
      const label = labels[row + x], from = x;
      while (x < width && labels[row + x] === label) x++;
      parent[count] = count;
      start[count] = from;
      end[count] = x;
      pieces[label]++;
      while (near < first && end[near] <= from) near++;
      for (let run = near; run < first && start[run] < x; run++) {
        if (labels[row - width + start[run]] !== label) continue;
        const a = root(run), b = root(count);
        if (a !== b) { parent[a] = b; pieces[label]--; }
      }
      count++;
    }
    above = first;
  }
  return pieces;
}

// The outlines of a label as an SVG path: marching squares between the centres of pixels, so that every centre is on its own side; the inside lies to the right.
const TOP = [0, -1], RIGHT = [1, 0], BOTTOM = [0, 1], LEFT = [-1, 0];
const TURNS = [[], [[LEFT, BOTTOM]], [[BOTTOM, RIGHT]], [[LEFT, RIGHT]], [[RIGHT, TOP]], [[RIGHT, TOP], [LEFT, BOTTOM]], [[BOTTOM, TOP]], [[LEFT, TOP]],
  [[TOP, LEFT]], [[TOP, BOTTOM]], [[TOP, LEFT], [BOTTOM, RIGHT]], [[TOP, RIGHT]], [[RIGHT, LEFT]], [[RIGHT, BOTTOM]], [[BOTTOM, LEFT]], []];

function outlines(labels, height, width, label) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && labels[y * width + x] === label;
  const wide = 2 * width + 3, next = new Map(), parts = [];  // places in halves of a pixel
  for (let y = 0; y <= height; y++) for (let x = 0; x <= width; x++) {
    const corners = inside(x - 1, y - 1) << 3 | inside(x, y - 1) << 2 | inside(x, y) << 1 | inside(x - 1, y);
    for (const [from, to] of TURNS[corners]) next.set((2 * y + from[1] + 1) * wide + 2 * x + from[0] + 1, (2 * y + to[1] + 1) * wide + 2 * x + to[0] + 1);
  }
  while (next.size) {
    const ring = [];
    for (let at = next.keys().next().value; next.has(at);) { ring.push([at % wide - 1, Math.floor(at / wide) - 1]); const to = next.get(at); next.delete(at); at = to; }
    const turns = ring.filter(([x, y], i) => {  // points on a straight line are left out
      const [a, b] = ring.at(i - 1), [c, d] = ring[(i + 1) % ring.length];
      return (x - a) * (d - y) !== (y - b) * (c - x);
    });
    parts.push(`M${turns.map(([x, y]) => `${x / 2} ${y / 2}`).join('L')}Z`);
  }
  return parts.join('');
}

function toTable(rgb, from = 0) {  // 256 colours as the words of an image
  const table = new Uint32Array(256);
  for (let i = 0; i < 256; i++) table[i] = 0xff000000 | rgb[from + 3 * i + 2] << 16 | rgb[from + 3 * i + 1] << 8 | rgb[from + 3 * i];
  return table;
}

function rgbOf(hex) { return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)); }

function newCanvas(width, height) {
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

// A canvas of one size that is painted from numbers again and again.
class Sheet {
  constructor(width, height) {
    this.canvas = newCanvas(width, height);
    this.context = this.canvas.getContext('2d');
    this.pixels = this.context.createImageData(width, height);
    this.words = new Uint32Array(this.pixels.data.buffer);
  }
  paint(map, table, low, high) {
    const scale = high > low ? 255 / (high - low) : 0, words = this.words;
    for (let i = 0; i < words.length; i++) {
      const at = (map[i] - low) * scale;
      words[i] = table[at <= 0 ? 0 : at >= 255 ? 255 : at + .5 | 0];
    }
    this.context.putImageData(this.pixels, 0, 0);
    return this.canvas;
  }
  show() { this.context.putImageData(this.pixels, 0, 0); return this.canvas; }
}

function greyed({ data }) { for (let i = 0; i < data.length; i += 4) data[i] = data[i + 1] = data[i + 2] = .299 * data[i] + .587 * data[i + 1] + .114 * data[i + 2]; }

const typeOf = bytes => bytes[0] === 0x89 ? 'image/png' : 'image/jpeg';

async function decodePicture(bytes) { return createImageBitmap(new Blob([bytes], { type: typeOf(bytes) })); }

function dataURL(bytes) {
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return `data:${typeOf(bytes)};base64,${btoa(text)}`;
}

function download(name, content, type = 'application/octet-stream') {
  const url = content instanceof Blob ? URL.createObjectURL(content) : URL.createObjectURL(new Blob([content], { type }));
  const link = h('a', { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Follow the theme of the notebook, or of the system where there is no notebook.
function followTheme(root, changed = () => {}) {
  const system = matchMedia('(prefers-color-scheme: dark)');
  const set = () => {
    const { body } = document, lab = body.dataset.jpThemeLight;
    const dark = lab ? lab === 'false' : body.dataset.vscodeThemeKind ? body.dataset.vscodeThemeKind.includes('dark') : body.classList.contains('jp-mod-light') ? false : system.matches;
    const theme = dark ? 'dark' : 'light';
    if (root.dataset.theme === theme) return;
    root.dataset.theme = theme;
    changed();
  };
  set();
  system.addEventListener('change', set);
  const watch = new MutationObserver(set);
  watch.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light', 'data-vscode-theme-kind', 'class'] });
  return () => { system.removeEventListener('change', set); watch.disconnect(); };
}

// A row of choices of which one holds.
function choice(label, options, value, onpick) {
  const buttons = new Map();
  const set = now => { for (const [key, button] of buttons) { button.setAttribute('aria-checked', key === now); button.tabIndex = key === now ? 0 : -1; } };
  const node = h('div', { class: 'ss-choice', role: 'radiogroup', 'aria-label': label });
  for (const [key, text, title] of options) {
    const button = h('button', { type: 'button', role: 'radio', title, onclick: () => { set(key); onpick(key); } }, text);
    buttons.set(key, button);
    node.append(button);
  }
  node.addEventListener('keydown', event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const list = [...buttons.values()].filter(button => !button.hidden), next = list[(list.indexOf(document.activeElement) + step + list.length) % list.length];
    next.focus();
    next.click();
  });
  set(value);
  return { node, set, buttons };
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

// What a widget listens to where there is no notebook: values by name, and who wants to know of them.
class Model {
  constructor(values) { this.values = values; this.listeners = new Map(); }
  get(name) { return this.values[name]; }
  set(name, value) { this.values[name] = value; }
  save_changes() {}
  on(name, act) { this.listeners.set(name, [...this.listeners.get(name) ?? [], act]); }
  off(name, act) { this.listeners.set(name, (this.listeners.get(name) ?? []).filter(one => one !== act)); }
  tell(name, ...what) { for (const act of this.listeners.get(name) ?? []) act(...what); }
}

// What every widget of ours is: a root, a model that it listens to, and parts that it asks for once.
class App {
  constructor(model, root, values) { Object.assign(this, { model, root, view: { ...model.get('view') }, off: [], asked: new Set() }, values); }
  listen(name, act) { this.model.on(name, act); this.off.push(() => this.model.off(name, act)); }
  offers(name) { return (this.model.get('offers') ?? []).includes(name); }
  ask(name) {  // whether it is on its way now
    if (this.asked.has(name) || !this.offers(name)) return false;
    this.asked.add(name);
    this.model.send({ ask: name });
    return true;
  }
  close() { this.off.forEach(undo => undo()); }
}

function opens(Kind) {  // the function that a notebook calls with a model and a place
  return ({ model, el }) => {
    const root = h('div', {});
    el.append(root);
    const app = new Kind(model, root);
    root.explorer = app;
    return () => app.close();
  };
}
