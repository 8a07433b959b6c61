// What a segmenter gets wrong: rows of image, mask and prediction, sorted and filtered here, fetched when they are seen.

class Row {
  constructor(app, number) {
    Object.assign(this, { app, number });
    const title = text => h('figcaption', { class: 'ss-quiet' }, text);
    this.dots = [0, 1, 2].map(() => h('i', { class: 'ss-fail-dot', hidden: true }));
    this.frames = ['image', 'mask', 'prediction'].map((name, k) => h('figure', { class: 'ss-fail-frame' }, h('div', { class: 'ss-fail-picture' }, this.dots[k]), title(name)));
    this.readout = h('div', { class: 'ss-quiet ss-fail-readout' });
    this.node = h('div', { class: 'ss-fail-row', role: 'listitem' }, this.frames, this.facts());
    for (const frame of this.frames) {
      frame.addEventListener('pointermove', event => this.point(event, frame.firstElementChild));
      frame.addEventListener('pointerleave', () => this.point(null));
    }
  }

  facts() {
    const { app, number } = this, lines = [...app.byImage.get(number) ?? []].sort((a, b) => a[1] - b[1]);
    const bar = ([id, iou]) => {
      const { name, colour } = app.classes.get(id);
      return h('div', { class: `ss-fail-line${id === app.view.class_id ? ' ss-fail-chosen' : ''}` }, h('i', { style: `background: ${colour}` }), h('span', { title: name }, name), h('u', {}, h('s', { style: `width: ${100 * iou}%` })), h('b', {}, iou.toFixed(2)));
    };
    return h('div', { class: 'ss-fail-facts' }, h('div', { class: 'ss-fail-name' }, h('b', {}, app.names[number]), h('span', { class: 'ss-quiet' }, `mean IoU ${app.mean(number).toFixed(2)} · disagrees on ${percent(app.disagreement[number], 0)}`)), lines.map(bar), this.readout);
  }

  async fill(data) {
    const { about, tensors } = unpack(data);
    [this.height, this.width] = about.size;
    Object.assign(this, { ids: about.ids, mask: tensors.mask.data, said: tensors.said.data });
    const bitmap = await decodePicture(tensors.image.data);
    this.photo = newCanvas(this.width, this.height);
    this.photo.getContext('2d').drawImage(bitmap, 0, 0, this.width, this.height);
    this.canvases = this.frames.map((frame, k) => {
      const canvas = newCanvas(this.width, this.height);
      canvas.setAttribute('role', 'img');
      canvas.setAttribute('aria-label', `${['image', 'mask', 'prediction'][k]} of ${this.app.names[this.number]}`);
      frame.firstElementChild.prepend(canvas);
      return canvas;
    });
    this.sheet = new Sheet(this.width, this.height);
    this.draw();
  }

  paint(labels, canvas) {
    const { width, height } = this, { view, background } = this.app, out = this.sheet.words, alpha = Math.round(255 * view.opacity) << 24, errors = view.show === 'errors';
    const colours = this.ids.map(id => { const [r, g, b] = rgbOf(this.app.classes.get(id)?.colour ?? '#999999'); return b << 16 | g << 8 | r; }), clear = this.ids.indexOf(background);
    const right = (Math.round(150 * view.opacity) << 24) | 0xffffff, stripes = [alpha | 0xeeeeee, alpha | 0xcacaca], same = (i, j) => labels[i] === labels[j];
    for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
      const label = labels[i];
      if (label === 255) out[i] = errors ? right : stripes[(x + y) % 12 < 6 ? 0 : 1];
      else if (errors && (this.mask[i] === this.said[i] || this.mask[i] === 255)) out[i] = right;
      else if (label === clear) out[i] = errors ? 0xff3c3c3c : (Math.round(76 * view.opacity) << 24) | 0xffffff;
      else out[i] = (errors || x && y && x < width - 1 && y < height - 1 && !(same(i, i - 1) && same(i, i + 1) && same(i, i - width) && same(i, i + width)) ? 0xff000000 : alpha) | colours[label];
    }
    const context = canvas.getContext('2d');
    context.drawImage(this.photo, 0, 0);
    context.drawImage(this.sheet.show(), 0, 0);
  }

  draw() {
    if (!this.photo) return;
    this.canvases[0].getContext('2d').drawImage(this.photo, 0, 0);
    this.paint(this.mask, this.canvases[1]);
    this.paint(this.said, this.canvases[2]);
  }

  refresh() { const facts = this.facts(); this.node.lastElementChild.replaceWith(facts); this.draw(); }

  point(event, picture) {  // one pixel in all three pictures
    for (const dot of this.dots) dot.hidden = !event || !this.photo;
    if (!event || !this.photo) { this.readout.textContent = ''; return; }
    const box = picture.getBoundingClientRect(), share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map(at => Math.max(0, Math.min(.9999, at)));
    for (const dot of this.dots) Object.assign(dot.style, { left: `${100 * share[0]}%`, top: `${100 * share[1]}%` });
    const i = Math.floor(share[1] * this.height) * this.width + Math.floor(share[0] * this.width), name = local => local === 255 ? 'void' : this.app.classes.get(this.ids[local])?.name ?? '?';
    this.readout.textContent = this.mask[i] === this.said[i] ? `both ${name(this.mask[i])}` : `mask ${name(this.mask[i])}, prediction ${name(this.said[i])}`;
  }
}

