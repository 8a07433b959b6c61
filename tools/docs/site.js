// Search, theme, menu and folds. The pages can be read without it; it asks nothing of the net.
'use strict'

// Order the index's records by how well they answer a query; every word of it must be found somewhere in a record.
function rank(index, query, most = 30) {
  const spaced = text => text.toLowerCase().replaceAll('_', ' ')  // whoever asks for "dense crf" means dense_crf
  const whole = spaced(query.trim()), words = whole.split(/\s+/).filter(Boolean)
  if (!words.length) return []
  const found = []
  for (const record of index.records) {
    const [title, kind, , context, text] = record
    const name = spaced(title), last = name.slice(name.lastIndexOf('.') + 1), place = spaced(context), said = spaced(text)
    let score = name === whole ? 120 : last === whole ? 100 : name.startsWith(whole) || last.startsWith(whole) ? 70 : name.includes(whole) ? 50 : 0
    let all = true
    for (const word of words) {
      if (name.includes(word)) score += 20
      else if (place.includes(word)) score += 6
      else if (said.includes(word)) score += 3
      else { all = false; break }
    }
    if (!all) continue
    if (words.length > 1 && said.includes(whole)) score += 12
    const sort = index.kinds[kind]
    score += { page: 6, module: 5, class: 4, function: 4, section: 3, constant: 1, method: 1, property: 0 }[sort]
    found.push([score - name.length / 100, record])
  }
  return found.sort((a, b) => b[0] - a[0]).slice(0, most).map(pair => pair[1])
}

// The words around the first that was found.
function excerpt(text, query) {
  const words = query.toLowerCase().split(/[\s_]+/).filter(Boolean), lower = text.toLowerCase()
  const places = words.map(word => lower.indexOf(word)).filter(place => place >= 0)
  const start = places.length ? Math.max(0, Math.min(...places) - 50) : 0
  const from = start ? text.indexOf(' ', start) + 1 : 0
  return (from ? '… ' : '') + text.slice(from, from + 190)
}

