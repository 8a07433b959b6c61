// The numbers of one image: what is asked of an atlas on every move of the pointer.

// How a mask differs from its reference at a pixel: 0 not at all, 1 missed, 2 claimed without cause, 3 another class, 4 one of them leaves it out.
function disagreement(said, reference) { return said === 255 || reference === 255 ? 4 : said === reference ? 0 : !said ? 1 : !reference ? 2 : 3; }

// What the model expected the image to become, small, one picture below the other; once more in grey, to lie under heat.
async function filmOf({ steps, size: [height, width] }, bytes) {
  const bitmap = await decodePicture(bytes), colour = newCanvas(width, height * steps.length), context = colour.getContext('2d');
  context.drawImage(bitmap, 0, 0);
  const grey = newCanvas(width, height * steps.length), pixels = context.getImageData(0, 0, width, height * steps.length);
  greyed(pixels);
  grey.getContext('2d').putImageData(pixels, 0, 0);
  return { steps, width, height, colour, grey };
}

class Maps {
  constructor(data) {
    const { about, tensors } = unpack(data), { maps, scale, colours, image, reference } = tensors;
    Object.assign(this, about);
    [this.height, this.width] = about.size;
    [, this.count, this.rows, this.columns] = maps.shape;
    this.places = this.rows * this.columns;
    this.words = about.words.map((word, index) => ({ ...word, index }));
    this.source = { values: maps.data, scale: scale.data };
    this.tables = Object.fromEntries(about.colours.map((name, i) => [name, toTable(colours.data, 768 * i)]));
    this.picture = image.data;
    this.reference = reference?.data;
    this.reference_name ??= '';
    this.masks = new Map();
    this.known = new Map();
    this.has = new Set();
    let series = 0;
    const colourOf = new Map(about.classes.map(one => [one.id, one.colour]));
    for (const word of this.words) word.colour = colourOf.get(word.class_id) ?? (word.kind === 'special' ? '#9aa0a8' : about.series[series++ % about.series.length]);
  }

  async add(data) {  // a part that came later
    const { about, tensors } = unpack(data);
    if (about.part === 'layers') this.layerMaps = this.layers.map((_, i) => ({ values: tensors[`layer.${i}`].data, shape: tensors[`layer.${i}`].shape, scale: tensors[`layer.${i}.scale`].data }));
    else if (about.part === 'self') this.self = { grid: about.grid, values: tensors.self.data, scale: tensors['self.scale'].data };
    else if (about.part === 'previews') this.previews = await filmOf(about, tensors.film.data);
    else if (about.part === 'mask') this.masks.set(about.name, tensors.labels.data);
    else if (about.part === 'words') {
      const { data: values, shape: [, , rows, columns] } = tensors.maps, size = rows * columns;
      about.words.forEach((word, k) => {
        const map = Float32Array.from(values.subarray(k * size, (k + 1) * size), v => tensors.scale.data[2 * k] + tensors.scale.data[2 * k + 1] * v / 255);
        const old = this.words.find(one => one.kind === 'side' && one.text === word.text);
        const fresh = { ...word, map: enlarge(map, rows, columns, this.rows, this.columns), colour: this.series[this.words.length % this.series.length] };
        if (old) Object.assign(old, fresh);
        else this.words.push({ ...fresh, index: this.words.length });
      });
    }
    this.has.add(about.part === 'mask' ? `mask:${about.name}` : about.part);
    this.known.clear();
    this.histories = this.scored = null;
  }

  get all() { return [0, this.count - 1]; }

  previewAt(place) {  // the preview of a step, by their places: the last one that is not later; -1: there is none
    return this.previews ? this.previews.steps.findLastIndex(step => step <= (this.steps[place] ?? Infinity)) : -1;
  }

  sums(word) {  // running sums over steps, so that the mean of any range is one subtraction
    if (!word.sums) {
      const { places, count } = this, { values, scale } = this.source, sums = word.sums = new Float32Array((count + 1) * places);
      for (let s = 0; s < count; s++) {
        const at = word.index * count + s, low = scale[2 * at], step = scale[2 * at + 1] / 255, from = at * places, before = s * places;
        for (let i = 0; i < places; i++) sums[before + places + i] = sums[before + i] + low + step * values[from + i];
      }
    }
    return word.sums;
  }

  remember(key, make) {
    if (this.known.size > 600) this.known.clear();
    if (!this.known.has(key)) this.known.set(key, make());
    return this.known.get(key);
  }

