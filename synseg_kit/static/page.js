// Stands in for the notebook's model in a page of its own: everything is in the page, and what is large is unpacked when it is asked for.

async function inflate(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), letter => letter.charCodeAt(0));
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer());
}

class PageModel {
  constructor(values, parts) {
    this.values = values;
    this.parts = parts;
    this.listeners = new Map();
  }
  get(name) { return this.values[name]; }
  set(name, value) { this.values[name] = value; }
  save_changes() {}
  on(name, act) { this.listeners.set(name, [...this.listeners.get(name) ?? [], act]); }
  off(name, act) { this.listeners.set(name, (this.listeners.get(name) ?? []).filter(one => one !== act)); }
  async send({ ask }) {
    if (!(ask in this.parts)) return;
    const part = await inflate(this.parts[ask]);
    for (const act of this.listeners.get('msg:custom') ?? []) act({ part: ask }, [part]);
  }
}

async function openPage() {
  const { values, binary, parts } = JSON.parse(document.getElementById('values').textContent);
  for (const name of binary) values[name] = await inflate(name);
  render({ model: new PageModel(values, parts), el: document.getElementById('here') });
}

openPage();