if (typeof module !== 'undefined') module.exports = { rank, excerpt }
if (typeof document !== 'undefined') {
  const me = document.currentScript, all = (selector, within = document) => [...within.querySelectorAll(selector)], one = (selector, within = document) => within.querySelector(selector)
  const root = document.documentElement
  root.classList.add('scripted')
  const make = (tag, properties = {}, ...children) => { const node = Object.assign(document.createElement(tag), properties); node.append(...children); return node }

  // the theme: the system's, until the reader chooses
  const dark = () => root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches
  const theme_button = one('.theme-button')
  theme_button.hidden = false
  theme_button.addEventListener('click', () => {
    root.dataset.theme = dark() ? 'light' : 'dark'
    try { localStorage.setItem('docs-theme', root.dataset.theme) } catch { /* a browser that keeps nothing */ }
  })

  // the menu of narrow screens, and the side bar's place
  const menu_button = one('.menu-button'), side = one('.side')
  menu_button.hidden = false
  const show_menu = open => { root.classList.toggle('menu', open); menu_button.setAttribute('aria-expanded', open) }
  menu_button.addEventListener('click', () => show_menu(!root.classList.contains('menu')))
  const current = one('a[aria-current]', side)
  if (current) side.scrollTop = Math.max(0, current.offsetTop - side.offsetTop - side.clientHeight / 2)

  // folds
  const unfold = one('.unfold')
  if (unfold) {
    unfold.hidden = false
    unfold.addEventListener('click', () => {
      const open = unfold.getAttribute('aria-pressed') !== 'true'
      unfold.setAttribute('aria-pressed', open)
      unfold.textContent = open ? 'Fold all source' : 'Show all source'
      for (const fold of all('details.source')) fold.open = open
    })
  }

  // where the reader is
  const contents = new Map(all('.toc a').map(link => [decodeURIComponent(link.hash.slice(1)), link]))
  if (contents.size) {
    const marks = [...contents.keys()].map(id => document.getElementById(id)).filter(Boolean)
    let waiting = false
    const follow = () => {
      waiting = false
      let here = marks[0]
      for (const mark of marks) if (mark.getBoundingClientRect().top < 120) here = mark
      for (const [id, link] of contents) link.classList.toggle('here', here && id === here.id)
    }
    addEventListener('scroll', () => { if (!waiting) { waiting = true; requestAnimationFrame(follow) } }, { passive: true })
    follow()
  }

  // the search
  const dialog = one('dialog.search'), box = one('input', dialog), list = one('ol', dialog), search_button = one('.search-button')
  let loading, chosen = 0
  const load = () => loading ??= new Promise((done, fail) => {
    document.head.append(make('script', { src: me.dataset.index, onload: () => done(window.docsIndex), onerror: () => fail(new Error('no index')) }))
  })
  const marked = (text, words) => {
    const node = make('span'), lower = text.toLowerCase()
    let place = 0
    while (place < text.length) {
      const next = words.map(word => [lower.indexOf(word, place), word.length]).filter(([start]) => start >= 0).sort((a, b) => a[0] - b[0] || b[1] - a[1])[0]
      if (!next) break
      node.append(text.slice(place, next[0]), make('mark', { textContent: text.slice(next[0], next[0] + next[1]) }))
      place = next[0] + next[1]
    }
    node.append(text.slice(place))
    return node
  }
  const choose = place => {
    const rows = all('a', list)
    chosen = Math.max(0, Math.min(rows.length - 1, place))
    rows.forEach((row, i) => row.setAttribute('aria-selected', i === chosen))
    rows[chosen]?.scrollIntoView({ block: 'nearest' })
  }
  const show = async () => {
    const query = box.value, index = await load().catch(() => null)
    if (query !== box.value) return
    if (!index) return list.replaceChildren(make('li', { className: 'nothing', textContent: 'The index could not be read.' }))
    const words = query.toLowerCase().split(/[\s_]+/).filter(Boolean), found = rank(index, query)
    list.replaceChildren(...found.map(([title, kind, address, context, text]) => {
      const sort = index.kinds[kind], coded = !['page', 'section'].includes(sort)
      const name = marked(title, words)
      const head = make('span', { className: 'what' }, coded ? make('code', {}, name) : name, make('span', { className: 'where', textContent: `${sort === 'section' || sort === 'page' ? '' : sort + ' · '}${context}` }))
      const link = make('a', { href: me.dataset.base + address }, head)
      if (text) link.append(make('span', { className: 'told' }, marked(excerpt(text, query), words)))
      return make('li', {}, link)
    }))
    if (words.length && !found.length) list.replaceChildren(make('li', { className: 'nothing', textContent: `Nothing says “${query.trim()}”.` }))
    choose(0)
  }
  const open = (query = '') => { show_menu(false); if (!dialog.open) dialog.showModal(); if (query) box.value = query; box.focus(); box.select(); load().catch(() => {}); show() }
  search_button.hidden = false
  search_button.addEventListener('click', () => open())
  box.addEventListener('input', show)
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close() })
  list.addEventListener('click', event => { if (event.target.closest('a')) dialog.close() })
  list.addEventListener('mousemove', event => { const row = event.target.closest('a'); if (row) choose(all('a', list).indexOf(row)) })
  dialog.addEventListener('keydown', event => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') { event.preventDefault(); choose(chosen + (event.key === 'ArrowDown' ? 1 : -1)) }
    if (event.key === 'Enter') { event.preventDefault(); all('a', list)[chosen]?.click() }
  })
  addEventListener('keydown', event => {
    const typing = event.target.closest?.('input, textarea, select, [contenteditable]')
    if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey || event.key === 'k' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); open() }
    if (event.key === 'Escape') show_menu(false)
  })
  const asked = new URLSearchParams(location.search).get('q')
  if (asked) open(asked)
}
