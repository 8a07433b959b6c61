// The explorer: one image, its words, and where each of them looks.

const STAGE = 1, RANK = 2, STRIP = 4, TIME = 8, GALLERY = 16, MASK = 32, SAVE = 64, STATUS = 128, LOOK = 256, ALL = 511;
const NO_EDIT = 254;
const APART = ['#0072b2', '#d55e00', '#cc79a7'];  // missed, claimed without cause, another class: colours that everybody can tell apart

class Stage {
  constructor(app, maps, which) {
    Object.assign(this, { app, maps, which });
    const longest = Math.min(768, Math.max(512, maps.height, maps.width)), factor = longest / Math.max(maps.height, maps.width);
    this.width = Math.round(maps.width * factor);
    this.height = Math.round(maps.height * factor);
    this.canvas = h('canvas', { width: this.width, height: this.height, tabIndex: 0, class: 'ss-canvas', role: 'img' });
    this.context = this.canvas.getContext('2d');
    const fine = Math.min(1, 4 * Math.max(maps.rows, maps.columns, 16) / longest);  // four pixels a place are enough; the canvas does the rest
    this.sheet = new Sheet(Math.round(this.width * fine), Math.round(this.height * fine));
    this.large = new Float32Array(this.sheet.words.length);
    this.labelSheet = new Sheet(maps.width, maps.height);
    this.photo = newCanvas(this.width, this.height);
    this.grey = newCanvas(this.width, this.height);
    this.then = { at: -1, photo: newCanvas(this.width, this.height), grey: newCanvas(this.width, this.height) };  // what the model expected
    this.under = this;
    this.winner = new Sheet(Math.round(this.width / 2), Math.round(this.height / 2));
    this.caption = h('figcaption', { class: 'ss-caption' });
    this.node = h('figure', { class: 'ss-stage' }, this.canvas, this.caption);
    this.listen();
  }

  async open() {
    const bitmap = await decodePicture(this.maps.picture), photo = this.photo.getContext('2d');
    photo.imageSmoothingEnabled = this.width < 2.5 * bitmap.width || bitmap.width > 96;
    photo.drawImage(bitmap, 0, 0, this.width, this.height);
    const pixels = photo.getImageData(0, 0, this.width, this.height);
    greyed(pixels);
    this.grey.getContext('2d').putImageData(pixels, 0, 0);
    this.small = new Map();
  }

  ground(range) {  // what lies under the heat: the image, or what the model expected it to be when the last of these steps was made
    const { app, maps, then, which } = this, at = app.view.base === 'expected' && !which && range[1] < maps.count - 1 ? maps.previewAt(range[1]) : -1;
    if (at < 0) return this;
    if (then.at !== at || then.film !== maps.previews) {
      const { colour, grey, width, height } = maps.previews;
      for (const [to, from] of [[then.photo, colour], [then.grey, grey]]) to.getContext('2d').drawImage(from, 0, at * height, width, height, 0, 0, this.width, this.height);
      Object.assign(then, { at, film: maps.previews });
    }
    return then;
  }

  source(grey) {  // what lies under a mask as a small file, to be put into another
    const { maps, then } = this, film = this.under === then && maps.previews;
    if (!grey && !film) return dataURL(maps.picture);
    const { width, height } = film || maps, canvas = newCanvas(width, height);
    if (film) canvas.getContext('2d').drawImage(grey ? film.grey : film.colour, 0, then.at * height, width, height, 0, 0, width, height);
    else canvas.getContext('2d').drawImage(this.grey, 0, 0, width, height);
    return canvas.toDataURL('image/png');
  }

  thumbnail(width, height) {  // the grey image in the size of a tile
    const key = `${width}x${height}`;
    if (!this.small.has(key)) {
      const tile = newCanvas(width, height);
      tile.getContext('2d').drawImage(this.grey, 0, 0, width, height);
      this.small.set(key, tile);
    }
    return this.small.get(key);
  }

  place(event) {  // the pixel of the image under the pointer
    const box = this.canvas.getBoundingClientRect();
    const clip = (at, most) => Math.max(0, Math.min(most - 1, Math.floor(at)));
    return [clip((event.clientX - box.left) / box.width * this.maps.width, this.maps.width), clip((event.clientY - box.top) / box.height * this.maps.height, this.maps.height)];
  }

  listen() {
    const { app, canvas } = this;
    let stroke = false;
    canvas.addEventListener('pointermove', event => app.moved(event, this, this.place(event), stroke));
    canvas.addEventListener('pointerleave', event => { if (!stroke) app.moved(event, this, null, false); });
    canvas.addEventListener('pointerdown', event => {
      if (event.button) return;
      stroke = app.tool !== 'point';
      if (stroke) { canvas.setPointerCapture(event.pointerId); app.beginStroke(this, this.place(event), event.shiftKey); }
      else app.clicked(this, this.place(event));
    });
    const end = () => { if (stroke) app.endStroke(); stroke = false; };
    canvas.addEventListener('pointerup', end);
    canvas.addEventListener('pointercancel', end);
    canvas.addEventListener('keydown', event => {
      const step = event.shiftKey ? 8 : 1, move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      if (move) {
        event.preventDefault();
        event.stopPropagation();
        const [x, y] = app.pointer ?? [this.maps.width >> 1, this.maps.height >> 1];
        app.moved(event, this, [Math.max(0, Math.min(this.maps.width - 1, x + move[0])), Math.max(0, Math.min(this.maps.height - 1, y + move[1]))], false);
      } else if (event.key === 'Enter' && app.pointer) { event.preventDefault(); app.clicked(this, app.pointer); }
    });
  }

  heat(map, rows, columns, low, high, kind) {
    const { context, app } = this, { opacity } = app.view;
    const { width, height } = this.sheet.canvas;
    enlarge(map, rows, columns, height, width, this.large);
    if (kind === 'light') {
      context.drawImage(this.under.photo, 0, 0);
      context.drawImage(this.sheet.paint(this.large, app.veil(opacity), low, high), 0, 0, this.width, this.height);
    } else {
      context.drawImage(this.under.grey, 0, 0);
      context.globalAlpha = opacity;
      context.drawImage(this.sheet.paint(this.large, this.maps.tables[kind === 'difference' ? 'PuOr_r' : app.view.colours], low, high), 0, 0, this.width, this.height);
      context.globalAlpha = 1;
    }
  }

  winners(range, picks) {  // every pixel in the colour of the word that has most of it
    const { maps } = this, key = `${range}/${picks.join(';')}/${maps.words.length}`;
    if (this.won !== key) {
      const { width, height } = this.winner.canvas, best = new Float32Array(width * height).fill(-1), out = this.winner.words;
      for (const index of maps.plain()) {
        const map = enlarge(maps.one(index, range, picks), maps.rows, maps.columns, height, width), [r, g, b] = rgbOf(maps.words[index].colour), colour = 0xff000000 | b << 16 | g << 8 | r;
        for (let i = 0; i < best.length; i++) if (map[i] > best[i]) { best[i] = map[i]; out[i] = colour; }
      }
      this.winner.show();
      this.won = key;
    }
    return this.winner.canvas;
  }

  paintLabels(labels, colours, opacity) {
    const { width, height } = this.maps, out = this.labelSheet.words, alpha = Math.round(255 * opacity) << 24, thick = Math.max(1, Math.round(width / 250));
    const table = new Uint32Array(256);
    table[0] = (Math.round(90 * opacity) << 24) | 0xffffff;
    colours.forEach(([label, hex]) => { const [r, g, b] = rgbOf(hex); table[label] = alpha | b << 16 | g << 8 | r; });
    const period = Math.max(6, Math.round(height / 22)), stripes = [(alpha | 0xeeeeee) >>> 0, (alpha | 0xcacaca) >>> 0];
    for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
      const label = labels[i];
      out[i] = label === 255 ? stripes[(x + y) % period < period / 2 ? 0 : 1] : table[label];
      if (label && label !== 255 && (x < thick || x >= width - thick || y < thick || y >= height - thick || labels[i - thick] !== label || labels[i + thick] !== label || labels[i - thick * width] !== label || labels[i + thick * width] !== label)) out[i] |= 0xff000000;
    }
    this.layLabels(this.under.photo);
  }

  paintErrors(labels) {  // against the reference: what agrees is quiet
    const { reference } = this.maps, out = this.labelSheet.words, quiet = 0x59ffffff, open = 0xb0b7b7b7;
    const inks = [quiet, ...APART.map(hex => { const [r, g, b] = rgbOf(hex); return (0xd9000000 | b << 16 | g << 8 | r) >>> 0; })];
    for (let i = 0; i < labels.length; i++) {
      const kind = disagreement(labels[i], reference[i]);
      out[i] = kind < 4 ? inks[kind] : reference[i] === 255 ? quiet : open;
    }
    this.layLabels(this.under.grey);
  }

  layLabels(under) {
    this.context.drawImage(under, 0, 0);
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(this.labelSheet.show(), 0, 0, this.width, this.height);
    this.context.imageSmoothingEnabled = true;
  }

  draw() {
    const { app, maps, context } = this, { view } = app, words = app.wordsFor(maps), range = app.rangeFor(maps), picks = this.which ? [] : view.layers, kind = app.kind();
    if (!this.small) return;
    this.says = null;
    this.under = this.ground(range);
    if (kind === 'mask') {
      const labels = app.labels(maps, this.which);
      if (view.truth === 'errors' && maps.reference) this.paintErrors(labels);
      else this.paintLabels(view.truth === 'reference' && maps.reference ? maps.reference : labels, maps.targets(words).map(one => [one.label, one.colour]), view.opacity);
    } else if (kind === 'self') {
      const { map, rows, columns } = maps.selfRow(...view.pin);
      this.says = { map, rows, columns, range: extent(map), name: 'looked at from the pin' };
      this.heat(map, rows, columns, ...this.says.range, view.show === 'light' ? 'light' : 'heat');
    } else if (kind === 'winner') {
      context.drawImage(this.under.grey, 0, 0);
      context.globalAlpha = view.opacity * .9;
      context.drawImage(this.winners(range, picks), 0, 0, this.width, this.height);
      context.globalAlpha = 1;
    } else if (!words.length) context.drawImage(this.under.photo, 0, 0);
    else if (kind === 'difference' && this.which) {
      const one = stretched(app.stages[0].maps.mean(app.shownWords(), app.rangeFor(app.stages[0].maps), view.layers)), other = stretched(maps.mean(words, range));
      const first = app.stages[0].maps, same = first.rows === maps.rows && first.columns === maps.columns ? one : enlarge(one, first.rows, first.columns, maps.rows, maps.columns);
      const map = other.map((v, i) => v - same[i]);
      this.says = { map, rows: maps.rows, columns: maps.columns, range: [-1, 1], name: 'right minus left' };
      this.heat(map, maps.rows, maps.columns, -1, 1, 'difference');
    } else {
      const map = kind === 'spread' ? maps.spread(words, range, picks) : maps.mean(words, range, picks);
      const limits = kind === 'spread' ? [0, extent(map)[1]] : maps.limits(view.scale, words, range, picks);
      this.says = { map, rows: maps.rows, columns: maps.columns, range: limits, name: words.map(i => maps.words[i].text).join(' + ') };
      this.heat(map, maps.rows, maps.columns, ...limits, kind === 'difference' ? 'heat' : kind);
    }
    this.marks();
  }

  marks() {  // what was drawn by hand, the pin, and the pointer's twin on the other image
    const { context, app, maps } = this, unit = this.width / maps.width, ring = (x, y, radius, width, colour) => {
      context.beginPath();
      context.arc((x + .5) * unit, (y + .5) * unit, radius, 0, 7);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    };
    if (app.region && !this.which && app.kind() !== 'mask') {
      context.imageSmoothingEnabled = false;
      context.drawImage(app.regionCanvas, 0, 0, this.width, this.height);
      context.imageSmoothingEnabled = true;
    }
    for (const [at, radius] of [[app.view.pin, 7], [app.pointer && (app.over !== this || app.byKey || app.tool !== 'point') ? app.pointer : null, app.tool === 'point' ? 5 : app.brush * unit]]) {
      if (!at) continue;
      ring(...at, radius, 3.5, 'rgba(16, 19, 26, .75)');
      ring(...at, radius, 1.5, '#fff');
    }
  }
}

