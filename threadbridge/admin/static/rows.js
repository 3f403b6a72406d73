// The table of the requests that run or wait, each with the button that stops it.

import { byId, duration, element, number, addressOf, setText } from './elements.js';
import { ENDINGS, meaning } from './endings.js';

// Seconds: what is younger is over before anybody has read it; from when on a request is slow, and very slow; how long
// one that has ended can still be read.
const YOUNG = 0.3;
const SLOW = 1;
const VERY_SLOW = 10;
const FAREWELL = 2.5;
const LONG_FAREWELL = 6;
const ARMED = 5;
const MOST_FAREWELLS = 15;
// So many that wait are listed until somebody wants to see the others.
const FIRST = 8;

export class Rows {
  constructor(body, announce) {
    this.body = body;
    this.announce = announce;
    this.rows = new Map();
    this.leaving = new Set();
    this.young = 0;
    this.all = false;
    this.more = byId('more');
    this.more.addEventListener('click', () => {
      this.all = !this.all;
      this.show(this.picture, this.picture.now);
    });
  }

  get size() {
    return this.rows.size + this.leaving.size;
  }

  show(picture, now) {
    const places = new Map(picture.processes.map((process) => [process.key, addressOf(process)]));
    const several = picture.processes.length > 1;
    const present = new Set();
    const listed = picture.requests.filter((request) => request.state !== 'running' || picture.now - request.since >= YOUNG);
    this.young = picture.requests.length - listed.length;
    this.picture = picture;
    this.fold(listed);
    const wanted = listed.map((request) => {
      const key = keyOf(request);
      present.add(key);
      if (!this.rows.has(key)) this.rows.set(key, new Row(request, this.announce));
      const row = this.rows.get(key);
      row.update(request, picture.now, several ? places.get(request.process) : '');
      return row;
    });
    const ended = new Map(picture.finished.map((bar) => [keyOf(bar), bar]));
    const alive = new Set(picture.requests.map(keyOf));
    for (const [key, row] of this.rows) {
      if (present.has(key)) continue;
      this.rows.delete(key);
      if (alive.has(key)) row.remove();
      else this.sayGoodbye(row, ended.get(key));
    }
    this.place(wanted);
    this.tick(now);
  }

  // What waits is alike, and stands between the operator and the rest of the page.
  fold(listed) {
    const waiting = listed.filter((request) => request.state === 'waiting').length;
    const others = waiting - FIRST;
    this.more.hidden = others <= 0;
    if (others <= 0) return;
    setText(this.more, this.all ? `Show only the first ${FIRST} that wait` : `Show ${number(others)} more that wait`);
    this.more.setAttribute('aria-expanded', this.all);
    if (!this.all) listed.splice(listed.length - others);
  }

  // Moves only what stands in the wrong place: a button that is moved would lose the focus.
  place(wanted) {
    let next = this.body.firstElementChild;
    for (const { node } of wanted) {
      while (next !== null && next.classList.contains('leaving')) next = next.nextElementSibling;
      if (next === node) next = next.nextElementSibling;
      else this.body.insertBefore(node, next);
    }
  }

  sayGoodbye(row, bar) {
    const worthIt = row.stopping || row.age(row.seen) > SLOW;
    if (!worthIt || this.leaving.size >= MOST_FAREWELLS) {
      row.remove();
      return;
    }
    this.leaving.add(row);
    row.end(bar);
    const stay = row.stopping ? LONG_FAREWELL : FAREWELL;
    setTimeout(() => row.node.classList.add('fading'), (stay - 1) * 1000);
    setTimeout(() => {
      this.leaving.delete(row);
      row.node.remove();
      byId('nothing').hidden = this.size > 0;
    }, stay * 1000);
  }

  tick(now) {
    for (const row of this.rows.values()) row.tick(now);
  }
}

function keyOf(request) {
  return request.key;
}

class Row {
  constructor(request, announce) {
    this.announce = announce;
    this.stopping = false;
    this.armed = null;
    this.time = element('b');
    this.waited = element('small');
    this.url = element('span', { class: 'url' });
    this.sql = element('code', { class: 'sql' });
    this.facts = element('small', { class: 'facts' });
    this.client = element('span');
    this.lane = element('span');
    this.place = element('small');
    this.badge = element('span', { class: 'badge' });
    this.button = element('button', { type: 'button', class: 'stop' }, 'Stop');
    this.button.addEventListener('click', () => this.pressed());
    this.button.addEventListener('blur', () => this.disarm());
    this.button.addEventListener('keydown', (event) => event.key === 'Escape' && this.disarm());
    const line = element('div', { class: 'line' }, element('span', { class: 'method' }, request.method), this.url, this.badge);
    this.node = element(
      'tr',
      {},
      element('td', { class: 'time' }, this.time, this.waited),
      element('td', { class: 'what' }, line, this.sql, this.facts),
      element('td', { class: 'who' }, this.client, element('small', { class: 'id' }, request.id)),
      element('td', { class: 'lane' }, this.lane, this.place),
      element('td', { class: 'act' }, this.button),
    );
    this.node.dataset.key = request.key;
    this.button.setAttribute('aria-label', `Stop ${request.method} ${request.url}`);
  }

