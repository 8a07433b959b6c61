// Stands in for the notebook's model where a process of this machine serves the page: it is asked, and it tells what has changed.

class ServedModel extends Model {
  constructor(token) { super({}); Object.assign(this, { token, version: 0, open: true }); }

  async post(path, content) {
    const answer = await fetch(path, { method: 'POST', headers: { 'Content-Type': 'application/json', Authorization: `token ${this.token}` }, body: JSON.stringify(content) });
    if (!answer.ok) throw new Error(await answer.text());
    return unpack(new Uint8Array(await answer.arrayBuffer()));
  }

  save_changes() { this.post('view', { view: this.get('view') }).catch(() => {}); }  // `hear` finds out when nobody is there any more

  async send(content) {
    try {
      const { about, tensors } = await this.post('ask', content);
      about.messages.forEach(({ message, buffers }) => this.tell('msg:custom', message, buffers.map(name => tensors[name].data)));
    } catch (error) { this.tell('msg:custom', { error: error.message }, []); }
  }

  async hear() {  // what has changed since the last time; waits until something has
    const { about, tensors } = await this.post('values', { since: this.version });
    this.version = about.version;
    const changed = { ...about.values, ...Object.fromEntries(about.binary.map(name => [name, tensors[name].data])) };
    for (const name of about.empty) changed[name] = new Uint8Array(0);
    Object.assign(this.values, changed);
    return Object.keys(changed);
  }

  async follow(gone) {
    while (this.open) {
      try { for (const name of await this.hear()) this.tell(`change:${name}`); }
      catch { this.open = false; gone(); }
    }
  }
}

async function openServed() {
  const here = document.getElementById('here'), model = new ServedModel(new URLSearchParams(location.search).get('token'));
  const say = text => here.prepend(h('p', { class: 'ss-gone', role: 'alert' }, text));
  try { await model.hear(); }
  catch (error) { say(error.message); return; }
  render({ model, el: here });
  model.follow(() => say('The process that serves this page has ended; what is shown stays, what would have to be asked for does not come.'));
}

openServed();
