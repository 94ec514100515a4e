'use strict';
// Names are set as text, never as HTML. Elements are kept and changed, so that nothing
// flickers and what a reader has opened stays open.

const refresh = 2000;
const $ = id => document.getElementById(id);

function el(tag, cls, text) {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  if (text !== undefined) e.textContent = text;
  return e;
}

function svg(tag, attributes) {
  const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const k in attributes) e.setAttribute(k, attributes[k]);
  return e;
}

function text(e, s) {
  s = String(s);
  if (e.textContent !== s) e.textContent = s;
}

// cell is a figure with the name that it bears where there is no room for a head.
function cell(row, cls, label) {
  const box = el('div', 'num ' + cls);
  const value = el('span');
  box.append(el('span', 'label', label), value);
  row.append(box);
  return value;
}

// list makes parent's rows those of items: made once by make, changed by their own set.
function list(parent, items, key, make, empty) {
  const rows = parent.rows || (parent.rows = new Map());
  const seen = new Set();
  let at = parent.head ? parent.head.nextSibling : parent.firstChild;
  for (const item of items) {
    const k = key(item);
    seen.add(k);
    let row = rows.get(k);
    if (!row) rows.set(k, row = make(item));
    row.set(item);
    if (row !== at) parent.insertBefore(row, at); else at = at.nextSibling;
  }
  for (const [k, row] of rows) if (!seen.has(k)) { row.remove(); rows.delete(k); }
  if (parent.head) parent.head.hidden = !items.length;
  if (!parent.empty) parent.append(parent.empty = el('div', 'empty'));
  text(parent.empty, empty);
  parent.empty.hidden = items.length > 0;
}

function head(parent, cls, names) {
  if (parent.head) return;
  parent.head = el('div', 'row head ' + cls);
  names.forEach(([name, num]) => parent.head.append(el('div', num ? 'num' : '', name)));
  parent.prepend(parent.head);
}

// scale writes three digits and a unit.
function scale(v) {
  for (const u of ['', 'k', 'M', 'G', 'T']) {
    if (v < 999.5 || u === 'T') {
      const digits = v < 9.995 && (u || v % 1) ? 2 : v < 99.95 && u ? 1 : 0;
      return v.toFixed(digits) + (u && '\u2009' + u);
    }
    v /= 1000;
  }
}

function age(ms) {
  const s = Math.max(0, Math.floor(ms / 1000)), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  return d ? `${d} d ${h % 24} h` : h ? `${h} h ${m % 60} min` : m ? `${m} min` : `${s} s`;
}

// Rates are of the last two answers; counters that fell have begun anew.
let before = new Map(), counters = new Map(), beforeAt = 0, nowAt = 0;
function rate(name, value) {
  counters.set(name, value);
  const was = before.get(name);
  return was === undefined || nowAt <= beforeAt ? null : Math.max(0, value - was) * 1000 / (nowAt - beforeAt);
}
const shown = v => v === null ? '\u2013' : scale(v);

const graphs = [
  {name: 'Traffic', unit: 'bit/s', of: p => p.bits},
  {name: 'New flows', unit: '/s', of: p => p.opened},
  {name: 'Flows', unit: 'open', of: p => p.flows},
  {name: 'Drops', unit: '/s', of: p => p.dropped, bad: true},
];