  update(request, seen, place) {
    this.request = request;
    this.seen = seen;
    this.node.dataset.state = request.state;
    setText(this.url, request.url);
    this.url.title = request.url;
    setText(this.client, request.client || 'local socket');
    setText(this.lane, request.lane);
    setText(this.place, place);
    this.sql.hidden = request.sql === null;
    if (request.sql !== null) {
      setText(this.sql, request.sql.replace(/\s+/g, ' ').trim());
      this.sql.title = request.sql;
    }
  }

  age(now) {
    return now - this.request.since;
  }

  tick(now) {
    const { state, waiting, running, statements, changes, database, sql, sql_running: sqlRunning, connection } = this.request;
    const age = this.age(now);
    const passed = running ? age - running : 0;
    setText(this.time, duration(Math.max(0, age)));
    this.node.classList.toggle('slow', age >= SLOW && age < VERY_SLOW);
    this.node.classList.toggle('very-slow', age >= VERY_SLOW);
    setText(this.waited, state === 'waiting' || state === 'receiving' ? state : waiting >= 0.01 ? `waited ${duration(waiting)}` : state);
    const facts = [];
    if (sql !== null) {
      facts.push(`in the database for ${duration(Math.max(0, sqlRunning + passed))}`);
      if (connection !== null) facts.push(`its thread ${connection}`);
    }
    if (statements > (sql === null ? 0 : 1)) {
      facts.push(`${statements} statements, ${duration(database + (sql === null ? 0 : passed))}`);
    }
    if (changes !== undefined && changes !== 'none') facts.push(`changes: ${changes}`);
    setText(this.facts, facts.join(' · '));
  }

  // Once to ask, once more to do it.
  pressed() {
    if (this.stopping) return;
    if (this.armed === null) {
      this.armed = setTimeout(() => this.disarm(), ARMED * 1000);
      this.button.classList.add('armed');
      this.button.textContent = 'Really stop?';
      this.announce('Press again to stop this request');
      return;
    }
    this.disarm();
    this.stop();
  }

  disarm() {
    if (this.armed === null) return;
    clearTimeout(this.armed);
    this.armed = null;
    this.button.classList.remove('armed');
    this.button.textContent = 'Stop';
  }

  async stop() {
    this.stopping = true;
    this.button.textContent = 'Stopping …';
    this.node.classList.add('stopping');
    let problem = '';
    try {
      const address = `requests/${this.request.key}/cancel`;
      const answer = await fetch(address, { method: 'POST', headers: { 'X-Threadbridge': 'page' } });
      if (!answer.ok && answer.status !== 404) problem = (await answer.text()).trim();
    } catch {
      problem = 'the server does not answer';
    }
    if (!problem) return;
    this.stopping = false;
    this.node.classList.remove('stopping');
    this.button.textContent = 'Stop';
    this.say('failed', `not stopped: ${problem}`);
  }

  say(kind, text) {
    this.badge.className = `badge ${kind}`;
    setText(this.badge, text);
    this.announce(`${this.request.method} ${this.request.url}: ${text}`);
  }

  end(bar) {
    this.node.classList.remove('stopping');
    this.node.classList.add('leaving');
    this.giveFocusAway();
    this.button.remove();
    this.sql.hidden = true;
    const how = bar === undefined || !ENDINGS.includes(bar.ending) ? 'ended' : bar.ending;
    const status = bar === undefined ? '' : `${bar.status} `;
    const by = this.stopping ? 'stopped by you' : '';
    const text = by || (how === 'ended' ? '' : meaning(how));
    this.badge.className = `badge ${how}`;
    setText(this.badge, `${status}${how}`);
    setText(this.facts, text);
    setText(this.waited, 'in all');
    setText(this.time, duration(bar === undefined ? this.age(this.seen) : bar.total));
    if (this.stopping) this.announce(`${this.request.method} ${this.request.url}: ${status}${how}, stopped by you`);
  }

  remove() {
    this.giveFocusAway();
    this.node.remove();
  }

  // Whoever works by keyboard goes on with the next row.
  giveFocusAway() {
    if (document.activeElement !== this.button) return;
    let next = this.node.nextElementSibling;
    while (next !== null && next.classList.contains('leaving')) next = next.nextElementSibling;
    (next === null ? byId('requests') : next.querySelector('.stop')).focus();
  }
}