class Explorer extends App {
  constructor(model, root) {
    super(model, root, { stages: [], tool: 'point', brush: 6, hover: null, pointer: null, over: null, region: null, lastPanel: 'look', undo: [], clock: [], handling: 0, strokes: 0, dirty: 0 });
    this.channel = new MessageChannel();
    this.channel.port1.onmessage = () => this.painted();
    this.build();
    this.off.push(followTheme(root, () => this.touch(TIME | MASK)));
    this.listen('change:atlas', () => this.load());
    this.listen('change:beside', () => this.load());
    this.listen('change:offers', () => this.touch(ALL));
    this.listen('change:view', () => { if (JSON.stringify({ ...this.view, ...this.model.get('view') }) !== JSON.stringify(this.view)) this.setView(this.model.get('view'), false); });
    this.listen('change:status', () => this.showStatus());
    this.listen('msg:custom', (message, buffers) => this.received(message, buffers));
    this.showStatus();
    this.ready = this.load();
  }

  close() { super.close(); this.pause(); clearTimeout(this.later); clearTimeout(this.telling); this.resizer.disconnect(); }
  get maps() { return this.stages[0]?.maps; }

  async load() {
    const data = [this.model.get('atlas'), this.model.get('beside')].filter(one => one?.byteLength);
    const stages = data.map((one, i) => new Stage(this, new Maps(one), i));
    await Promise.all(stages.map(stage => stage.open()));
    this.pause();
    this.stages = stages;
    this.asked.clear();
    Object.assign(this, { hover: null, pointer: null, over: null, region: null, undo: [], edits: null });
    this.root.classList.toggle('ss-empty', !stages.length);
    this.stageBox.replaceChildren(...stages.map(stage => stage.node));
    this.root.classList.toggle('ss-two', stages.length > 1);
    if (stages.length) {
      this.buildStrip();
      this.setView(this.model.get('view'), false);
      this.brush = Math.max(2, Math.round(this.maps.width / 24));
      Object.assign(this.size, { max: Math.round(this.maps.width / 6), value: this.brush });
      this.fit();
      this.touch(ALL);
      if (this.model.parts || this.view.base === 'expected') this.ask('previews');  // a page has them at hand; elsewhere they are made when somebody wants them
      this.warm(this.maps, 0);
    }
  }

  warm(maps, index) {  // sum up word after word while nothing else is to do, so that the first look at each is as quick as the next
    if (maps !== this.maps || index >= maps.words.length) return;
    (window.requestIdleCallback ?? setTimeout)(() => { maps.history([index]); this.warm(maps, index + 1); });
  }

  // State

  setView(given, tell = true) {
    const view = { ...this.view, ...given }, { maps } = this;
    if (maps) {
      view.words = view.words.filter(i => i < maps.words.length);
      if (view.steps) view.steps = view.steps.map(s => Math.max(0, Math.min(maps.count - 1, s)));
      if (view.pin && (view.pin[0] >= maps.width || view.pin[1] >= maps.height)) view.pin = null;
    }
    this.view = view;
    for (const [key, set] of Object.entries(this.controls)) set(view[key]);
    if (view.layers.length) this.ask('layers');
    if (view.base === 'expected') this.ask('previews');
    this.touch(ALL);
    if (tell) this.tell();
  }

  change(parts, flags) { Object.assign(this.view, parts); this.touch(flags); this.tell(); }

  tell() {  // let Python know, but not on every move
    clearTimeout(this.telling);
    this.telling = setTimeout(() => {
      const { maps } = this;
      this.model.set('view', structuredClone(this.view));
      if (maps && this.subject === 'mask') this.model.set('labels', new DataView(this.labels(maps, 0).slice().buffer));
      this.model.save_changes();
    }, 250);
  }

  ask(name) {
    const { maps } = this;
    if (maps && !maps.has.has(name) && super.ask(name)) this.say(`fetching ${{ previews: 'what the model expected', self: 'self-attention', layers: 'layers and heads' }[name] ?? name.replace('mask:', 'the mask by ')} …`);
  }

  async received(message, buffers) {
    if (message.error) { this.asked.clear(); this.say(message.error, true); this.touch(LOOK); return; }
    if (message.file) { download(message.file, buffers[0], message.type); this.say(`saved ${message.file}`); return; }
    const { maps } = this;
    if (message.part && maps) {
      await maps.add(buffers[0]);
      if (maps !== this.maps) return;
      if (message.part === 'words') { this.buildStrip(); this.view.words = [this.maps.words.length - 1]; this.addWord.value = ''; }
      this.say('');
      this.touch(ALL);
    }
  }

  say(text, wrong = false) { this.message.textContent = text; this.message.classList.toggle('ss-wrong', wrong); }

  showStatus() {
    const { busy = false, done = 0, total = 0, text = '', error = '' } = this.model.get('status') ?? {};
    this.bar.style.transform = `scaleX(${total ? done / total : 0})`;
    this.progress.hidden = !busy;
    this.go.textContent = busy ? 'Stop' : 'Generate';
    this.go.classList.toggle('ss-main-button', !busy);
    if (error || text || this.told) this.say(error || text, Boolean(error));
    this.told = true;
  }

  // What is shown

  shownWords() { return this.hover?.word != null ? [this.hover.word] : this.view.words; }

  wordsFor(maps) {  // the same words in another prompt: by their text, and by which of equal ones they are
    const words = this.shownWords();
    if (maps === this.maps) return words;
    const key = (list, word) => `${word.text}/${list.filter(one => one.text === word.text && one.index < word.index).length}`;
    const places = new Map(maps.words.map(word => [key(maps.words, word), word.index]));
    return words.map(i => places.get(key(this.maps.words, this.maps.words[i]))).filter(i => i != null);
  }

  rangeFor(maps) {
    const range = this.hover?.steps ?? this.view.steps;
    if (!range) return maps.all;
    const factor = maps.count / this.maps.count;
    return maps === this.maps ? range : [Math.min(maps.count - 1, Math.floor(range[0] * factor)), Math.max(0, Math.min(maps.count - 1, Math.ceil((range[1] + 1) * factor) - 1))];
  }

  get subject() { return this.view.panel === 'save' ? this.lastPanel : this.view.panel; }  // what is saved is what was seen before

  kind() {
    const { view } = this;
    if (this.hover) return ['light', 'spread', 'difference'].includes(view.show) ? view.show : 'heat';
    if (this.subject === 'mask') return 'mask';
    if (view.pin && this.maps.self) return 'self';
    return view.show;
  }

  veil(opacity) {
    if (this.veilFor !== opacity) {
      this.veilFor = opacity;
      this.veilTable = Uint32Array.from({ length: 256 }, (_, i) => (Math.round((255 - i) * Math.min(1, opacity * 1.15)) << 24 | 0x1a1310) >>> 0);
    }
    return this.veilTable;
  }

  labels(maps, which) {
    const { view } = this;
    if (view.recipe && !maps.masks.has(view.recipe)) this.ask(`mask:${view.recipe}`);
    const given = view.recipe && maps.masks.get(view.recipe);
    const source = given || maps.scores(which ? this.wordsFor(maps) : view.words, which ? this.rangeFor(maps) : view.steps ?? maps.all, which ? [] : view.layers, view.power);
    const memo = maps.lastCut, edits = which ? null : this.edits;
    if (memo && memo.source === source && memo.low === view.low && memo.high === view.high && memo.edits === edits && memo.strokes === this.strokes) return memo.labels;
    let labels = given || maps.cut(source, view.low, view.high);
    if (edits) { labels = labels.slice(); for (let i = 0; i < labels.length; i++) if (edits[i] !== NO_EDIT) labels[i] = edits[i]; }
    maps.lastCut = { source, low: view.low, high: view.high, edits, strokes: this.strokes, labels };
    return labels;
  }

