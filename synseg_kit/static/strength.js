// An adapter at several strengths: what was painted is here, so dragging asks nobody.

const LONGEST = 384;  // pixels of a canvas

class Painted {  // one strength
  constructor(data) { this.maps = new Maps(data); }

  async open() {
    const { maps } = this, factor = LONGEST / Math.max(maps.height, maps.width), bitmap = await decodePicture(maps.picture);
    this.width = Math.round(maps.width * factor);
    this.height = Math.round(maps.height * factor);
    [this.photo, this.grey] = [newCanvas(this.width, this.height), newCanvas(this.width, this.height)];
    const photo = this.photo.getContext('2d');
    photo.drawImage(bitmap, 0, 0, this.width, this.height);
    const pixels = photo.getImageData(0, 0, this.width, this.height);
    greyed(pixels);
    this.grey.getContext('2d').putImageData(pixels, 0, 0);
    this.sheet = new Sheet(Math.round(this.width / 2), Math.round(this.height / 2));
    this.large = new Float32Array(this.sheet.words.length);
    return this;
  }

  draw(canvas, words, high, opacity) {  // no words: the image alone
    Object.assign(canvas, { width: this.width, height: this.height });
    const context = canvas.getContext('2d'), { maps } = this;
    context.drawImage(words.length ? this.grey : this.photo, 0, 0);
    if (!words.length) return;
    enlarge(maps.mean(words, maps.all), maps.rows, maps.columns, this.sheet.canvas.height, this.sheet.canvas.width, this.large);
    context.globalAlpha = opacity;
    context.drawImage(this.sheet.paint(this.large, maps.tables.viridis, 0, high), 0, 0, this.width, this.height);
  }
}

class Strengths extends App {
  constructor(model, root) {
    super(model, root, { about: model.get('about'), painted: new Map() });
    this.view.place ??= this.about.strengths.length - 1;
    this.off.push(followTheme(root));
    this.build();
    this.listen('msg:custom', (message, buffers) => this.received(message, buffers));
    this.listen('change:offers', () => this.fetch());
    this.listen('change:status', () => this.showStatus());
    this.showStatus();
    this.fetch();
    this.draw();
  }

  get fetchable() { return (this.model.get('offers') ?? []).filter(name => name !== 'paint'); }  // strengths that can be fetched

  build() {
    const { root, about, view } = this, last = about.strengths.length - 1;
    this.text = h('div', { class: 'ss-text' }, about.text);
    this.go = h('button', { type: 'button', class: 'ss-button ss-main-button ss-go', onclick: () => this.model.send({ ask: this.busy ? 'stop' : 'paint' }) }, 'Paint');
    this.bar = h('i', {});
    this.progress = h('div', { class: 'ss-progress ss-strength-progress', role: 'progressbar', 'aria-valuemin': 0, 'aria-valuemax': 100 }, this.bar);
    this.message = h('span', { class: 'ss-message', role: 'status' });
    this.slider = h('input', { type: 'range', min: 0, max: last, step: 1, value: view.place, 'aria-label': `strength of the adapter ${about.name}`, oninput: () => this.choose(Number(this.slider.value)) });
    this.tiles = about.strengths.map((strength, place) => {
      const canvas = newCanvas(96, 96);
      return { canvas, node: h('button', { type: 'button', class: 'ss-cell ss-strength-tile', tabIndex: -1, onclick: () => this.choose(place) }, canvas, h('span', {}, place === about.base ? `${strength} (base)` : String(strength))) };
    });
    this.row = h('div', { class: 'ss-strength-tiles', style: `grid-template-columns: repeat(${last + 1}, minmax(0, 1fr))` }, this.tiles.map(tile => tile.node));
    this.row.style.setProperty('--tiles', last + 1);
    this.shows = choice('show', [['words', 'Words'], ['images', 'Images']], view.show, show => this.change({ show }));
    this.opacity = h('input', { type: 'range', min: 0, max: 1, step: .05, value: view.opacity, 'aria-label': 'opacity of the heat', oninput: () => this.change({ opacity: Number(this.opacity.value) }) });
    this.stages = ['base', 'adapted'].map(name => {
      const canvas = h('canvas', { class: 'ss-canvas', role: 'img' }), caption = h('figcaption', { class: 'ss-caption' }, name);
      return { canvas, caption, node: h('figure', { class: 'ss-stage' }, canvas, caption) };
    });
    root.className = 'ss ss-strength';
    root.setAttribute('data-lm-suppress-shortcuts', 'true');
    root.replaceChildren(h('div', { class: 'ss-strip' }, this.text, h('div', { class: 'ss-row' }, this.shows.node, h('label', { class: 'ss-small' }, 'heat', this.opacity))),
      h('div', { class: 'ss-row' }, this.go, this.message), this.progress, h('div', { class: 'ss-strength-slide', style: `padding: 0 calc(50% / ${last + 1} - 7px)` }, this.slider), this.row, h('div', { class: 'ss-stages' }, this.stages.map(stage => stage.node)));
    this.go.hidden = !this.offers('paint');
  }

