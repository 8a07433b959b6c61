// The browser of a dataset: look at every sample, and keep or reject it.

const MARKS = { accepted: '✓', rejected: '✕' };

class Browser extends App {
  constructor(model, root) {
    super(model, root, { pages: new Map(), facts: null, at: 0, changed: {}, shown: [], cells: new Map() });
    const { about } = unpack(model.get('atlas'));
    Object.assign(this, { samples: about.samples, classes: about.classes, per: about.per_page, size: about.size });
    this.off.push(followTheme(root));
    this.build();
    this.listen('msg:custom', (message, buffers) => this.received(message, buffers));
    this.filter();
  }

  close() { super.close(); clearTimeout(this.sending); this.watch.disconnect(); this.pages.forEach(page => page.urls.forEach(URL.revokeObjectURL)); }

  build() {
    const { root } = this;
    this.stateChoice = choice('decision', [['all', 'All'], ['open', 'Undecided'], ['accepted', 'Accepted'], ['rejected', 'Rejected']], this.view.state, state => this.change({ state }));
    this.classList = h('select', { class: 'ss-select', 'aria-label': 'class', onchange: () => this.change({ class_id: this.classList.value === '' ? null : Number(this.classList.value) }) }, h('option', { value: '' }, 'every class'), this.classes.map(one => h('option', { value: String(one.id) }, one.name)));
    this.classList.value = this.view.class_id == null ? '' : String(this.view.class_id);
    this.order = choice('order', [['number', 'as made'], ['doubt', 'least trusted first'], ['area', 'smallest first', 'by the area of the class, or of all classes together']], this.view.order, order => this.change({ order }));
    this.opacity = h('input', { type: 'range', min: 0, max: 1, step: .05, value: this.view.opacity, 'aria-label': 'opacity of the mask', oninput: () => { this.view.opacity = Number(this.opacity.value); this.root.style.setProperty('--mask', this.view.opacity); } });
    this.tally = h('span', { class: 'ss-quiet', role: 'status' });
    this.grid = h('div', { class: 'ss-grid', role: 'listbox', 'aria-label': 'samples', tabIndex: 0 });
    this.big = h('div', { class: 'ss-big' });
    root.className = 'ss ss-browser';
    root.setAttribute('data-lm-suppress-shortcuts', 'true');
    root.style.setProperty('--mask', this.view.opacity);
    root.replaceChildren(h('div', { class: 'ss-row ss-bar' }, this.stateChoice.node, this.classList, this.order.node, h('label', { class: 'ss-small' }, 'mask', this.opacity), this.tally), h('div', { class: 'ss-browse' }, this.grid, this.big));
    this.watch = new IntersectionObserver(entries => { for (const entry of entries) if (entry.isIntersecting) this.load(Number(entry.target.dataset.index)); }, { root: this.grid, rootMargin: '300px' });
    root.addEventListener('keydown', event => this.keyed(event));
  }

  change(parts) { Object.assign(this.view, parts); this.model.set('view', { ...this.view }); this.model.save_changes(); this.filter(); }

  areaOf(i) { const areas = this.facts.areas[i], { class_id } = this.view; return class_id == null ? Object.values(areas).reduce((a, b) => a + b, 0) : areas[class_id] ?? 0; }

  filter() {  // which samples are listed, in which order
    const { view } = this;
    if (view.order !== 'number' && !this.facts) { this.tally.textContent = 'reading every mask …'; this.ask('facts'); if (this.offers('facts')) return; }
    this.shown = this.samples.map((_, i) => i).filter(i => (view.state === 'all' || (this.samples[i].review || 'open') === view.state) && (view.class_id == null || this.samples[i].class_ids.includes(view.class_id)));
    if (this.facts && view.order !== 'number') { const by = view.order === 'doubt' ? i => this.facts.confidence[i] : i => this.areaOf(i); this.shown.sort((a, b) => by(a) - by(b)); }
    this.at = Math.max(0, Math.min(this.at, this.shown.length - 1));
    this.watch.disconnect();
    this.cells.clear();
    this.grid.replaceChildren(...this.shown.map((index, place) => this.cell(index, place)));
    for (const node of this.grid.children) this.watch.observe(node);
    this.count();
    this.select(this.at, false);
  }

  cell(index, place) {
    const node = h('button', { type: 'button', class: 'ss-sample', role: 'option', tabIndex: -1, 'data-index': index, 'aria-label': this.samples[index].text, onclick: () => { this.select(place); this.grid.focus({ preventScroll: true }); } }, h('b', {}));
    node.style.aspectRatio = `${this.size[1]} / ${this.size[0]}`;
    this.cells.set(index, node);
    this.dress(index);
    return node;
  }

  dress(index) {
    const node = this.cells.get(index), { review } = this.samples[index], page = this.pages.get(Math.floor(index / this.per));
    if (!node) return;
    node.dataset.review = review || '';
    node.lastChild.textContent = MARKS[review] ?? '';
    if (page && node.childElementCount === 1) { const [image, mask] = page.of(index); node.prepend(h('img', { src: image, alt: '' }), h('img', { src: mask, alt: '', class: 'ss-over' })); }
  }

  load(index) {
    const page = Math.floor(index / this.per);
    if (this.pages.has(page)) this.dress(index);
    else this.ask(`page:${page}`);
  }