  // The pointer

  moved(event, stage, place, drawing) {
    const began = performance.now();
    this.pointer = place && (stage.which ? this.otherPlace(stage, place) : place);
    this.over = place ? stage : null;
    this.byKey = event.type === 'keydown';
    if (drawing && place && !stage.which) this.stroke(place);
    const linked = this.stages.length > 1 || this.byKey || this.tool !== 'point';
    this.touch(RANK | (linked ? STAGE : 0), event);
    this.handling += performance.now() - began;
  }

  otherPlace(stage, [x, y]) { return [Math.floor(x * this.maps.width / stage.maps.width), Math.floor(y * this.maps.height / stage.maps.height)]; }

  clicked(stage, place) {
    const at = stage.which ? this.otherPlace(stage, place) : place, old = this.view.pin;
    const again = old && Math.hypot(old[0] - at[0], old[1] - at[1]) < 5 * this.maps.width / 256;
    this.say('');
    if (!again) this.ask('self');
    this.change({ pin: again ? null : at }, STAGE | RANK | STATUS | SAVE);
  }

  beginStroke(stage, place, add) {
    if (stage.which) return;
    const { maps } = this, size = maps.width * maps.height;
    if (this.tool === 'brush') {
      this.edits ??= new Uint8Array(size).fill(NO_EDIT);
      this.undo.push(this.edits.slice());
      if (this.undo.length > 20) this.undo.shift();
    } else if (!this.region || !add) {
      this.region = new Uint8Array(size);
      this.regionCanvas = newCanvas(maps.width, maps.height);
    }
    this.last = place;
    this.stroke(place);
    this.touch(STAGE | RANK | MASK);
  }

  stroke([x, y]) {
    const { maps, brush } = this, paint = this.tool === 'brush' ? this.edits : this.region;
    if (!paint) return;
    const [fromX, fromY] = this.last ?? [x, y], pieces = Math.max(1, Math.ceil(Math.hypot(x - fromX, y - fromY) / Math.max(1, brush / 2)));
    for (let p = 1; p <= pieces; p++) {
      const cx = fromX + (x - fromX) * p / pieces, cy = fromY + (y - fromY) * p / pieces;
      for (let j = Math.max(0, Math.floor(cy - brush)); j <= Math.min(maps.height - 1, Math.ceil(cy + brush)); j++)
        for (let i = Math.max(0, Math.floor(cx - brush)); i <= Math.min(maps.width - 1, Math.ceil(cx + brush)); i++)
          if ((i - cx) ** 2 + (j - cy) ** 2 <= brush * brush) paint[j * maps.width + i] = this.tool === 'brush' ? this.ink : 1;
    }
    this.last = [x, y];
    this.strokes++;
    if (this.tool === 'scribble') {
      const context = this.regionCanvas.getContext('2d');
      context.strokeStyle = 'rgba(255, 255, 255, .9)';
      context.lineWidth = 2 * brush;
      context.lineCap = context.lineJoin = 'round';
      context.globalCompositeOperation = 'source-over';
      context.beginPath();
      context.moveTo(fromX + .5, fromY + .5);
      context.lineTo(x + .5, y + .5);
      context.stroke();
    }
    this.touch(STAGE | (this.tool === 'brush' ? MASK : 0));
  }

  endStroke() {
    this.last = null;
    if (this.tool === 'scribble') {
      const context = this.regionCanvas.getContext('2d'), pixels = context.createImageData(this.maps.width, this.maps.height), words = new Uint32Array(pixels.data.buffer), { region } = this, { width } = this.maps;
      for (let i = 0; i < region.length; i++) if (region[i]) words[i] = region[i - 1] && region[i + 1] && region[i - width] && region[i + width] ? 0x33ffffff : 0xffffffff;
      context.putImageData(pixels, 0, 0);
    }
    this.touch(STAGE | RANK | MASK);
    if (this.tool === 'brush') this.tell();
  }

  pick(index, add) {
    const { view } = this, words = add ? (view.words.includes(index) ? view.words.filter(i => i !== index) : [...view.words, index]) : view.words.length === 1 && view.words[0] === index ? [] : [index];
    this.hover = null;
    this.say('');
    this.change({ words, pin: null, ...(view.show === 'winner' && words.length ? { show: 'heat' } : {}) }, ALL);
    this.controls.show(this.view.show);
  }

  // Time

  get playing() { return this.player != null; }

  pause() {
    clearInterval(this.player);
    this.player = null;
    if (this.playButton) { this.playButton.textContent = '▶'; this.playButton.setAttribute('aria-label', 'play'); }
  }

  play() {
    if (this.playing || !this.maps || this.maps.count < 2) { this.pause(); return; }
    this.playButton.textContent = '❚❚';
    this.playButton.setAttribute('aria-label', 'pause');
    const last = this.maps.count - 1;
    if (!this.view.steps || this.view.steps[1] >= last) { const span = this.view.steps ? this.view.steps[1] - this.view.steps[0] : 0; this.change({ steps: [0, Math.min(span, last)] }, ALL); }
    this.player = setInterval(() => {
      const [a, b] = this.view.steps ?? [0, 0];
      if (b >= last) { this.pause(); return; }
      this.change({ steps: [a + 1, b + 1] }, STAGE | RANK | STRIP | TIME | GALLERY | MASK | SAVE | STATUS);
    }, Math.max(60, Math.min(240, 4000 / this.maps.count)));
  }

  setSteps(first, last) {
    const { count } = this.maps, range = [Math.max(0, Math.min(first, last)), Math.min(count - 1, Math.max(first, last))];
    this.change({ steps: range[0] === 0 && range[1] === count - 1 ? null : range }, STAGE | RANK | STRIP | TIME | GALLERY | MASK | SAVE | STATUS);
  }

  stepsText() {
    const { maps, view } = this;
    if (maps.count < 2 || view.layers.length) return 'mean over all steps';
    const [a, b] = view.steps ?? maps.all, name = k => maps.steps[k] + 1;
    return !view.steps ? `all ${maps.count} steps` : a === b ? `step ${name(a)} of ${maps.num_steps}` : `steps ${name(a)} to ${name(b)} of ${maps.num_steps}`;
  }

  // The page