function drawGraphs(o) {
  for (const g of graphs) {
    if (!g.card) {
      g.card = el('div', 'card');
      const value = el('div', 'value');
      g.value = el('span');
      value.append(g.value, el('small', '', g.unit));
      g.svg = svg('svg', {viewBox: '0 0 600 54', preserveAspectRatio: 'none', role: 'img'});
      g.area = svg('path', {class: 'area'});
      g.curve = svg('path', {class: 'curve'});
      g.svg.append(g.area, g.curve);
      const axis = el('div', 'axis');
      g.peak = el('span');
      axis.append(el('span', '', '10 min ago'), g.peak);
      g.card.append(el('div', 'name', g.name), value, g.svg, axis);
      $('graphs').append(g.card);
    }
    const values = o.points.map(g.of);
    const top = Math.max(...values, 0);
    g.card.classList.toggle('bad', !!g.bad && top > 0);
    text(g.value, g.name === 'Flows' ? scale(o.flows) : values.length ? scale(values[values.length - 1]) : '\u2013');
    text(g.peak, values.length ? 'most ' + scale(top) : 'none yet');
    g.svg.setAttribute('aria-label', `${g.name}, at most ${scale(top)} ${g.unit} in 10 minutes`);
    const xy = o.points.map(p => [600 - (o.at - p.at) / 1000, 51 - 48 * (top ? g.of(p) / top : 0)]).filter(p => p[0] >= 0);
    const line = xy.map(p => p[0].toFixed(1) + ',' + p[1].toFixed(1)).join('L');
    g.curve.setAttribute('d', xy.length > 1 ? 'M' + line : '');
    g.area.setAttribute('d', xy.length > 1 ? `M${xy[0][0].toFixed(1)},54L${line}L${xy[xy.length - 1][0].toFixed(1)},54Z` : '');
  }
}

const open = new Set();
let few = true; // services, so that all can be open from the start

function serviceState(s) {
  if (s.until) return ['warn', 'leaving'];
  if (!s.taking) return ['bad', `none of ${s.backends} up`];
  if (s.down) return ['bad', `${s.down} of ${s.backends} down` + (s.panic ? ', used' : '')];
  if (s.suspect) return ['warn', `${s.suspect} of ${s.backends} suspect`];
  if (s.taking < s.backends) return ['warn', `${s.taking} of ${s.backends} take`];
  return ['good', s.backends === 1 ? '1 up' : `all ${s.backends} up`];
}

function serviceRow(s) {
  const row = el('details'), line = el('summary', 'row service-row'), what = el('div', 'what');
  const name = el('b'), about = el('span', 'faint'), state = el('div', 'state'), pill = el('span');
  state.append(pill);
  what.append(name, about);
  line.append(el('span', 'twist'), what, state, el('div', 'gap'));
  const active = cell(line, 'active', 'flows'), opened = cell(line, '', 'new/s'), bits = cell(line, '', 'bit/s');
  row.within = el('div', 'within');
  head(row.within, 'backend-row backend-head', [['Backend'], ['State'], ['Weight', 1], ['Flows', 1], ['New/s', 1], ['Bit/s', 1]]);
  row.append(line, row.within);
  row.open = few;
  if (few) open.add(s.name);
  row.addEventListener('toggle', () => {
    if (row.open === open.has(s.name)) return;
    if (row.open) { open.add(s.name); update(); } else open.delete(s.name);
  });
  row.set = s => {
    text(name, s.name);
    text(about, [`${s.address} ${s.protocol}`, s.mode, s.scheduler].filter(Boolean).join(' \u00b7 '));
    const [cls, word] = serviceState(s);
    pill.className = 'pill ' + cls;
    text(pill, word);
    text(active, scale(s.active));
    text(opened, shown(rate('s ' + s.name, s.flows)));
    const r = rate('sb ' + s.name, s.bytes_to + s.bytes_from);
    text(bits, shown(r === null ? null : 8 * r));
  };
  return row;
}

const stateClass = {up: 'good', down: 'bad', disabled: 'bad', gone: 'bad', suspect: 'warn', drained: 'warn', leaving: 'warn'};

const byOperator = {drain: 'drained', disable: 'disabled', weight: 'weight set'};