  one(index, [first, last], picks = []) {  // the mean of a word's map
    const word = this.words[index];
    if (word.map) return word.map;
    return this.remember(`${index}/${first}/${last}/${picks.join(';')}`, () => {
      const { places } = this, out = new Float32Array(places);
      if (picks.length && this.layerMaps) {
        for (const [layer, head] of picks) {
          const map = this.layerMap(index, layer, head), [, , rows, columns] = this.layerMaps[layer].shape;
          const large = enlarge(map, rows, columns, this.rows, this.columns);
          for (let i = 0; i < places; i++) out[i] += large[i] / picks.length;
        }
        return out;
      }
      const sums = this.sums(word), a = first * places, b = (last + 1) * places, share = 1 / (last - first + 1);
      for (let i = 0; i < places; i++) out[i] = (sums[b + i] - sums[a + i]) * share;
      return out;
    });
  }

  mean(words, range, picks = []) {  // of several words: their mean
    if (words.length === 1) return this.one(words[0], range, picks);
    return this.remember(`${words}|${range}|${picks.join(';')}`, () => {
      const out = new Float32Array(this.places);
      for (const word of words) { const map = this.one(word, range, picks); for (let i = 0; i < out.length; i++) out[i] += map[i] / words.length; }
      return out;
    });
  }

  layerMap(index, layer, head) {  // head null: the mean over heads
    const { values, shape: [heads, words, rows, columns], scale } = this.layerMaps[layer], size = rows * columns, out = new Float32Array(size);
    if (index >= words) return out;
    const chosen = head == null ? [...Array(heads).keys()] : [head];
    for (const one of chosen) {
      const at = one * words + index, low = scale[2 * at], step = scale[2 * at + 1] / 255;
      for (let i = 0; i < size; i++) out[i] += (low + step * values[at * size + i]) / chosen.length;
    }
    return out;
  }

  spread(words, [first, last], picks = []) {  // standard deviation: over the chosen layers and heads, else over the steps
    return this.remember(`spread/${words}/${first}/${last}/${picks.join(';')}`, () => {
      const out = new Float32Array(this.places), several = picks.length > 1 && this.layerMaps ? picks.map(pick => this.mean(words, [first, last], [pick])) : null;
      const maps = several ?? Array.from({ length: last - first + 1 }, (_, k) => this.mean(words, [first + k, first + k]));
      for (let i = 0; i < out.length; i++) {
        let sum = 0, squares = 0;
        for (const map of maps) { sum += map[i]; squares += map[i] * map[i]; }
        out[i] = Math.sqrt(Math.max(0, squares / maps.length - (sum / maps.length) ** 2));
      }
      return out;
    });
  }

  facts(words, range, picks = []) {  // smallest and greatest value, and the mean over the image
    return this.remember(`facts/${words}/${range}/${picks.join(';')}`, () => {
      const map = this.mean(words, range, picks), [low, high] = extent(map);
      let sum = 0;
      for (let i = 0; i < map.length; i++) sum += map[i];
      return { low, high, average: sum / map.length };
    });
  }

  limits(scale, words, range, picks) {  // the values at the two ends of the colours
    if (scale === 'own') { const { low, high } = this.facts(words, range, picks); return [low, high]; }
    if (scale === 'words') return [0, Math.max(...this.plain().map(i => this.facts([i], range, picks).high))];
    return [0, Math.max(...this.history(words).map(one => one.high))];
  }

  history(words) {  // of each step on its own: greatest value and mean over the image; never forgotten
    this.histories ??= new Map();
    const key = words.join();
    if (!this.histories.has(key)) {
      const { places, count } = this, chosen = words.map(i => this.words[i]), share = 1 / chosen.length;
      this.histories.set(key, Array.from({ length: count }, (_, s) => {
        let high = -Infinity, sum = 0;
        for (let i = 0; i < places; i++) {
          let value = 0;
          for (const word of chosen) value += word.map ? word.map[i] : this.sums(word)[(s + 1) * places + i] - word.sums[s * places + i];
          value *= share;
          if (value > high) high = value;
          sum += value;
        }
        return { high, average: sum / places };
      }));
    }
    return this.histories.get(key);
  }

  plain() {  // the places of what is no special token; of all, where there is nothing else
    const found = this.words.filter(word => word.kind !== 'special').map(word => word.index);
    return found.length ? found : this.words.map(word => word.index);
  }

  at(index, range, picks, x, y) { return valueAt(this.one(index, range, picks), this.rows, this.columns, this.height, this.width, x, y); }

  rank(range, picks, x, y) {  // words at a pixel, the strongest first
    return this.plain().map(index => ({ index, value: this.at(index, range, picks, x, y) })).sort((a, b) => b.value - a.value);
  }

  rankInside(region, range, picks) {  // words in a region of the image, and how well each one's own mask fits it
    return this.plain().map(index => {
      const map = this.one(index, range, picks), large = enlarge(map, this.rows, this.columns, this.height, this.width), [low, high] = extent(map), cut = low + otsu(stretched(map)) * (high - low);
      let sum = 0, size = 0, both = 0, either = 0;
      for (let i = 0; i < region.length; i++) {
        const inside = region[i], hot = large[i] > cut;
        if (inside) { sum += large[i]; size++; }
        if (inside && hot) both++;
        if (inside || hot) either++;
      }
      return { index, value: size ? sum / size : 0, iou: either ? both / either : 0 };
    }).sort((a, b) => b.value - a.value);
  }