  build() {
    const { root, view } = this, controls = this.controls = {};
    const bound = (key, label, options, flags, after = () => {}) => {
      const made = choice(label, options, view[key], value => { this.change({ [key]: value }, flags); after(value); });
      controls[key] = made.set;
      return made;
    };
    const slider = (key, label, least, most, step, flags) => {
      const input = h('input', { type: 'range', min: least, max: most, step, value: view[key], 'aria-label': label, oninput: () => { this.change({ [key]: Number(input.value) }, flags); controls[key](input.value); } });
      controls[key] = value => { input.value = value; };
      return h('label', { class: 'ss-field' }, h('span', {}, label), input);
    };

    this.prompt = h('input', { type: 'text', class: 'ss-prompt', 'aria-label': 'prompt', placeholder: 'a photo of a cat and a dog on grass', spellcheck: false, onkeydown: event => { if (event.key === 'Enter') this.generate(); } });
    this.seed = h('input', { type: 'number', min: 0, step: 1, value: 0, 'aria-label': 'seed' });
    this.count = h('input', { type: 'number', min: 1, step: 1, value: 20, 'aria-label': 'steps' });
    this.go = h('button', { type: 'button', class: 'ss-button ss-main-button ss-go', onclick: () => this.generate() }, 'Generate');
    this.bar = h('i', {});
    this.progress = h('div', { class: 'ss-progress', role: 'progressbar', 'aria-label': 'generating', hidden: true }, this.bar);
    const made = this.model.get('asking');
    if (made) { this.prompt.value = made.prompt ?? ''; this.seed.value = made.seed ?? 0; this.count.value = made.steps ?? 20; }
    const form = h('div', { class: 'ss-form', hidden: !made }, this.prompt, h('label', { class: 'ss-small' }, 'steps', this.count), h('label', { class: 'ss-small' }, 'seed', this.seed), this.go);

    this.strip = h('div', { class: 'ss-strip', role: 'toolbar', 'aria-label': 'words of the prompt' });
    this.stageBox = h('div', { class: 'ss-stages' });
    this.readout = h('div', { class: 'ss-readout' });
    this.scaleBar = h('canvas', { width: 256, height: 1, class: 'ss-scale' });
    this.scaleLow = h('span', {});
    this.scaleHigh = h('span', {});
    this.legend = h('div', { class: 'ss-legend' }, this.scaleLow, this.scaleBar, this.scaleHigh);
    const tools = choice('tool', [['point', 'Point', 'point at a pixel: which words are there? click pins it (V)'], ['scribble', 'Scribble', 'draw on the image: which words are inside? (S)'], ['brush', 'Brush', 'correct the mask by hand (B)']], 'point', value => this.setTool(value));
    this.toolChoice = tools;
    this.message = h('span', { class: 'ss-message', role: 'status' }, 'point at a word, or at a place of the image');
    this.live = h('span', { class: 'ss-hidden', 'aria-live': 'polite' });

    // look
    this.rankTitle = h('h3', {});
    this.ranks = Array.from({ length: 10 }, () => {
      const row = { fill: h('i', {}), name: h('b', {}), value: h('span', {}) };
      row.node = h('button', { type: 'button', class: 'ss-rank', tabIndex: -1, onclick: event => { if (row.index != null) this.pick(row.index, event.shiftKey); } }, row.name, h('u', {}, row.fill), row.value);
      return row;
    });
    const show = bound('show', 'what is shown', [['heat', 'Heat', 'where the word looks'], ['light', 'Light', 'the image, lit where the word looks'], ['winner', 'Winner', 'which word has most of each place'], ['spread', 'Spread', 'how unsure: standard deviation over the steps, or over the layers and heads that were picked'], ['difference', 'B − A', 'on the right: right minus left, each stretched from 0 to 1']], STAGE | STATUS | SAVE | LOOK);
    this.showChoice = show;
    const scale = bound('scale', 'scale of the colours', [['own', 'this map', 'from its smallest to its greatest value'], ['words', 'all words', 'from 0 to the greatest value of any word, so that words compare'], ['steps', 'all steps', 'from 0 to the greatest value of any step, so that steps compare']], STAGE | GALLERY | STATUS);
    const colours = bound('colours', 'colours', [['viridis', 'viridis'], ['cividis', 'cividis'], ['magma', 'magma'], ['gray', 'grey']], STAGE | GALLERY | STATUS);
    const base = bound('base', 'image under the heat', [['final', 'finished'], ['expected', 'as expected then', 'what the model expected the image to become, at the last of the chosen steps']], STAGE | STATUS | TIME, value => { if (value === 'expected') this.ask('previews'); });
    this.baseField = h('div', { class: 'ss-field' }, h('span', {}, 'Image'), base.node);
    this.lookPanel = h('div', { class: 'ss-panel' }, this.rankTitle, h('div', { class: 'ss-ranks' }, this.ranks.map(row => row.node)),
      h('div', { class: 'ss-fields' }, h('div', { class: 'ss-field' }, h('span', {}, 'Show'), show.node), h('div', { class: 'ss-field' }, h('span', {}, 'Scale'), scale.node), h('div', { class: 'ss-field' }, h('span', {}, 'Colours'), colours.node), this.baseField, slider('opacity', 'Opacity', 0, 1, .05, STAGE)));

    // mask
    this.histogram = h('canvas', { class: 'ss-histogram', tabIndex: 0, role: 'slider', 'aria-label': 'thresholds; arrows move both, with shift the upper one', 'aria-valuemin': 0, 'aria-valuemax': 1 });
    this.listenHistogram();
    this.recipes = h('select', { class: 'ss-select', 'aria-label': 'rule', onchange: () => { this.change({ recipe: this.recipes.value }, STAGE | MASK | SAVE | STATUS); if (this.recipes.value) this.ask(`mask:${this.recipes.value}`); } });
    controls.recipe = value => { this.recipes.value = value; };
    this.otsuButton = h('button', { type: 'button', class: 'ss-button', title: 'the threshold that separates the two groups the most', onclick: () => { const t = Math.round(1000 * Math.min(.999, this.score().otsu)) / 1000; this.change({ low: t, high: t }, STAGE | MASK | SAVE); } }, 'Otsu');
    this.bandText = h('span', { class: 'ss-quiet' });
    this.powerField = slider('power', 'Flow', 0, 4, 1, STAGE | MASK | SAVE);
    this.powerField.title = 'let the heat flow along self-attention, so many times';
    const truth = bound('truth', 'mask or reference', [['mask', 'Mask'], ['reference', 'Reference'], ['errors', 'Errors', 'where the mask differs from the reference']], STAGE);
    this.truthChoice = truth;
    this.table = h('table', { class: 'ss-table' });
    this.apart = h('div', { class: 'ss-apart' });
    this.inks = h('div', { class: 'ss-inks', role: 'radiogroup', 'aria-label': 'what the brush paints' });
    this.size = h('input', { type: 'range', min: 1, max: 40, value: this.brush, 'aria-label': 'size of the brush', oninput: () => { this.brush = Number(this.size.value); } });
    this.undoButton = h('button', { type: 'button', class: 'ss-button', onclick: () => this.takeBack() }, 'Undo');
    this.brushRow = h('div', { class: 'ss-fields' }, h('div', { class: 'ss-field' }, h('span', {}, 'Brush'), this.inks), h('label', { class: 'ss-field' }, h('span', {}, 'Size'), this.size, this.undoButton));
    this.liveRule = h('div', {}, h('div', { class: 'ss-histogram-box' }, this.histogram), h('div', { class: 'ss-row' }, this.bandText, this.otsuButton), h('div', { class: 'ss-fields' }, this.powerField));
    this.maskPanel = h('div', { class: 'ss-panel' }, h('div', { class: 'ss-fields' }, h('div', { class: 'ss-field' }, h('span', {}, 'Rule'), this.recipes)), this.liveRule, this.table, this.apart, h('div', { class: 'ss-fields' }, this.truthField = h('div', { class: 'ss-field' }, h('span', {}, 'Show'), truth.node), slider('opacity', 'Opacity', 0, 1, .05, STAGE)), this.brushRow);
    controls.opacity = value => { root.querySelectorAll('input[aria-label=Opacity]').forEach(input => { input.value = value; }); };

    // save
    const save = (text, title, act) => h('button', { type: 'button', class: 'ss-button', title, onclick: act }, text);
    this.code = h('pre', { class: 'ss-code', tabIndex: 0 });
    this.pageButton = save('HTML page', 'this explorer as one file that needs no kernel and no network', () => { this.say('writing the page …'); this.model.send({ ask: 'page' }); });
    this.savePanel = h('div', { class: 'ss-panel' }, h('div', { class: 'ss-buttons' }, save('PNG', 'the picture as it is shown', () => this.savePNG()), save('SVG', 'the picture with its caption; a mask as outlines that a drawing program can edit', () => this.saveSVG()), save('Mask', 'the mask as a PNG of labels in grey', () => this.saveMask()), save('State', 'all settings as JSON, to be opened again', () => download('view.json', JSON.stringify(this.view, null, 1), 'application/json')), this.pageButton),
      h('div', { class: 'ss-row' }, h('h3', {}, 'The code that reproduces it'), save('Copy', 'copy the code', () => navigator.clipboard?.writeText(this.code.textContent).then(() => this.say('copied')))), this.code);

    this.tabs = bound('panel', 'panel', [['look', 'Look'], ['mask', 'Mask'], ['save', 'Save']], ALL, () => { if (this.subject !== 'mask' && this.tool === 'brush') this.setTool('point'); });
    this.side = h('div', { class: 'ss-side' }, this.tabs.node, this.lookPanel, this.maskPanel, this.savePanel);

    // time
    this.playButton = h('button', { type: 'button', class: 'ss-button ss-play', 'aria-label': 'play', title: 'play (space)', onclick: () => this.play() }, '▶');
    this.timeline = h('canvas', { class: 'ss-timeline', tabIndex: 0, role: 'slider', 'aria-label': 'denoising steps; arrows move, with shift they widen', 'aria-valuemin': 1 });
    this.film = h('canvas', { class: 'ss-film', title: 'what the model expected the image to become, step by step' });
    this.filmButton = h('button', { type: 'button', class: 'ss-link ss-wanted', title: 'the prediction of the finished image that each step rests on, decoded', onclick: () => { this.ask('previews'); this.touch(LOOK); } }, 'show what the model expected at each step');
    this.timeText = h('button', { type: 'button', class: 'ss-link', title: 'all steps', onclick: () => { this.pause(); this.setSteps(0, this.maps.count - 1); } });
    this.timeBox = h('div', { class: 'ss-time' }, this.playButton, h('div', { class: 'ss-track' }, this.timeline, h('span', {}, 'noise'), h('span', {}, 'image')), this.timeText, this.film, this.filmButton);
    for (const canvas of [this.timeline, this.film]) this.listenSteps(canvas);

    // gallery
    this.galleryTabs = bound('gallery', 'small pictures', [['words', 'Words', 'every word, on one scale'], ['steps', 'Steps', 'this word, step by step'], ['layers', 'Layers & heads', 'this word, layer by layer and head by head']], GALLERY, value => { if (value === 'layers') this.ask('layers'); });
    this.order = bound('order', 'order of the layers', [['depth', 'by depth'], ['focus', 'by focus', 'the most concentrated first (entropy)'], ['likeness', 'by likeness', 'those most like the mean first'], ['fit', 'by fit', 'those that overlap the mask the most first']], GALLERY);
    this.galleryNote = h('span', { class: 'ss-quiet' });
    this.gallery = h('div', { class: 'ss-gallery' });
    const galleryBox = h('div', { class: 'ss-gallery-box' }, h('div', { class: 'ss-row' }, this.galleryTabs.node, this.order.node, this.galleryNote), this.gallery);

    root.className = 'ss';
    root.setAttribute('data-lm-suppress-shortcuts', 'true');
    root.replaceChildren(form, this.progress, this.strip,
      h('div', { class: 'ss-main' }, h('div', { class: 'ss-left' }, this.stageBox, h('div', { class: 'ss-under' }, this.readout, this.legend), h('div', { class: 'ss-row' }, tools.node, this.message)), this.side),
      this.timeBox, galleryBox, this.live);
    root.addEventListener('keydown', event => this.keyed(event));
    this.resizer = new ResizeObserver(() => { this.fit(); this.touch(TIME | MASK); });
    this.resizer.observe(root);
  }

  fit() {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    for (const canvas of [this.timeline, this.film, this.histogram]) {
      const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
      if (width && (canvas.width !== width || canvas.height !== height)) Object.assign(canvas, { width, height });
    }
  }