function backendRow() {
  const row = el('div', 'row backend-row'), what = el('div', 'what'), name = el('span'), note = el('span', 'faint');
  what.append(name, note);
  const state = el('div', 'state'), pill = el('span');
  state.append(pill);
  row.append(what, state);
  const weight = cell(row, '', 'weight'), active = cell(row, '', 'flows'), opened = cell(row, '', 'new/s'), bits = cell(row, '', 'bit/s');
  const past = el('details', 'health faint'), title = el('summary'), changes = el('ol');
  past.append(title, changes);
  const button = el('button', 'change', 'Change');
  button.type = 'button';
  button.addEventListener('click', () => change(row.backend));
  row.append(past, button);
  row.set = b => {
    row.backend = b;
    button.setAttribute('aria-label', `Change ${b.address} in ${b.service}`);
    button.hidden = !!b.until; // a reload has removed it: it takes no orders
    const k = b.service + ' ' + b.address;
    text(name, b.address);
    const h = b.health, state = b.state === 'up' && h && h.suspect ? 'suspect' : b.state;
    pill.className = 'pill ' + (stateClass[state] || '');
    text(pill, state);
    text(weight, b.weight === b.configured ? b.weight : `${b.weight} of ${b.configured}`);
    text(active, scale(b.active));
    text(opened, shown(rate('b ' + k, b.flows)));
    const r = rate('bb ' + k, b.bytes_to + b.bytes_from);
    text(bits, shown(r === null ? null : 8 * r));
    const notes = [];
    if (b.ordered) notes.push(`${byOperator[b.ordered.action] || b.ordered.action} by an operator ${age(nowAt - Date.parse(b.ordered.since))} ago`);
    if (b.panic) notes.push('takes new flows: too few are live');
    if (h) notes.push(`${h.state} for ${age(nowAt - Date.parse(h.since))}` + (h.reason && h.state !== 'up' ? `: ${h.reason}` : ''));
    if (h && h.unchecked) notes.push(`cannot be checked: ${h.unchecked}`);
    if (h && h.suspect) notes.push(`suspect for ${age(nowAt - Date.parse(h.suspect.since))}: ${h.suspect.reason}`);
    text(note, notes.join(' \u00b7 '));
    const history = b.history || [];
    past.hidden = !history.length;
    text(title, history.length === 1 ? '1 change of health' : `${history.length} changes of health`);
    list(changes, [...history].reverse(), c => c.at + c.to, () => {
      const line = el('li');
      line.set = c => text(line, `${new Date(c.at).toLocaleString()}: ${c.from === c.to ? 'suspect' : `${c.from} \u2192 ${c.to}`}` + (c.reason ? `, ${c.reason}` : ''));
      return line;
    }, '');
  };
  return row;
}

function workerRow() {
  const row = el('div', 'row worker-row'), number = el('div'), bar = el('div', 'bar');
  const picture = svg('svg', {viewBox: '0 0 100 8', preserveAspectRatio: 'none', 'aria-hidden': 'true'}), part = svg('rect', {height: 8, width: 0});
  picture.append(part);
  bar.append(picture);
  const share = el('div', 'num'), packets = el('div', 'num'), flows = el('div', 'num');
  row.append(number, bar, share, packets, flows);
  row.set = w => {
    const busy = rate('w ' + w.i, w.busy_seconds);
    const percent = busy === null ? null : Math.min(100, busy * 100);
    part.setAttribute('width', percent || 0);
    text(number, w.i);
    text(share, percent === null ? '\u2013' : percent.toFixed(1) + '%');
    text(packets, shown(rate('wr ' + w.i, w.received)));
    text(flows, scale(w.flows));
  };
  return row;
}

function nicRow() {
  const row = el('div', 'row nic-row'), what = el('div', 'what'), name = el('b'), queues = el('span', 'faint');
  what.append(name, queues);
  const state = el('div', 'state'), pill = el('span');
  state.append(pill);
  row.append(what, state);
  const figures = [cell(row, '', 'in/s'), cell(row, '', 'out/s'), cell(row, '', 'lost/s')];
  row.set = n => {
    text(name, n.name);
    text(queues, n.queues === 1 ? '1 queue' : n.queues + ' queues');
    pill.className = 'pill ' + (n.up ? 'good' : 'bad');
    text(pill, n.up ? 'up' : 'down');
    [n.received, n.sent, n.lost].forEach((v, i) => text(figures[i], shown(rate(`n${i} ${n.name}`, v))));
  };
  return row;
}

function dropRow() {
  const row = el('div', 'row drop-row'), reason = el('code');
  row.append(reason);
  const count = cell(row, '', 'packets'), now = cell(row, '', 'now/s');
  const what = el('div', 'what'), means = el('span'), advice = el('span', 'faint');
  what.append(means, advice);
  row.append(what);
  row.set = d => {
    text(reason, d.reason);
    text(count, scale(d.count));
    text(now, shown(rate('d ' + d.reason, d.count)));
    text(means, d.means);
    text(advice, d.do);
  };
  return row;
}