  selfRow(x, y) {  // what a place looks at
    const { grid: [rows, columns], values, scale } = this.self, size = rows * columns;
    const place = Math.min(rows - 1, Math.floor((y + .5) * rows / this.height)) * columns + Math.min(columns - 1, Math.floor((x + .5) * columns / this.width));
    return { map: Float32Array.from(values.subarray(place * size, (place + 1) * size), v => scale[2 * place] + scale[2 * place + 1] * v / 255), rows, columns };
  }

  flow(map, power) {  // each place takes the mean of the places it looks at
    const { grid: [rows, columns], values, scale } = this.self, size = rows * columns;
    let now = rows === this.rows && columns === this.columns ? map : enlarge(map, this.rows, this.columns, rows, columns);
    for (let p = 0; p < power; p++) {
      const next = new Float32Array(size);
      let total = 0;
      for (let j = 0; j < size; j++) total += now[j];
      for (let i = 0; i < size; i++) {
        const low = scale[2 * i], step = scale[2 * i + 1] / 255;
        let sum = 0;
        for (let j = 0, from = i * size; j < size; j++) sum += values[from + j] * now[j];
        next[i] = low * total + step * sum;
      }
      now = next;
    }
    return { map: now, rows, columns };
  }

  // Masks. Labels are 0 for the background, i for the i-th target counted from 1, 255 for pixels nobody should learn from.

  targets(words) {  // what a mask can have: the classes of the prompt, or the chosen words where there are none
    const named = this.classes.map((one, i) => ({ ...one, label: i + 1, words: this.words.filter(word => word.class_id === one.id).map(word => word.index) }));
    if (named.some(one => one.words.length)) return named;
    return words.slice(0, 8).map((index, i) => ({ name: this.words[index].text, colour: this.words[index].colour, label: i + 1, words: [index] }));
  }

  scores(words, range, picks, power) {  // of each target that has words, stretched from 0 to 1, at the image's size
    const targets = this.targets(words).filter(one => one.words.length);
    const key = `${targets.map(one => one.words)}/${range}/${picks.join(';')}/${power}`;
    if (this.scored?.key !== key) {  // they are large: only the last ones are kept
      const maps = targets.map(one => {
        const map = this.mean(one.words, range, picks), moved = power && this.self ? this.flow(map, power) : { map, rows: this.rows, columns: this.columns };
        return enlarge(stretched(moved.map), moved.rows, moved.columns, this.height, this.width);
      });
      const best = new Float32Array(this.height * this.width), label = new Uint8Array(best.length);
      maps.forEach((map, k) => { for (let i = 0; i < best.length; i++) if (map[i] > best[i] || k === 0) { best[i] = map[i]; label[i] = targets[k].label; } });
      const counts = new Float32Array(80);
      for (let i = 0; i < best.length; i++) counts[Math.min(79, Math.floor(best[i] * 80))]++;
      this.scored = { key, best, label, counts, otsu: otsu(best) };
    }
    return this.scored;
  }

  cut(scores, low, high) {
    const { best, label } = scores, out = new Uint8Array(best.length);
    if (!this.has_background) return label.slice();
    for (let i = 0; i < out.length; i++) out[i] = best[i] >= high ? label[i] : best[i] >= low ? 255 : 0;
    return out;
  }

  judge(labels) {  // areas, pieces, and the overlap with the reference
    const pieces = countPieces(labels, this.height, this.width), area = new Int32Array(256), { reference } = this;
    for (let i = 0; i < labels.length; i++) area[labels[i]]++;
    const found = { area: Array.from(area, n => n / labels.length), pieces };
    if (reference) {
      const both = new Float64Array(256), either = new Float64Array(256), apart = [0, 0, 0, 0, 0];
      for (let i = 0; i < labels.length; i++) {
        const said = labels[i], true_ = reference[i];
        apart[disagreement(said, true_)]++;
        if (true_ === 255) continue;
        either[true_]++;
        if (said === true_) both[true_]++;
        else if (said !== 255) either[said]++;
      }
      const decided = labels.length - apart[4];
      found.apart = apart.slice(1, 4).map(n => decided ? n / decided : 0);
      const counted = [...Array(this.classes.length + 1).keys()].filter(k => (k || this.has_background) && either[k]);
      found.iou = Array.from(either, (n, k) => n ? both[k] / n : null);
      found.miou = counted.reduce((sum, k) => sum + found.iou[k], 0) / counted.length;
    }
    return found;
  }
}