  received(message, buffers) {
    if (message.error) { this.tally.textContent = message.error; this.tally.classList.add('ss-wrong'); this.asked.clear(); return; }
    if (message.reviewed != null) { this.count(`${message.reviewed} written`); return; }
    if (!message.part) return;
    const { about, tensors } = unpack(buffers[0]);
    if (about.part === 'facts') { this.facts = about; this.filter(); return; }
    const { data } = tensors.bytes, urls = about.ends.map((end, k) => URL.createObjectURL(new Blob([data.subarray(k ? about.ends[k - 1] : 0, end)], { type: k % 2 ? 'image/png' : 'image/jpeg' })));
    const page = { urls, cards: about.cards, first: about.first, of: index => [urls[2 * (index - about.first)], urls[2 * (index - about.first) + 1]] };
    this.pages.set(about.number, page);
    for (let k = 0; k < about.cards.length; k++) this.dress(about.first + k);
    if (this.shown.length && Math.floor(this.shown[this.at] / this.per) === about.number) this.select(this.at, false);
  }

  select(place, scroll = true) {
    const old = this.grid.querySelector('[aria-selected=true]'), index = this.shown[place], node = this.cells.get(index);
    old?.setAttribute('aria-selected', 'false');
    this.at = place;
    if (index == null) { this.big.replaceChildren(h('p', { class: 'ss-quiet' }, 'no sample fits')); return; }
    node.setAttribute('aria-selected', 'true');
    node.id ||= `sample-${index}`;
    this.grid.setAttribute('aria-activedescendant', node.id);
    if (scroll) node.scrollIntoView({ block: 'nearest' });
    this.load(index);
    const sample = this.samples[index], number = Math.floor(index / this.per), page = this.pages.get(number), card = page?.cards[index - page.first], colours = new Map(this.classes.map(one => [one.id, one]));
    const parts = [];
    let at = 0;
    for (const { class_id, start, stop } of sample.mentions) {
      parts.push(sample.text.slice(at, start), h('mark', { style: `--colour: ${colours.get(class_id)?.colour ?? '#999'}` }, sample.text.slice(start, stop)));
      at = stop;
    }
    parts.push(sample.text.slice(at));
    const button = (review, text, key) => h('button', { type: 'button', class: `ss-button ss-decide ${sample.review !== review ? '' : review ? 'ss-main-button' : 'ss-is-on'}`, title: `key ${key}`, 'aria-pressed': sample.review === review, onclick: () => this.decide(review) }, text);
    const picture = h('div', { class: 'ss-frame', title: 'without the mask while the pointer is on it' }, page && [h('img', { src: page.of(index)[0], alt: sample.text }), h('img', { src: page.of(index)[1], alt: '', class: 'ss-over' })]);
    picture.style.aspectRatio = `${this.size[1]} / ${this.size[0]}`;
    this.big.replaceChildren(...[picture, h('p', { class: 'ss-prompt-text' }, parts), this.offers('review') && h('div', { class: 'ss-buttons' }, button('accepted', 'Accept', 'A'), button('rejected', 'Reject', 'R'), button('', 'Undecided', 'U')),
      card ? h('table', { class: 'ss-table' }, h('tbody', {}, Object.entries(card.areas).sort((a, b) => b[1] - a[1]).map(([id, area]) => h('tr', {}, h('td', {}, h('i', { style: `background: ${colours.get(Number(id))?.colour ?? '#999'}` }), colours.get(Number(id))?.name ?? id), h('td', {}, percent(area)))),
        card.void > 0 && h('tr', {}, h('td', {}, h('i', { class: 'ss-void' }), 'left out'), h('td', {}, percent(card.void)))), h('tfoot', {}, h('tr', {}, h('td', {}, 'mean reliability'), h('td', {}, card.confidence.toFixed(2))))) : '',
      h('p', { class: 'ss-quiet' }, `${sample.name} · seed ${sample.seed} · ${place + 1} of ${this.shown.length}`)].filter(Boolean));
  }

  decide(review) {
    const index = this.shown[this.at];
    if (index == null || !this.offers('review')) return;
    const sample = this.samples[index];
    sample.review = review;
    this.changed[sample.name] = review;
    this.dress(index);
    clearTimeout(this.sending);
    this.sending = setTimeout(() => { this.model.send({ ask: 'review', changes: this.changed }); this.changed = {}; }, 300);
    this.count();
    const gone = this.view.state !== 'all' && this.view.state !== (review || 'open');
    if (gone) { const at = this.at; this.filter(); this.select(Math.min(at, Math.max(0, this.shown.length - 1))); } else this.select(review ? Math.min(this.at + 1, this.shown.length - 1) : this.at);
  }

  count(more = '') {
    const { samples } = this, of = review => samples.filter(sample => (sample.review || '') === review).length;
    this.tally.classList.remove('ss-wrong');
    this.tally.textContent = `${this.shown.length} of ${samples.length} · ${of('accepted')} accepted · ${of('rejected')} rejected${more && ` · ${more}`}`;
  }

  keyed(event) {
    if (event.target.matches('input, select') || event.ctrlKey || event.metaKey || event.altKey || event.target.closest('[role=radiogroup]')) return;
    const columns = Math.max(1, Math.round(this.grid.clientWidth / (this.grid.firstElementChild?.offsetWidth + 8 || 1))), by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const act = by ? () => this.select(Math.max(0, Math.min(this.shown.length - 1, this.at + by))) : { a: () => this.decide('accepted'), r: () => this.decide('rejected'), u: () => this.decide('') }[event.key.toLowerCase()];
    if (act) { event.preventDefault(); event.stopPropagation(); act(); }
  }
}

const render = opens(Browser);
