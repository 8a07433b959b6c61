// Stands in for the notebook's model in a page of its own: everything is in the page, and what is large is unpacked when it is asked for.

async function inflate(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), letter => letter.charCodeAt(0));
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer());
}

class PageModel extends Model {
  constructor(values, parts) { super(values); this.parts = parts; }
  async send({ ask }) { if (ask in this.parts) this.tell('msg:custom', { part: ask }, [await inflate(this.parts[ask])]); }
}

async function openPage() {
  const { values, binary, parts } = JSON.parse(document.getElementById('values').textContent);
  for (const name of binary) values[name] = await inflate(name);
  render({ model: new PageModel(values, parts), el: document.getElementById('here') });
}

openPage();
