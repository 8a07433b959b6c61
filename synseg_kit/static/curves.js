// The curves of a training: one small chart for each number, and one pointer for all of them.

function svg(tag, properties = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(properties)) if (value != null) node.setAttribute(name, value);
  node.append(...children.flat(2).filter(child => child != null && child !== false));
  return node;
}

const BOX = { width: 300, height: 138, left: 44, right: 10, top: 20, bottom: 20 };  // of a chart, in its own units

function plain(value) {  // a number as short as it can be read
  const size = Math.abs(value);
  if (!size) return '0';
  if (size >= 1e5 || size < 1e-4) return value.toExponential(1).replace('e+', 'e');
  return String(Number(value.toPrecision(3)));
}

function ticks(low, high, count = 4) {  // round numbers between two values
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough)), step = power * [1, 2, 2.5, 5, 10].find(times => times * power >= rough * .999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + 1e-6 * step; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

class Chart {
  constructor(app) {
    this.app = app;
    this.now = h('b', { class: 'ss-curve-now' });
    this.label = h('span', {});
    this.axes = svg('g', { class: 'ss-curve-axes' });
    this.line = svg('path', { class: 'ss-curve-line' });
    this.dots = svg('g', { class: 'ss-curve-dots' });
    this.mark = svg('g', { class: 'ss-curve-mark', visibility: 'hidden' }, svg('line', { y1: BOX.top - 5, y2: BOX.height - BOX.bottom }), svg('circle', { r: 3.5 }), svg('text', { y: BOX.top - 9, 'text-anchor': 'middle' }));
    this.chart = svg('svg', { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: 'img' }, this.axes, this.line, this.dots, this.mark);
    this.node = h('figure', { class: 'ss-curve' }, h('figcaption', {}, this.label, this.now), this.chart);
    this.chart.addEventListener('pointermove', event => app.point(this.stepAt(event)));
    this.chart.addEventListener('pointerleave', () => app.point(null));
  }

  stepAt(event) {
    const box = this.chart.getBoundingClientRect(), share = ((event.clientX - box.left) / box.width * BOX.width - BOX.left) / (BOX.width - BOX.left - BOX.right);
    return Math.max(0, Math.min(1, share)) * this.app.last;
  }

  x(step) { return BOX.left + step / this.app.last * (BOX.width - BOX.left - BOX.right); }
  y(value) { return BOX.height - BOX.bottom - (value - this.low) / (this.high - this.low) * (BOX.height - BOX.top - BOX.bottom); }

  show(curve) {
    Object.assign(this, { steps: curve.steps, values: curve.values });
    this.low = Math.min(0, ...curve.values);
    this.high = Math.max(...curve.values);
    if (this.high <= this.low) this.high = this.low + 1;
    const points = curve.steps.map((step, i) => `${this.x(step).toFixed(1)} ${this.y(curve.values[i]).toFixed(1)}`);
    this.line.setAttribute('d', points.length ? `M${points.join('L')}` : '');
    this.dots.replaceChildren(...(points.length > 24 ? [] : curve.steps.map((step, i) => svg('circle', { cx: this.x(step), cy: this.y(curve.values[i]), r: 2.2 }))));
    const right = BOX.width - BOX.right, floor = BOX.height - BOX.bottom;
    this.axes.replaceChildren(...ticks(this.low, this.high).flatMap(value => [svg('line', { x1: BOX.left, x2: right, y1: this.y(value), y2: this.y(value) }), svg('text', { x: BOX.left - 6, y: this.y(value) + 3.5, 'text-anchor': 'end' }, plain(value))]),
      ...ticks(0, this.app.last).map(step => svg('text', { x: this.x(step), y: floor + 14, 'text-anchor': step > .95 * this.app.last ? 'end' : 'middle' }, plain(step))));
    this.label.textContent = curve.title;
    this.chart.setAttribute('aria-label', `${curve.title}: ${plain(curve.values.at(-1))} at step ${curve.steps.at(-1)}, from ${plain(curve.values[0])} at step ${curve.steps[0]}`);
    this.point(null);
  }

  point(step) {  // tell the value of the point that is nearest to a step; null: of the last
    let at = this.steps.length - 1;
    if (step != null) for (let i = at; i >= 0; i--) if (Math.abs(this.steps[i] - step) < Math.abs(this.steps[at] - step)) at = i;
    this.now.textContent = plain(this.values[at]);
    this.mark.setAttribute('visibility', step == null ? 'hidden' : 'visible');
    if (step == null) return;
    const [line, circle, text] = this.mark.children, x = this.x(this.steps[at]);
    text.textContent = `step ${this.steps[at]}`;
    text.setAttribute('x', Math.max(BOX.left + 22, Math.min(BOX.width - BOX.right - 22, x)));
    line.setAttribute('x1', x);
    line.setAttribute('x2', x);
    circle.setAttribute('cx', x);
    circle.setAttribute('cy', this.y(this.values[at]));
  }
}

class Curves extends App {
  constructor(model, root) {
    super(model, root, { charts: new Map(), last: 1 });
    root.className = 'ss ss-curves';
    this.empty = h('p', { class: 'ss-quiet' }, 'waiting for the first look of the training');
    this.grid = h('div', { class: 'ss-curve-grid' });
    root.replaceChildren(this.empty, this.grid);
    this.off.push(followTheme(root));
    this.listen('change:curves', () => this.draw());
    this.draw();
  }

  draw() {
    const curves = (this.model.get('curves') ?? []).filter(curve => curve.steps.length);
    this.empty.hidden = curves.length > 0;
    this.last = Math.max(1, ...curves.map(curve => curve.steps.at(-1)));
    for (const curve of curves) {
      if (!this.charts.has(curve.name)) {
        this.charts.set(curve.name, new Chart(this));
        this.grid.append(this.charts.get(curve.name).node);
      }
      this.charts.get(curve.name).show(curve);
    }
    if (this.pointer != null) this.point(this.pointer);
  }

  point(step) { this.pointer = step; for (const chart of this.charts.values()) chart.point(step); }
}

const render = opens(Curves);