class Failures extends App {
  constructor(model, root) {
    super(model, root, { rows: new Map(), parts: new Map() });
    const { about, tensors } = unpack(model.get('atlas'));
    Object.assign(this, { names: about.names, count: about.count, limit: about.count, background: about.background, disagreement: tensors.disagreement.data, classes: new Map(about.classes.map(one => [one.id, one])), byImage: new Map() });
    const rows = tensors.rows.data;
    for (let k = 0; k < rows.length; k += 3) {
      if (!this.byImage.has(rows[k])) this.byImage.set(rows[k], []);
      this.byImage.get(rows[k]).push([rows[k + 1], rows[k + 2]]);
    }
    this.off.push(followTheme(root));
    this.build();
    this.listen('msg:custom', (message, buffers) => this.received(message, buffers));
    this.list();
  }

  mean(number) { const lines = this.byImage.get(number) ?? []; return lines.reduce((sum, [, iou]) => sum + iou, 0) / lines.length; }

  build() {
    const { root, view } = this;
    this.order = choice('order', [['iou', 'Lowest IoU first'], ['disagreement', 'Most disagreement first', 'share of trusted pixels on which prediction and mask differ']], view.order, order => this.change({ order }));
    this.classList = h('select', { class: 'ss-select', 'aria-label': 'class', onchange: () => this.change({ class_id: this.classList.value === '' ? null : Number(this.classList.value) }) }, h('option', { value: '' }, 'every class'), [...this.classes.values()].map(one => h('option', { value: String(one.id) }, one.name)));
    this.classList.value = view.class_id == null ? '' : String(view.class_id);
    this.shows = choice('show', [['labels', 'Labels'], ['errors', 'Errors', 'only where prediction and mask differ']], view.show, show => this.change({ show }, false));
    this.opacity = h('input', { type: 'range', min: 0, max: 1, step: .05, value: view.opacity, 'aria-label': 'opacity of the labels', oninput: () => this.change({ opacity: Number(this.opacity.value) }, false) });
    this.tally = h('span', { class: 'ss-quiet', role: 'status' });
    this.box = h('div', { class: 'ss-fail-rows', role: 'list' });
    this.more = h('button', { type: 'button', class: 'ss-button', onclick: () => { this.limit += this.count; this.list(); } }, 'More');
    root.className = 'ss ss-failures';
    root.setAttribute('data-lm-suppress-shortcuts', 'true');
    root.replaceChildren(h('div', { class: 'ss-row ss-bar' }, this.order.node, this.classList, this.shows.node, h('label', { class: 'ss-small' }, 'opacity', this.opacity), this.tally), this.box, this.more);
  }

  change(parts, anew = true) {
    Object.assign(this.view, parts);
    this.model.set('view', { ...this.view });
    this.model.save_changes();
    if (anew) { this.limit = this.count; this.list(); } else for (const row of this.rows.values()) row.draw();
  }

  ranked() {  // as `ImageScores.worst` ranks
    const { class_id, order } = this.view, scored = [];
    for (const [number, lines] of this.byImage) {
      const iou = class_id == null ? this.mean(number) : lines.find(([id]) => id === class_id)?.[1];
      if (iou != null && !Number.isNaN(this.disagreement[number])) scored.push([order === 'iou' ? iou : -this.disagreement[number], number]);
    }
    return scored.sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, number]) => number);
  }

  list() {
    const offers = new Set(this.model.get('offers') ?? []), can = number => offers.has('images') || offers.has(`image:${number}`);
    const ranked = this.ranked(), shown = ranked.filter(can), numbers = shown.slice(0, this.limit);
    for (const number of numbers) {
      if (!this.rows.has(number)) this.rows.set(number, new Row(this, number));
      else this.rows.get(number).refresh();
    }
    this.box.replaceChildren(...numbers.length ? numbers.map(number => this.rows.get(number).node) : [h('p', { class: 'ss-quiet' }, 'no image has this class')]);
    this.more.hidden = shown.length <= this.limit;
    this.tally.classList.remove('ss-wrong');
    this.tally.textContent = `${numbers.length} of ${ranked.length} images` + (shown.length < ranked.length && numbers.length === shown.length ? ', all that this page holds' : '');
    const missing = numbers.filter(number => !this.asked.has(number));
    for (const number of missing) this.asked.add(number);
    if (offers.has('images')) { if (missing.length) this.model.send({ ask: 'images', numbers: missing }); } else for (const number of missing) this.model.send({ ask: `image:${number}` });
  }

  received(message, buffers) {
    if (message.error) { this.tally.textContent = message.error; this.tally.classList.add('ss-wrong'); return; }
    const number = Number((message.part ?? '').split(':')[1]);
    this.rows.get(number)?.fill(buffers[0]);
  }
}

const render = opens(Failures);
