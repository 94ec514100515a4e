'use strict';
// What an operator orders for a backend. The token is asked for once, stays in this tab
// (sessionStorage) and is sent in a header, so that nobody else's page can send it.

const remembered = 'l4fwd-token';
const token = {
  get() { try { return sessionStorage.getItem(remembered) || ''; } catch { return this.here || ''; } },
  set(s) {
    this.here = s;
    try { if (s) sessionStorage.setItem(remembered, s); else sessionStorage.removeItem(remembered); } catch { /* it lives as long as the page */ }
    $('forget').hidden = !s;
  },
};

const deeds = {
  drain: {name: 'Drain', done: 'Drained', sure: true},
  disable: {name: 'Disable', done: 'Disabled', sure: true, danger: true},
  enable: {name: 'Enable', done: 'Enabled'},
  weight: {name: 'Set weight', done: 'Set the weight of'},
};

const views = ['order-choose', 'order-sure', 'order-token'];
let chosen = null; // the backend that the dialog is about
let order = null; // to be sent
let sending = false;

// view shows one part of the dialog, with what went wrong before it, and has the keyboard there.
function view(name, problem, focus) {
  for (const v of views) $(v).hidden = v !== name;
  text($('order-error'), problem || '');
  $('order-error').hidden = !problem;
  $(focus).focus();
}

const flowsOf = b => b.active === 1 ? 'the flow it has' : `the ${b.active.toLocaleString('en')} flows it has`;
const goOn = b => b.active === 1 ? 'goes on' : 'go on';
const areEnded = b => b.active === 1 ? 'is ended' : 'are ended';

// change opens the dialog for a backend.
function change(b) {
  chosen = b;
  order = null;
  text($('order-title'), b.address);
  text($('order-about'), `in ${b.service}: ${b.state}, weight ${b.weight}`);
  text($('drain-means'), `No new flows; ${flowsOf(b)} ${goOn(b)}.`);
  text($('disable-means'), `No new flows, and ${flowsOf(b)} ${areEnded(b)}.`);
  text($('enable-means'), `As the configuration says again: weight ${b.configured}.`);
  $('enable').hidden = !b.ordered;
  $('weight').value = b.weight;
  $('everywhere').checked = false;
  $('order').showModal();
  view('order-choose', '', b.ordered ? 'enable' : 'drain');
}

// choose asks once more before what takes traffic away.
function choose(action, weight) {
  order = {action, backend: $('everywhere').checked ? chosen.address : `${chosen.service}/${chosen.address}`};
  if (action === 'weight') order.weight = weight;
  const deed = deeds[action], away = action === 'weight' && weight === 0;
  if (!deed.sure && !away) { send(); return; }
  const where = $('everywhere').checked ? 'in all services that have it' : `in ${chosen.service}`;
  text($('sure-question'), `${away ? 'Give weight 0 to' : deed.name} ${chosen.address} ${where}?`);
  text($('sure-means'), action === 'disable' ? $('disable-means').textContent : $('drain-means').textContent);
  text($('sure-yes'), away ? 'Set weight 0' : deed.name);
  $('sure-yes').classList.toggle('danger', !!deed.danger);
  view('order-sure', '', 'sure-no');
}

async function send() {
  if (sending) return;
  if (!token.get()) { view('order-token', '', 'token'); return; }
  sending = true;
  $('order').setAttribute('aria-busy', 'true');
  try {
    const r = await fetch('api/order', {
      method: 'POST', cache: 'no-store', signal: AbortSignal.timeout(8000), body: JSON.stringify(order),
      headers: {'Authorization': 'Bearer ' + token.get(), 'Content-Type': 'application/json'},
    });
    if (r.ok) {
      const where = [...new Set((await r.json()).map(b => b.service))].join(', ');
      $('order').close();
      tell(`${deeds[order.action].done} ${chosen.address} in ${where}` + (order.action === 'weight' ? `: ${order.weight}.` : '.'));
      update();
      return;
    }
    const problem = (await r.text()).trim() || r.statusText;
    if (r.status === 401) {
      token.set('');
      $('token').value = '';
      view('order-token', `Not done: ${problem}.`, 'token');
    } else {
      view('order-choose', `Not done: ${problem}.`, 'order-close');
    }
  } catch (e) {
    const problem = e instanceof TypeError ? 'l4fwd does not answer' : e.name === 'TimeoutError' ? 'no answer came; look whether it was' : e.message;
    view('order-choose', `Not done: ${problem}.`, 'order-close');
  } finally {
    sending = false;
    $('order').removeAttribute('aria-busy');
  }
}

let telling = 0;

// tell says what came of it, also to who hears the page.
function tell(what) {
  clearTimeout(telling);
  text($('outcome'), what);
  $('outcome').classList.add('shown');
  telling = setTimeout(() => { $('outcome').classList.remove('shown'); text($('outcome'), ''); }, 15000);
}

for (const action of ['drain', 'disable', 'enable']) $(action).addEventListener('click', () => choose(action));
$('weigh').addEventListener('submit', e => {
  e.preventDefault();
  choose('weight', Number($('weight').value));
});
$('sure-yes').addEventListener('click', send);
$('sure-no').addEventListener('click', () => view('order-choose', '', order.action === 'weight' ? 'weight' : order.action));
$('order-token').addEventListener('submit', e => {
  e.preventDefault();
  const given = $('token').value.trim();
  $('token').value = '';
  if (!given) { view('order-token', 'A token is needed.', 'token'); return; }
  if (/[^!-~]/.test(given)) { view('order-token', 'That is no token: it has a blank or a letter beyond ASCII.', 'token'); return; }
  token.set(given);
  send();
});
for (const b of document.querySelectorAll('#order .close')) b.addEventListener('click', () => $('order').close());
$('forget').addEventListener('click', () => { token.set(''); tell('The token is forgotten.'); });
$('forget').hidden = !token.get();