  showStatus() {
    const status = this.model.get('status') ?? {};
    this.busy = Boolean(status.busy);
    this.go.textContent = this.busy ? 'Stop' : 'Paint';
    this.go.disabled = !this.busy && this.painted.size === this.about.strengths.length;
    const share = this.busy ? status.done / status.total : 0;
    this.bar.style.transform = `scaleX(${share})`;
    this.progress.setAttribute('aria-valuenow', Math.round(100 * share));
    this.progress.style.visibility = this.busy ? 'visible' : 'hidden';
    this.message.textContent = status.error ?? status.text ?? (this.fetchable.length ? '' : 'nothing is painted yet');
    this.message.classList.toggle('ss-wrong', Boolean(status.error));
  }

  fetch() {
    this.fetchable.forEach(name => this.ask(name));
    this.showStatus();
  }

  async received(message, buffers) {
    if (message.error) { this.message.textContent = message.error; this.message.classList.add('ss-wrong'); return; }
    const place = Number((message.part ?? '').split(':')[1]), one = await new Painted(buffers[0]).open();
    if (!this.painted.size) this.buildWords(one.maps);
    this.painted.set(place, one);
    const { canvas, node } = this.tiles[place];
    Object.assign(canvas, { width: 192, height: Math.round(192 * one.height / one.width) });
    canvas.getContext('2d').drawImage(one.photo, 0, 0, canvas.width, canvas.height);
    node.classList.add('ss-strength-ready');
    this.showStatus();
    this.draw();
  }

  buildWords(maps) {
    if (!this.view.words.length) {
      const named = maps.words.filter(word => word.class_id != null), longest = maps.plain().map(i => maps.words[i]).sort((a, b) => b.text.length - a.text.length);
      this.view.words = [(named[0] ?? longest[0]).index];
    }
    const parts = [], { text } = this.about;
    let at = 0;
    this.buttons = new Map();
    for (const word of maps.words.filter(one => one.kind === 'word' && one.start >= at)) {
      const button = h('button', { type: 'button', class: 'ss-word', onclick: event => this.pick(word.index, event.shiftKey), title: 'shift: together with others' }, word.text, h('i', {}));
      button.style.setProperty('--colour', word.colour);
      this.buttons.set(word.index, button);
      parts.push(text.slice(at, word.start), button);
      at = word.stop;
    }
    this.text.replaceChildren(...parts, text.slice(at));
  }

  pick(index, together) {
    const { words } = this.view, next = !together ? [index] : words.includes(index) ? words.filter(one => one !== index) : [...words, index];
    this.shows.set('words');
    this.change({ words: next.length ? next : [index], show: 'words' });
  }

  choose(place) { this.slider.value = place; this.change({ place }); }

  change(parts) {
    Object.assign(this.view, parts);
    this.model.set('view', { ...this.view });
    this.model.save_changes();
    this.draw();
  }

  nearest(place) {  // the painted strength that is nearest, never the base where there is another
    const { base, strengths } = this.about, others = [...this.painted.keys()].filter(one => one !== base);
    if (place === base || !others.length) return base;
    return others.reduce((best, one) => Math.abs(strengths[one] - strengths[place]) < Math.abs(strengths[best] - strengths[place]) ? one : best);
  }

  draw() {
    const { view, about, painted } = this, base = painted.get(about.base), shown = this.nearest(view.place), adapted = painted.get(shown), both = [base, adapted];
    this.tiles.forEach(({ node }, place) => node.setAttribute('aria-pressed', place === view.place));
    this.slider.setAttribute('aria-valuetext', `${about.strengths[view.place]}`);
    if (this.buttons) for (const [index, button] of this.buttons) button.setAttribute('aria-pressed', view.show === 'words' && view.words.includes(index));
    const words = view.show === 'words' ? view.words : [], there = both.filter(Boolean);
    const high = words.length ? Math.max(...there.map(one => one.maps.facts(words, one.maps.all).high)) : 1;  // one scale for both
    const said = words.length && there.length ? ` · ${words.map(i => there[0].maps.words[i].text).join(', ')}` : '';
    this.stages.forEach(({ canvas, caption, node }, k) => {
      node.style.visibility = both[k] ? 'visible' : 'hidden';
      if (!both[k]) return;
      both[k].draw(canvas, words, high, view.opacity);
      const { average, high: most } = both[k].maps.facts(words.length ? words : [0], both[k].maps.all);
      const name = k === 0 ? 'base' : `strength ${about.strengths[shown]}${shown !== view.place ? ` (${about.strengths[view.place]} is not painted yet)` : ''}`;
      caption.textContent = name + said + (words.length ? ` · mean ${percent(average)}, most ${percent(most)}` : '');
      canvas.setAttribute('aria-label', caption.textContent);
    });
  }
}

const render = opens(Strengths);