  buildStrip() {
    const { maps } = this, chip = word => {
      const button = h('button', { type: 'button', class: `ss-word ss-is-${word.kind}`, title: word.kind === 'special' ? `the ${word.text} token, which is no word` : word.kind === 'side' ? 'not in the prompt' : '' }, word.text, h('i', {}));
      button.style.setProperty('--colour', word.colour);
      button.addEventListener('pointerenter', event => this.hovered(event, { word: word.index }));
      button.addEventListener('pointerleave', event => this.hovered(event, null));
      button.addEventListener('focus', event => { if (button.matches(':focus-visible')) this.hovered(event, { word: word.index }); });
      button.addEventListener('blur', event => this.hovered(event, null));
      button.addEventListener('click', event => this.pick(word.index, event.shiftKey));
      return button;
    };
    this.chips = maps.words.map(chip);
    const parts = [];
    let at = 0;
    for (const word of maps.words.filter(one => one.start >= 0).sort((a, b) => a.start - b.start)) {
      if (word.start > at) parts.push(h('span', {}, maps.text.slice(at, word.start)));
      parts.push(this.chips[word.index]);
      at = word.stop;
    }
    if (at < maps.text.length) parts.push(h('span', {}, maps.text.slice(at)));
    const specials = maps.words.filter(word => word.kind === 'special').map(word => this.chips[word.index]), sides = maps.words.filter(word => word.kind === 'side').map(word => this.chips[word.index]);
    this.addWord ??= h('input', { type: 'text', class: 'ss-add', placeholder: '+ another word', 'aria-label': 'a word that the prompt does not have', title: 'the finished image, noised, looked at once more with this word', onkeydown: event => { if (event.key === 'Enter' && this.addWord.value.trim()) { this.say('looking …'); this.model.send({ ask: 'words', text: this.addWord.value.trim() }); } } });
    this.addWord.hidden = !this.offers('words');
    this.strip.replaceChildren(h('span', { class: 'ss-text' }, parts), h('span', { class: 'ss-extra' }, sides, this.addWord, specials));
    this.strip.onkeydown = event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], now = this.chips.indexOf(document.activeElement);
      if (!step || now < 0) return;
      event.preventDefault();
      event.stopPropagation();
      this.chips[(now + step + this.chips.length) % this.chips.length].focus();
    };
  }

  hovered(event, hover) {
    const began = performance.now();
    this.hover = hover;
    this.touch(STAGE | STATUS | STRIP | TIME, event);
    this.handling += performance.now() - began;
  }

  setTool(tool) {
    this.tool = tool;
    this.toolChoice.set(tool);
    if (tool === 'brush' && this.view.panel !== 'mask') { this.change({ panel: 'mask' }, ALL); this.controls.panel('mask'); }
    if (tool === 'scribble' && this.view.panel === 'mask') { this.change({ panel: 'look' }, ALL); this.controls.panel('look'); }
    if (tool !== 'scribble') this.region = null;
    this.root.dataset.tool = tool;
    this.touch(STAGE | RANK);
  }

  takeBack() { this.edits = this.undo.pop() ?? null; this.touch(STAGE | MASK); this.tell(); }

  keyed(event) {
    if (event.target.matches('input, textarea, select') || event.ctrlKey || event.metaKey || event.altKey || !this.maps) return;
    const act = { v: () => this.setTool('point'), s: () => this.setTool('scribble'), b: () => this.setTool('brush'), ' ': event.target.matches('button') ? null : () => this.play(), '[': () => this.shift(-1), ']': () => this.shift(1),
      Escape: () => { this.region = null; this.hover = null; this.change({ pin: null }, ALL); }, z: () => this.view.panel === 'mask' && this.takeBack() }[event.key];
    if (act) { event.preventDefault(); event.stopPropagation(); act(); }
  }

  shift(by) {
    const [a, b] = this.view.steps ?? (by > 0 ? [-1, -1] : [this.maps.count, this.maps.count]), last = this.maps.count - 1;
    this.pause();
    if (a + by >= 0 && b + by <= last) this.setSteps(a + by, b + by);
  }

  listenSteps(canvas) {  // of the timeline, or of the film above it, which also shows what was expected then
    let from = null, moving = null;
    const stepAt = event => { const box = canvas.getBoundingClientRect(); return Math.max(0, Math.min(this.maps.count - 1, Math.floor((event.clientX - box.left) / box.width * this.maps.count))); };
    canvas.addEventListener('pointerdown', event => {
      if (!this.maps || event.button) return;
      canvas.setPointerCapture(event.pointerId);
      this.pause();
      from = stepAt(event);
      if (canvas === this.film && this.view.base !== 'expected') { this.change({ base: 'expected' }, STAGE); this.controls.base('expected'); }
      const { steps } = this.view;
      moving = steps && steps[1] > steps[0] && from >= steps[0] && from <= steps[1] ? [...steps] : null;
      if (!moving) this.setSteps(from, from);
    });
    canvas.addEventListener('pointermove', event => {
      if (from == null || !this.maps) return;
      const to = stepAt(event);
      if (moving) { const by = Math.max(-moving[0], Math.min(this.maps.count - 1 - moving[1], to - from)); this.setSteps(moving[0] + by, moving[1] + by); }
      else this.setSteps(from, to);
      this.touch(0, event);
    });
    const end = () => { from = null; };
    canvas.addEventListener('pointerup', end);
    canvas.addEventListener('pointercancel', end);
    canvas.addEventListener('dblclick', () => this.setSteps(0, this.maps.count - 1));
    canvas.addEventListener('keydown', event => {
      const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (event.key === 'Home' || event.key === 'End') { event.preventDefault(); const at = event.key === 'Home' ? 0 : this.maps.count - 1; this.setSteps(at, at); return; }
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.shiftKey) { const [a, b] = this.view.steps ?? this.maps.all; this.setSteps(a, Math.max(a, b + by)); } else this.shift(by);
    });
  }

  listenHistogram() {
    const canvas = this.histogram;
    let held = null;
    const at = event => { const box = canvas.getBoundingClientRect(); return Math.max(.01, Math.min(.99, (event.clientX - box.left) / box.width)); };
    const move = event => {
      if (!held) return;
      const value = Math.round(at(event) * 200) / 200, { low, high } = this.view;
      if (held === 'both') this.change({ low: value, high: value }, STAGE | MASK | SAVE, event);
      else if (held === 'low') this.change({ low: Math.min(value, high) }, STAGE | MASK | SAVE);
      else this.change({ high: Math.max(value, low) }, STAGE | MASK | SAVE);
      this.touch(0, event);
    };
    canvas.addEventListener('pointerdown', event => {
      const value = at(event), { low, high } = this.view;
      held = Math.abs(low - high) < .01 ? (value < low ? 'low' : 'high') : Math.abs(value - low) < Math.abs(value - high) ? 'low' : 'high';
      canvas.setPointerCapture(event.pointerId);
      move(event);
    });
    canvas.addEventListener('pointermove', move);
    canvas.addEventListener('pointerup', () => { held = null; });
    canvas.addEventListener('pointercancel', () => { held = null; });
    canvas.addEventListener('keydown', event => {
      const by = { ArrowRight: .01, ArrowUp: .01, ArrowLeft: -.01, ArrowDown: -.01 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      const move = v => Math.max(.01, Math.min(.99, Math.round((v + by) * 1000) / 1000)), { low, high } = this.view;
      this.change(event.shiftKey ? { high: Math.max(low, move(high)) } : { low: move(low), high: Math.max(move(low), move(high)) }, STAGE | MASK | SAVE);
    });
  }

  generate() {
    if (this.model.get('status')?.busy) { this.model.send({ ask: 'stop' }); return; }
    if (!this.prompt.value.trim()) { this.say('type a prompt first', true); this.prompt.focus(); return; }
    this.model.send({ ask: 'generate', prompt: this.prompt.value.trim(), steps: Number(this.count.value), seed: Number(this.seed.value) });
  }

  // Drawing: events leave flags, a frame draws what they ask for.

  touch(flags, event) {
    this.dirty |= flags;
    if (event && this.since == null) { this.since = event.timeStamp; this.handling = 0; }
    if (!this.frame && this.maps) this.frame = requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.frame = 0;
    if (!this.maps) return;
    const began = performance.now(), { dirty } = this;
    this.dirty = 0;
    if (dirty & STAGE) for (const stage of this.stages) stage.draw();
    if (dirty & (RANK | STAGE)) this.drawRank();
    if (dirty & (STATUS | STAGE)) this.drawLegend();
    if (dirty & STRIP) this.drawStrip();
    if (dirty & TIME) { this.drawTimeline(); this.drawFilm(); }
    if (dirty & MASK && this.view.panel === 'mask') this.drawMask();
    if (dirty & GALLERY) this.soonGallery();
    if (dirty & SAVE && this.view.panel === 'save') this.code.textContent = this.codeText();
    if (dirty & LOOK || dirty === ALL) this.drawPanels();
    if (this.since != null) { this.work = this.handling + performance.now() - began; this.channel.port2.postMessage(0); }
  }

  painted() {  // runs after the frame was handed over
    if (this.since == null) return;
    this.clock.push({ work: this.work, painted: performance.now() - this.since });
    if (this.clock.length > 1000) this.clock.shift();
    this.since = null;
  }

  drawPanels() {
    const { view, maps } = this;
    for (const [name, panel] of [['look', this.lookPanel], ['mask', this.maskPanel], ['save', this.savePanel]]) panel.hidden = view.panel !== name;
    this.showChoice.buttons.get('difference').hidden = this.stages.length < 2;
    this.showChoice.buttons.get('spread').hidden = maps.count < 2 && !maps.layers.length;
    this.galleryTabs.buttons.get('steps').hidden = maps.count < 2;
    this.galleryTabs.buttons.get('layers').hidden = !(maps.has.has('layers') || this.offers('layers'));
    this.timeBox.hidden = maps.count < 2;
    this.truthField.hidden = !maps.reference;
    this.truthChoice.buttons.get('reference').textContent = maps.reference_name ? 'Segmenter' : 'Reference';
    this.truthChoice.buttons.get('errors').textContent = maps.reference_name ? 'Disagreement' : 'Errors';
    this.baseField.hidden = !(maps.previews || this.offers('previews'));
    this.film.hidden = !maps.previews;
    this.filmButton.hidden = Boolean(maps.previews) || this.asked.has('previews') || !this.offers('previews');
    this.powerField.hidden = !(maps.has.has('self') || this.offers('self'));
    if (view.panel === 'mask' && !this.powerField.hidden) this.ask('self');
    this.pageButton.hidden = !this.offers('page');
    this.root.dataset.panel = view.panel;
    if (view.panel !== 'save') this.lastPanel = view.panel;
  }

  drawStrip() {
    const { maps, view } = this, range = view.steps ?? maps.all, [, most] = maps.limits('words', [], range, view.layers), shown = new Set(this.shownWords());
    this.chips.forEach((chip, i) => {
      const pressed = String(view.words.includes(i)), strong = Math.min(1, .12 + .88 * maps.facts([i], range, view.layers).high / most).toFixed(2);
      if (chip.getAttribute('aria-pressed') !== pressed) chip.setAttribute('aria-pressed', pressed);
      chip.classList.toggle('ss-shown', shown.has(i));
      if (chip.strong !== strong) chip.lastChild.style.opacity = chip.strong = strong;
    });
    if (this.hover?.word != null) this.live.textContent = maps.words[this.hover.word].text;
  }

  drawRank() {
    const { maps, view } = this, range = this.rangeFor(maps), at = this.pointer ?? view.pin, inside = this.region && this.tool === 'scribble';
    if (view.panel === 'look') {
      const found = inside ? maps.rankInside(this.region, range, view.layers) : at ? maps.rank(range, view.layers, ...at) : maps.plain().map(index => ({ index, value: maps.facts([index], range, view.layers).average })).sort((a, b) => b.value - a.value);
      const most = found[0]?.value || 1;
      this.rankTitle.textContent = inside ? 'Words in the scribble · overlap' : at ? (this.pointer ? 'Words here' : 'Words at the pin') : 'Words in the whole image';
      this.ranks.forEach((row, k) => {
        const one = found[k];
        row.node.hidden = !one;
        if (!one) return;
        row.index = one.index;
        row.name.textContent = maps.words[one.index].text;
        row.fill.style.transform = `scaleX(${Math.max(0, one.value / most)})`;
        row.fill.style.background = k ? '' : 'var(--accent)';
        row.value.textContent = percent(one.value) + (inside ? ` · ${one.iou.toFixed(2)}` : '');
      });
      if (this.pointer && found[0]) this.live.textContent = this.byKey ? `${maps.words[found[0].index].text} ${percent(found[0].value, 0)}` : '';
      this.top = at && found[0]?.index;
      this.chips.forEach((chip, i) => chip.classList.toggle('ss-here', i === this.top));
    }
    this.drawReadout(at);
  }

  drawReadout(at) {
    const { maps } = this, parts = [];
    const stage = this.over?.which ? this.over : this.stages[0];
    if (at) {
      parts.push(`x ${at[0]}  y ${at[1]}`);
      if (this.kind() === 'mask') {
        const label = this.now?.[at[1] * maps.width + at[0]];
        parts.push(label === 255 ? 'left out' : label ? maps.targets(this.view.words).find(one => one.label === label)?.name ?? '' : 'background');
      } else if (stage.says) {
        const { map, rows, columns, name } = stage.says, value = valueAt(map, rows, columns, maps.height, maps.width, ...at);
        parts.push(`${name} ${name === 'right minus left' ? value.toFixed(2) : percent(value, 2)}`);
      }
    } else parts.push(stage?.says?.name ?? '', this.baseText());
    this.readout.textContent = parts.filter(Boolean).join('   ');
  }

  drawLegend() {
    const { maps, stages } = this, stage = stages[1]?.says && this.kind() === 'difference' ? stages[1] : stages[0], { says } = stage, kind = this.kind();
    this.legend.style.visibility = says ? 'visible' : 'hidden';
    if (says) {
      const context = this.scaleBar.getContext('2d'), pixels = context.createImageData(256, 1), table = maps.tables[kind === 'difference' ? 'PuOr_r' : kind === 'light' ? 'gray' : this.view.colours];
      new Uint32Array(pixels.data.buffer).set(table);
      context.putImageData(pixels, 0, 0);
      [this.scaleLow.textContent, this.scaleHigh.textContent] = kind === 'difference' ? ['left', 'right'] : says.range.map(value => percent(value, value < .01 ? 2 : 1));
    }
    for (const one of stages) {
      one.caption.textContent = stages.length > 1 ? one.maps.title || (one.which ? 'right' : 'left') : '';
      if (one.which && this.shownWords().length && !this.wordsFor(one.maps).length) one.caption.textContent += ` · its prompt has no “${this.shownWords().map(i => maps.words[i].text).join(' ')}”`;
      one.canvas.setAttribute('aria-label', `${one.maps.text}; shown is ${says?.name ?? kind}, ${this.stepsText()}`);
    }
    this.timeText.textContent = this.stepsText();
    this.timeBox.classList.toggle('ss-dim', this.view.layers.length > 0);
    this.root.dataset.kind = kind;
  }

  baseText() {  // what lies under the heat
    const { maps } = this, at = this.rangeFor(maps)[1];
    if (!maps.previews || this.view.base !== 'expected') return '';
    return at < maps.count - 1 ? `on the image as expected at step ${maps.steps[at] + 1}` : 'on the finished image';
  }

  colour(name) {  // read once for each theme
    const { theme } = this.root.dataset;
    if (this.coloursOf !== theme) { this.coloursOf = theme; this.colours = {}; }
    return this.colours[name] ??= getComputedStyle(this.root).getPropertyValue(name).trim();
  }

  drawTimeline() {
    const { maps, timeline: canvas } = this;
    if (maps.count < 2 || !canvas.width) return;
    const context = canvas.getContext('2d'), { width, height } = canvas, words = this.shownWords(), [first, last] = this.view.steps ?? maps.all, unit = width / maps.count, pad = height * .14;
    context.clearRect(0, 0, width, height);
    context.fillStyle = this.colour('--wash');
    context.fillRect(0, 0, width, height);
    if (this.view.steps) {
      context.fillStyle = this.colour('--held');
      context.fillRect(first * unit, 0, (last - first + 1) * unit, height);
    }
    const curve = (list, colour, thick, fill) => {
      const share = maps.history(list).map(one => one.average), most = Math.max(...share), y = s => height - pad - (height - 2 * pad) * share[s] / most;
      context.beginPath();
      share.forEach((_, s) => context.lineTo((s + .5) * unit, y(s)));
      context.lineWidth = thick;
      context.strokeStyle = colour;
      context.lineJoin = 'round';
      context.stroke();
      if (first === last) { context.beginPath(); context.arc((first + .5) * unit, y(first), height * .085, 0, 7); context.fillStyle = colour; context.fill(); }
    };
    if (words.length) curve(words, this.colour('--accent'), Math.max(1.5, height / 26));
    if (this.view.steps) {
      context.fillStyle = this.colour('--accent');
      for (const x of [first * unit, (last + 1) * unit - 2]) context.fillRect(Math.max(0, Math.min(width - 2, x)), 0, 2, height);
    }
    if (this.hover) return;  // what follows is about the view that stays
    canvas.setAttribute('aria-valuemax', maps.count);
    canvas.setAttribute('aria-valuenow', first + 1);
    canvas.setAttribute('aria-valuetext', this.stepsText());
    canvas.title = words.length ? `how much of the image “${words.map(i => maps.words[i].text).join(' ')}” takes, step by step` : 'denoising steps';
  }

  drawFilm() {  // as many previews as there is room for, and which steps are chosen
    const { maps, film: canvas, view } = this, { width, height } = canvas, { previews } = maps;
    if (!previews || !width || canvas.hidden) return;
    const drawn = `${width}x${height}/${view.steps}/${this.root.dataset.theme}/${view.base}`;
    if (previews.drawn === drawn) return;  // the pointer alone changes nothing here
    previews.drawn = drawn;
    const context = canvas.getContext('2d'), [first, last] = view.steps ?? maps.all, unit = width / maps.count, each = Math.ceil(.6 * height / unit);  // steps that share a picture
    context.clearRect(0, 0, width, height);
    for (let s = 0; s < maps.count; s += each) {
      const at = Math.max(0, maps.previewAt(Math.min(s + (each >> 1), maps.count - 1))), wide = unit * Math.min(each, maps.count - s), whole = height * previews.width / previews.height, shown = Math.min(wide, whole), cut = previews.width * shown / whole;
      context.drawImage(previews.colour, (previews.width - cut) / 2, at * previews.height, cut, previews.height, s * unit + (wide - shown) / 2, 0, shown, height);  // cut at the sides where there is no room, never squeezed
    }
    if (!view.steps) return;
    context.fillStyle = this.colour('--paper');
    context.globalAlpha = .6;
    context.fillRect(0, 0, first * unit, height);
    context.fillRect((last + 1) * unit, 0, width, height);
    context.globalAlpha = 1;
    context.strokeStyle = this.colour('--accent');
    context.lineWidth = height / 16;
    context.strokeRect(first * unit + height / 32, height / 32, (last - first + 1) * unit - height / 16, height - height / 16);
  }

  // Small pictures

  tile(map, rows, columns, low, high, size) {
    const { maps } = this, stage = this.stages[0], wide = maps.width >= maps.height, width = wide ? size : Math.round(size * maps.width / maps.height), height = wide ? Math.round(size * maps.height / maps.width) : size;
    const key = `${width}x${height}`;
    this.tileSheets ??= new Map();
    if (!this.tileSheets.has(key)) this.tileSheets.set(key, new Sheet(width, height));
    const sheet = this.tileSheets.get(key), canvas = newCanvas(width, height), context = canvas.getContext('2d');
    context.drawImage(stage.thumbnail(width, height), 0, 0);
    context.globalAlpha = .7;
    context.drawImage(sheet.paint(enlarge(map, rows, columns, height, width), maps.tables[this.view.colours], low, high), 0, 0);
    return canvas;
  }

  cell(canvas, text, on, hover, click) {
    const button = h('button', { type: 'button', class: 'ss-cell', 'aria-pressed': Boolean(on), 'aria-label': text, title: text, onclick: click }, canvas, h('span', {}, text));
    if (hover) { button.addEventListener('pointerenter', event => this.hovered(event, hover)); button.addEventListener('pointerleave', event => this.hovered(event, null)); }
    return button;
  }

  soonGallery() {  // many small pictures: while the time moves, not at every frame
    const wait = this.gallery.matches(':active') ? 90 : 90 - (performance.now() - (this.galleryAt ?? 0));  // a button is not replaced while it is pressed
    clearTimeout(this.later);
    if (wait > 0) { this.later = setTimeout(() => this.soonGallery(), wait); return; }
    this.drawGallery();
    this.galleryAt = performance.now();
  }

  drawGallery() {
    const { maps, view } = this, range = this.rangeFor(maps), cells = [], name = view.words.map(i => maps.words[i].text).join(' + ');
    const focus = this.gallery.contains(document.activeElement) ? [...this.gallery.querySelectorAll('button')].indexOf(document.activeElement) : -1;
    this.order.node.hidden = view.gallery !== 'layers';
    this.gallery.dataset.of = view.gallery;
    if (view.gallery === 'words') {
      const [, most] = maps.limits('words', [], range, view.layers);
      for (const word of maps.words) cells.push(this.cell(this.tile(maps.one(word.index, range, view.layers), maps.rows, maps.columns, 0, most, 92), word.kind === 'special' ? `(${word.text})` : word.text, view.words.includes(word.index), { word: word.index }, event => this.pick(word.index, event.shiftKey)));
      this.galleryNote.textContent = `one scale, 0 to ${percent(most, 0)} · ${this.stepsText()}`;
    } else if (!view.words.length) this.galleryNote.textContent = 'choose a word';
    else if (view.words.some(i => maps.words[i].map)) this.galleryNote.textContent = 'a word that the prompt does not have was looked at once, by all layers together';
    else if (view.gallery === 'steps') {
      const many = Math.min(20, maps.count), [, most] = maps.limits('steps', view.words, range, []);
      for (let k = 0; k < many; k++) {
        const s = Math.round(k * (maps.count - 1) / Math.max(1, many - 1)), map = maps.mean(view.words, [s, s]);
        cells.push(this.cell(this.tile(map, maps.rows, maps.columns, 0, most, 92), `step ${maps.steps[s] + 1}`, view.steps && s >= view.steps[0] && s <= view.steps[1], { steps: [s, s] }, () => this.setSteps(s, s)));
      }
      this.galleryNote.textContent = `${name}, one scale, 0 to ${percent(most, 0)}`;
    } else {
      if (!maps.layerMaps) { this.ask('layers'); this.galleryNote.textContent = 'fetching layers and heads …'; }
      else { this.drawLayers(cells); this.galleryNote.textContent = `${name}, each on its own scale, all steps${view.layers.length ? '' : ' · click to look through one, again to add more'}`; }
    }
    this.gallery.replaceChildren(...cells);
    if (focus >= 0) this.gallery.querySelectorAll('button')[focus]?.focus({ preventScroll: true });
  }

  unitMap(layer, head) {  // of the chosen words
    const { maps, view } = this, list = view.words.map(i => maps.layerMap(i, layer, head)), out = new Float32Array(list[0].length);
    for (const map of list) for (let i = 0; i < out.length; i++) out[i] += map[i] / list.length;
    return out;
  }

  rate(layer, map) {  // by what layers are ordered; more comes first
    const { maps, view } = this, [, , rows, columns] = maps.layerMaps[layer].shape;
    if (view.order === 'depth') return -layer;
    if (view.order === 'focus') {
      const total = map.reduce((a, b) => a + b, 0) || 1;
      return map.reduce((sum, v) => v > 0 ? sum + v / total * Math.log(v / total) : sum, 0) / Math.log(map.length);
    }
    const large = enlarge(stretched(map), rows, columns, maps.rows, maps.columns);
    if (view.order === 'likeness') {
      const mean = stretched(maps.mean(view.words, maps.all)), centre = list => { const m = list.reduce((a, b) => a + b, 0) / list.length; return list.map(v => v - m); };
      const a = centre(large), b = centre(mean);
      let both = 0, one = 0, other = 0;
      for (let i = 0; i < a.length; i++) { both += a[i] * b[i]; one += a[i] ** 2; other += b[i] ** 2; }
      return both / Math.sqrt(one * other || 1);
    }
    const labels = this.labels(maps, 0), full = enlarge(stretched(map), rows, columns, maps.height, maps.width), cut = otsu(stretched(map)), wanted = new Set(maps.targets(view.words).filter(one => one.words.some(i => view.words.includes(i))).map(one => one.label));
    let both = 0, either = 0;
    for (let i = 0; i < full.length; i++) { const hot = full[i] > cut, right = wanted.has(labels[i]); both += hot && right; either += hot || right; }
    return either ? both / either : 0;
  }

  drawLayers(cells) {
    const { maps, view } = this, on = (layer, head) => view.layers.some(([l, k]) => l === layer && k === head);
    const toggle = (layer, head) => {
      const layers = on(layer, head) ? view.layers.filter(([l, k]) => l !== layer || k !== head) : [...view.layers, [layer, head]];
      this.change({ layers, pin: null }, ALL);
    };
    const short = text => text.replace('.transformer_blocks', '').replace('_blocks', '').replace('.attentions', '').replace(/\.attn2?$/, '').replace('transformer', '');
    const order = maps.layers.map((_, i) => i).map(i => [this.rate(i, this.unitMap(i, null)), i]).sort((a, b) => b[0] - a[0]);
    for (const [rating, layer] of order) {
      const [name, rows, columns, heads] = maps.layers[layer], size = maps.layerMaps[layer].shape, units = [null, ...(heads > 1 ? Array(heads).keys() : [])];
      const said = view.order === 'depth' ? '' : ` ${Math.abs(rating).toFixed(2)}`;
      const row = units.map(head => {
        const map = this.unitMap(layer, head), [low, high] = extent(map);
        return this.cell(this.tile(map, size[2], size[3], low, high, head == null ? 56 : 44), `${name}${head == null ? '' : `, head ${head}`}`, on(layer, head), null, () => toggle(layer, head));
      });
      cells.push(h('div', { class: 'ss-layer' }, h('span', { class: 'ss-layer-name', title: name }, short(name), h('small', {}, ` ${rows}×${columns}${said}`)), row));
    }
    const most = Math.max(...maps.layers.map(([, , , heads]) => heads));
    this.gallery.style.setProperty('--row', `${186 + (most > 1 ? 49 * most : 0)}px`);
    if (view.layers.length) cells.unshift(h('button', { type: 'button', class: 'ss-link', onclick: () => this.change({ layers: [] }, ALL) }, `mean of ${view.layers.length} picked; take all again`));
  }

  // Masks

  score() { const { maps, view } = this; return maps.scores(view.words, view.steps ?? maps.all, view.layers, view.power); }

  drawMask() {
    const { maps, view } = this, targets = maps.targets(view.words), options = ['', ...maps.recipes.filter(name => maps.masks.has(name) || this.offers(`mask:${name}`))];
    if (this.recipes.options.length !== options.length) this.recipes.replaceChildren(...options.map(name => h('option', { value: name }, name || 'thresholds, live')));
    this.recipes.value = view.recipe;
    this.liveRule.hidden = Boolean(view.recipe) || !maps.has_background;
    const scores = this.score(), labels = this.now = this.labels(maps, 0), found = maps.judge(labels);
    if (!this.liveRule.hidden) this.drawHistogram(scores);
    this.bandText.textContent = view.low === view.high ? `object from ${view.high.toFixed(2)}` : `left out from ${view.low.toFixed(2)} to ${view.high.toFixed(2)}`;
    const number = value => value == null ? '' : value.toFixed(3), row = (label, name, colour) => h('tr', {}, h('td', {}, h('i', { class: label === 255 ? 'ss-void' : '', style: colour ? `background:${colour}` : '' }), name), h('td', {}, percent(found.area[label])), h('td', {}, label === 255 ? '' : found.pieces[label]), found.iou && h('td', {}, label === 255 ? '' : number(found.iou[label])));
    this.table.replaceChildren(h('thead', {}, h('tr', {}, ['', 'area', 'pieces', found.iou && 'IoU'].filter(x => x != null && x !== false).map(text => h('th', {}, text)))),
      h('tbody', {}, maps.has_background && row(0, 'background', ''), targets.map(one => row(one.label, one.name, one.colour)), found.area[255] > 0 && row(255, 'left out', '')),
      found.iou && h('tfoot', {}, h('tr', {}, h('td', { colSpan: 3 }, 'mIoU'), h('td', {}, number(found.miou)))) || '');
    this.root.dataset.miou = found.miou ?? '';
    if (found.apart) {
      const names = this.apartNames(), chip = (k, name) => h('span', {}, h('i', { style: `background:${APART[k]}` }), `${name} ${percent(found.apart[k])}`);
      this.apart.replaceChildren(h('b', {}, `${percent(found.apart.reduce((a, b) => a + b, 0))} of the pixels differ`), ...APART.map((_, k) => chip(k, names[k])));
      this.apart.title = 'of the pixels that neither leaves out';
    }
    this.apart.hidden = !found.apart;
    const inks = [...(maps.has_background ? [[0, 'background', '#ffffff']] : []), ...targets.map(one => [one.label, one.name, one.colour]), [255, 'left out', '#b7b7b7']];
    this.ink ??= targets.find(one => one.words.length)?.label ?? 0;
    this.inks.replaceChildren(...inks.map(([label, name, colour]) => h('button', { type: 'button', role: 'radio', class: 'ss-ink', 'aria-checked': label === this.ink, onclick: () => { this.ink = label; this.setTool('brush'); this.touch(MASK); } }, h('i', { style: `background:${colour}` }), name)));
    this.undoButton.disabled = !this.undo.length;
  }

  apartNames() { const other = this.maps.reference_name; return other ? [`only ${other}`, 'only the mask', 'another class'] : ['missed', 'wrongly claimed', 'another class']; }

  drawHistogram(scores) {
    this.fit();
    const canvas = this.histogram, context = canvas.getContext('2d'), { width, height } = canvas, unit = height / 60, { counts } = scores, bins = counts.length, { low, high } = this.view;
    const most = Math.sqrt(Math.max(...counts));
    context.clearRect(0, 0, width, height);
    for (let k = 0; k < bins; k++) {
      const tall = Math.sqrt(counts[k]) / most * (height - 10 * unit), middle = (k + .5) / bins;
      context.fillStyle = this.colour(middle >= high ? '--accent' : middle >= low ? '--quiet' : '--rule');
      context.globalAlpha = middle >= high || middle < low ? 1 : .55;
      context.fillRect(k * width / bins + 1, height - tall, width / bins - 2, tall);
    }
    context.globalAlpha = 1;
    context.fillStyle = this.colour('--ink');
    for (const at of [low, high]) {
      context.fillRect(at * width - unit * .75, 0, 1.5 * unit, height);
      context.beginPath();
      context.arc(at * width, 5 * unit, 4.5 * unit, 0, 7);
      context.fill();
    }
    canvas.setAttribute('aria-valuenow', high);
    canvas.setAttribute('aria-valuetext', `left out from ${low}, object from ${high}`);
  }

  // Export

  codeText() {
    const { maps, view } = this, range = view.steps, lines = [], ticked = x => `'${String(x).replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
    lines.push(maps.code || '# trace and image: as they were given to explore()');
    const steps = range ? (() => { const [a, b] = range.map(s => maps.steps[s]); return b - a === range[1] - range[0] ? (a === b ? `[${a}]` : `range(${a}, ${b + 1})`) : `[${maps.steps.slice(range[0], range[1] + 1).join(', ')}]`; })() : '';
    if (this.subject !== 'mask' && view.words.length) {
      const words = view.words.map(i => maps.words[i]), indices = words.flatMap(word => word.pieces), side = words.some(word => word.kind === 'side');
      const once = word => maps.words.filter(other => other.text.toLowerCase() === word.text.toLowerCase()).length === 1;
      const read = where => words.length === 1 && words[0].kind === 'word' && once(words[0]) ? `trace.word_map(${ticked(words[0].text)}, 0${where})` : words.length === 1 ? `trace.token_maps(0${where})[1][[${indices}]].mean(0)` : `sum(trace.token_maps(0${where})[1][pieces].mean(0) for pieces in (${words.map(word => `[${word.pieces}]`).join(', ')})) / ${words.length}`;
      lines.push('', 'from synseg_kit.pictures import enlarge, show_heat');
      if (side) lines.push('', '# a word that the prompt does not have: look(pipe, [image], [prompt], timestep, side=[word]), then word_map');
      else if (!view.layers.length) lines.push('', `heat = ${read(`, weights=trace.calls()${steps ? `, step=${steps}` : ''}`)}`);
      else {
        lines.push('', `# a trace with keep=('layer', 'head')`, 'maps = [');
        for (const [layer, head] of view.layers) lines.push(`    ${read(`, layer=${ticked(maps.layers[layer][0])}${head == null ? '' : `, head=${head}`}`)},`);
        lines.push(']', `heat = sum(enlarge(one, (${maps.rows}, ${maps.columns})) for one in maps) / len(maps)`);
      }
      if (!side) lines.push(`show_heat(heat, image, opacity=${view.opacity})`);
    } else if (view.recipe) lines.push('', 'from synseg_kit.recipes import recipe', '', `mask, = recipe(${ticked(view.recipe)})(trace, [image], class_set)`);
    else {
      const flow = view.power ? `step(flow, resolution=${Math.min(...(maps.self?.grid ?? [32]))}, power=${view.power}), ` : '';
      lines.push('', `from synseg_kit.recipes import Recipe, band, choose, constant, ${flow && 'flow, '}read, step, stretch`, '', `rule = Recipe('mine', (step(read${steps ? `, steps=tuple(${steps})` : ''}), ${flow}stretch, step(constant, level=${view.high}), choose, step(band, low=${view.low}, high=${view.high})))`, 'mask, = rule(trace, [image], class_set)');
    }
    return lines.join('\n');
  }

  name() { return this.shownWords().map(i => this.maps.words[i].text).join('-').replace(/[^\w-]/g, '') || this.kind(); }

  sheetOf() {  // the stages side by side
    const gap = 16, width = this.stages.reduce((sum, stage) => sum + stage.width, gap * (this.stages.length - 1)), height = Math.max(...this.stages.map(stage => stage.height)), canvas = newCanvas(width, height);
    let x = 0;
    for (const stage of this.stages) { canvas.getContext('2d').drawImage(stage.canvas, x, 0); x += stage.width + gap; }
    return canvas;
  }

  savePNG() { this.sheetOf().toBlob(blob => download(`${this.name()}.png`, blob)); }

  saveSVG() { download(`${this.name()}.svg`, this.svg(), 'image/svg+xml'); }

  shapes(stage) {  // what a mask view shows, as [labels, [[label, name, colour, opacity], ...]]
    const { view } = this, { maps } = stage, labels = this.labels(maps, stage.which);
    const [shown, list] = view.truth === 'errors' && maps.reference ? [labels.map((said, i) => disagreement(said, maps.reference[i])), APART.map((colour, k) => [k + 1, this.apartNames()[k], colour, .85])]
      : [view.truth === 'reference' && maps.reference ? maps.reference : labels, [...maps.targets(this.wordsFor(maps)).map(one => [one.label, one.name, one.colour, view.opacity]), [255, 'left out', 'url(#left-out)', view.opacity]]];
    return [shown, list.filter(([label]) => shown.includes(label))];
  }

  svg() {
    const masks = this.kind() === 'mask', { says } = this.stages[0], escape = text => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');
    const text = (x, y, content, more = '') => `<text x="${x}" y="${y}" ${more}>${escape(content)}</text>`, quiet = 'fill="#5f646d"', gap = 16, entries = new Map();
    let width = 0;
    const drawn = this.stages.map(stage => {
      const { maps } = stage, x = width, unit = stage.width / maps.width;
      width += stage.width + gap;
      if (!masks) return `<image x="${x}" width="${stage.width}" height="${stage.height}" href="${stage.canvas.toDataURL('image/png')}"/>`;
      const [labels, list] = this.shapes(stage), grey = this.view.truth === 'errors' && maps.reference, under = stage.source(grey);
      const paths = list.map(([label, name, colour, opacity]) => {
        const share = labels.reduce((n, one) => n + (one === label), 0) / labels.length;
        entries.set(name, [colour, entries.has(name) ? entries.get(name)[1] : share]);
        return `<path data-label="${label}" data-name="${escape(name)}" fill="${colour}" fill-opacity="${opacity}" fill-rule="evenodd" stroke="${colour.startsWith('url') ? '#8a8f98' : colour}" stroke-width="${(1.5 / unit).toFixed(3)}" stroke-linejoin="round" d="${outlines(labels, maps.height, maps.width, label)}"/>`;
      });
      return `<g transform="translate(${x} 0)"><image width="${stage.width}" height="${stage.height}" href="${under}"/><g class="mask" transform="scale(${unit})">\n${paths.join('\n')}\n</g></g>`;
    });
    width -= gap;
    const height = Math.max(...this.stages.map(stage => stage.height)), bar = newCanvas(256, 1);
    bar.getContext('2d').drawImage(this.scaleBar, 0, 0);
    let x = 0, y = height + 68;
    const legend = [...entries].map(([name, [colour, share]]) => {
      const label = `${name} ${percent(share)}`, wide = 34 + 8 * label.length;
      if (x && x + wide > width) { x = 0; y += 22; }
      x += wide;
      return `<rect x="${x - wide}" y="${y - 11}" width="13" height="13" rx="3" fill="${colour}" stroke="#8a8f98" stroke-width=".5"/>${text(x - wide + 19, y, label)}`;
    });
    const whole = masks && legend.length ? y + 12 : height + 56, what = masks ? { mask: this.view.recipe ? `mask by ${this.view.recipe}` : `mask by thresholds ${this.view.low} and ${this.view.high}`, reference: this.maps.reference_name || 'reference', errors: `mask and ${this.maps.reference_name || 'reference'}` }[this.maps.reference ? this.view.truth : 'mask'] : says?.name ?? this.kind();
    return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${whole}" width="${width}" height="${whole}" font-family="sans-serif" font-size="14" fill="#23262c">
<title>${escape(this.maps.text)}</title><defs><pattern id="left-out" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="4" height="4" fill="#eee"/><rect width="2" height="4" fill="#b7b7b7"/></pattern></defs>
<rect width="100%" height="100%" fill="#fff"/>
${drawn.join('\n')}
${text(0, height + 22, this.maps.text)}${text(0, height + 44, `${what}, ${this.stepsText()}`, quiet)}
${legend.join('\n')}${says && !masks ? `<image x="${width - 170}" y="${height + 33}" width="110" height="10" preserveAspectRatio="none" href="${bar.toDataURL('image/png')}"/>${text(width - 176, height + 43, this.scaleLow.textContent, `text-anchor="end" ${quiet}`)}${text(width - 54, height + 43, this.scaleHigh.textContent, quiet)}` : ''}
</svg>`;
  }

  saveMask() {
    const { maps } = this, labels = this.labels(maps, 0), sheet = new Sheet(maps.width, maps.height), ids = maps.classes.map(one => one.id);
    for (let i = 0; i < labels.length; i++) { const id = labels[i] === 255 ? 255 : labels[i] ? ids[labels[i] - 1] ?? labels[i] : 0; sheet.words[i] = 0xff000000 | id << 16 | id << 8 | id; }
    sheet.show().toBlob(blob => download('mask.png', blob));
  }
}

const render = opens(Explorer);