function draw(o, backends) {
  if (o.at !== nowAt) { // else it is the answer that was there already
    before = counters;
    counters = new Map();
    beforeAt = nowAt;
    nowAt = o.at;
  }
  const s = o.status;
  document.body.classList.toggle('with-buttons', o.buttons);
  text($('who'), [`up ${age(o.at - Date.parse(s.started))}`, `pid ${s.pid}`, s.config, `${s.reloads} reloads`].filter(Boolean).join(' \u00b7 '));
  drawGraphs(o);
  few = o.found <= 10;
  text($('found'), o.found > o.services.length ? `the first ${o.services.length} of ${o.found}` : '');
  head($('services'), 'service-row service-head', [[''], ['Service'], ['Backends'], [''], ['Flows', 1], ['New/s', 1], ['Bit/s', 1]]);
  list($('services'), o.services, s => s.name + (s.until || ''), serviceRow, $('find').value ? 'No service is called so.' : 'No services.');
  for (const row of $('services').rows.values()) row.within.hidden = !row.open;
  o.services.forEach(s => {
    const row = $('services').rows.get(s.name + (s.until || ''));
    if (row.open) list(row.within, backends[s.name] || [], b => b.address + (b.until || ''), backendRow, backends[s.name] ? 'No backends.' : 'Loading\u2026');
  });
  head($('workers'), 'worker-row', [['#'], ['Busy'], ['', 1], ['Packets/s', 1], ['Flows', 1]]);
  list($('workers'), o.workers.map((w, i) => ({...w, i})), w => w.i, workerRow, 'No workers.');
  head($('nics'), 'nic-row nic-head', [['Name'], ['State'], ['In/s', 1], ['Out/s', 1], ['Lost/s', 1]]);
  list($('nics'), o.nics, n => n.name, nicRow, 'No interfaces.');
  head($('drops'), 'drop-row drop-head', [['Reason'], ['Packets', 1], ['Now/s', 1], ['What it means, and what to do']]);
  list($('drops'), o.drops, d => d.reason, dropRow, 'Nothing was dropped since the start.');
}

async function get(path) {
  const r = await fetch(path, {cache: 'no-store', signal: AbortSignal.timeout(8000)});
  if (!r.ok) throw new Error((await r.text()).trim() || r.statusText);
  return r.json();
}

let since = 0, timer = 0, running = false, again = false;

function say(cls, word, trouble) {
  $('live').className = 'pill ' + cls;
  text($('live'), word);
  $('trouble').hidden = !trouble;
  text($('trouble'), trouble || '');
  document.body.classList.toggle('stale', !!trouble);
  for (const b of document.querySelectorAll('.change')) b.disabled = !!trouble;
}

async function update() {
  if (running) { again = true; return; }
  running = true;
  clearTimeout(timer);
  try {
    const o = await get('api/overview?find=' + encodeURIComponent($('find').value.trim()));
    const first = !$('services').rows && o.found <= 10 ? o.services.map(s => s.name) : [...open];
    const wanted = o.services.filter(s => first.includes(s.name)).slice(0, 50);
    const backends = wanted.length ? await get('api/backends?' + wanted.map(s => 'service=' + encodeURIComponent(s.name)).join('&')) : {};
    draw(o, backends);
    since = 0;
    say('good', 'live');
  } catch (e) {
    since = since || Date.now();
    const word = e instanceof TypeError || e.name === 'TimeoutError' ? 'l4fwd does not answer; it may be restarting.' : `l4fwd says: ${e.message}.`;
    say('bad', 'no answer', `${word} What you see is ${nowAt ? age(Date.now() - nowAt) + ' old' : 'empty'}; asking again every ${refresh / 1000} seconds.`);
  }
  running = false;
  timer = setTimeout(update, again ? 0 : refresh);
  again = false;
}

let typing = 0;
$('find').addEventListener('input', () => { clearTimeout(typing); typing = setTimeout(update, 200); });
document.addEventListener('visibilitychange', () => { if (!document.hidden) update(); });
update();
