// The table of the running and waiting requests, each with the button that stops it.

import { byId, duration, element, hostOf, number, setText } from './elements.js';
import { ENDINGS, meaning } from './endings.js';
import { placesOf } from './hosts.js';

// Seconds: younger requests are not listed, because they end before anybody has read them; older ones are slow, and very
// slow; ended ones stay for a while, and longer if the operator has stopped them.
const YOUNG = 0.3;
const SLOW = 1;
const VERY_SLOW = 10;
const ENDED_STAY = 2.5;
const STOPPED_STAY = 6;
// Seconds for which a button waits for the second press.
const ARMED = 5;
// Ended rows that stay, also while the table is held still.
const MOST_ENDED = 15;
const MOST_ENDED_HELD = 100;
// Waiting requests that are listed before the operator asks for all.
const FIRST = 8;

export class Rows {
  constructor(body, announce) {
    this.body = body;
    this.announce = announce;
    this.rows = new Map();
    this.ended = new Set();
    this.held = false;
    this.young = 0;
    this.all = false;
    this.more = byId('more');
    this.more.addEventListener('click', () => {
      this.all = !this.all;
      this.show(this.data, this.data.now);
    });
  }

  get size() {
    return this.rows.size + this.ended.size;
  }

  show(data, now) {
    this.data = data;
    this.hold();
    const places = placesOf(data);
    const requests = new Map(data.requests.map((request) => [request.key, request]));
    const listed = data.requests.filter((request) => request.state !== 'running' || data.now - request.since >= YOUNG);
    this.young = data.requests.length - listed.length;
    this.fold(listed);
    const keys = new Set(listed.map((request) => request.key));
    if (this.held) for (const key of this.rows.keys()) if (requests.has(key)) keys.add(key);
    const current = [...keys].map((key) => {
      const request = requests.get(key);
      const row = this.rows.get(key) || new Row(request, this.announce);
      this.rows.set(key, row);
      row.update(request, data.now, places.get(request.process));
      return row;
    });
    const finished = new Map(data.finished.map((bar) => [bar.key, bar]));
    for (const [key, row] of this.rows) {
      if (keys.has(key)) continue;
      this.rows.delete(key);
      if (requests.has(key)) row.remove();
      else this.end(row, finished.get(key));
    }
    this.place(current);
    this.tick(now);
  }

  // While the operator points at a row, has moved the focus there by keyboard or has armed a button, no row moves: the
  // press would hit another button.
  hold() {
    this.held = this.body.matches(':hover') || this.body.querySelector(':focus-visible, .armed') !== null;
    for (const row of [...this.rows.values(), ...this.ended]) row.hold(this.held);
  }

  // Waiting requests look alike, and would push the rest of the page down.
  fold(listed) {
    const waiting = listed.filter((request) => request.state === 'waiting').length;
    const others = waiting - FIRST;
    this.more.hidden = others <= 0;
    if (others <= 0) return;
    setText(this.more, this.all ? `Show only the first ${FIRST} that wait` : `Show ${number(others)} more that wait`);
    this.more.setAttribute('aria-expanded', this.all);
    if (!this.all) listed.splice(listed.length - others);
  }

  place(current) {
    if (this.held) {
      for (const row of current) {
        if (row.node.isConnected) continue;
        this.body.append(row.node);
        row.hold(true);
      }
      return;
    }
    // Only rows in the wrong place are moved: a moved button would lose the focus.
    let next = this.body.firstElementChild;
    for (const { node } of current) {
      while (next !== null && next.classList.contains('ended')) next = next.nextElementSibling;
      if (next === node) next = next.nextElementSibling;
      else this.body.insertBefore(node, next);
    }
  }

  end(row, bar) {
    const isShown = row.stopping || row.age(row.seen) > SLOW;
    if (!this.held && (!isShown || this.ended.size >= MOST_ENDED)) {
      row.remove();
      return;
    }
    row.end(bar);
    row.stays = isShown ? performance.now() + (row.stopping ? STOPPED_STAY : ENDED_STAY) * 1000 : 0;
    this.ended.add(row);
    // Somebody may have left the pointer there for the night.
    if (this.ended.size > MOST_ENDED_HELD) this.drop(this.ended.values().next().value);
  }

  // Begin another list: no request of the previous one has ended for that.
  clear() {
    for (const row of [...this.rows.values(), ...this.ended]) row.remove();
    this.rows.clear();
    this.ended.clear();
    this.all = false;
  }

  drop(row) {
    this.ended.delete(row);
    row.remove();
  }

  tick(now) {
    for (const row of this.rows.values()) row.tick(now);
    this.hold();
    if (this.held) return;
    for (const row of this.ended) if (row.stays <= performance.now()) this.drop(row);
  }
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
    this.query = element('div', { class: 'query' }, this.sql);
    this.facts = element('small', { class: 'facts' });
    this.client = element('span');
    this.lane = element('span');
    this.address = element('small');
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
      element('td', { class: 'what' }, line, this.query, this.facts),
      element('td', { class: 'who' }, this.client, element('small', { class: 'id' }, request.id)),
      element('td', { class: 'lane' }, this.lane, this.address),
      element('td', { class: 'act' }, this.button),
    );
    this.node.dataset.key = request.key;
    this.button.setAttribute('aria-label', `Stop ${request.method} ${request.url}`);
  }

  update(request, seen, address) {
    this.request = request;
    this.seen = seen;
    this.node.dataset.state = request.state;
    setText(this.url, request.url);
    this.url.title = request.url;
    setText(this.client, request.client || 'local socket');
    setText(this.lane, request.lane);
    setText(this.address, [hostOf(request), request.class, address].filter(Boolean).join(' · '));
    this.sql.hidden = request.sql === null;
    if (request.sql !== null) {
      setText(this.sql, request.sql.replace(/\s+/g, ' ').trim());
      this.sql.title = request.sql;
    }
  }

  // Keep the height, whatever is written there from now on: other SQL, or more facts, may need another number of lines.
  hold(held) {
    for (const part of [this.query, this.facts, this.waited, this.address]) {
      if (!held) part.style.height = '';
      else if (!part.style.height) part.style.height = `${part.getBoundingClientRect().height}px`;
    }
  }

  age(now) {
    return now - this.request.since;
  }

  tick(now) {
    const { state, waiting, running, statements, changes, database, sql, sql_running: sqlRunning, connection } = this.request;
    const { expected, outgrown, starts_in: startsIn } = this.request;
    const age = this.age(now);
    const passed = running ? age - running : 0;
    setText(this.time, duration(Math.max(0, age)));
    this.node.classList.toggle('slow', age >= SLOW && age < VERY_SLOW);
    this.node.classList.toggle('very-slow', age >= VERY_SLOW);
    setText(this.waited, state === 'waiting' || state === 'receiving' ? state : waiting >= 0.01 ? `waited ${duration(waiting)}` : state);
    const facts = [];
    if (sql !== null) {
      facts.push(`in the database for ${duration(Math.max(0, sqlRunning + passed))}`);
      if (connection !== null) facts.push(`database connection ${connection}`);
    }
    if (statements > (sql === null ? 0 : 1)) {
      facts.push(`${statements} statements, ${duration(database + (sql === null ? 0 : passed))}`);
    }
    if (typeof expected === 'number') facts.push(`expected to take ${duration(expected)}${outgrown ? ': outgrown' : ''}`);
    else if (outgrown) facts.push('cost not known: outgrown');
    if (typeof startsIn === 'number') facts.push(`may start in ${duration(Math.max(0, startsIn))}`);
    if (changes !== undefined && changes !== 'none') facts.push(`changes: ${changes}`);
    setText(this.facts, facts.join(' · '));
  }

  // The first press arms the button, the second stops the request.
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
    this.disarm();
    this.node.classList.remove('stopping');
    this.node.classList.add('ended');
    this.node.dataset.state = 'ended';
    this.moveFocus();
    // It keeps its place, invisibly: a row without a button may be lower.
    this.button.disabled = true;
    const ending = bar === undefined || !ENDINGS.includes(bar.ending) ? 'ended' : bar.ending;
    const status = bar === undefined ? '' : `${bar.status} `;
    this.badge.className = `badge ${ending}`;
    setText(this.badge, `${status}${ending}`);
    setText(this.facts, this.stopping ? 'stopped by you' : ending === 'ended' ? '' : meaning(ending));
    setText(this.waited, 'in total');
    setText(this.time, duration(bar === undefined ? this.age(this.seen) : bar.total));
    if (this.stopping) this.announce(`${this.request.method} ${this.request.url}: ${status}${ending}, stopped by you`);
  }

  remove() {
    this.moveFocus();
    this.node.remove();
  }

  // Keyboard users continue with the next row.
  moveFocus() {
    if (document.activeElement !== this.button) return;
    let next = this.node.nextElementSibling;
    while (next !== null && next.classList.contains('ended')) next = next.nextElementSibling;
    (next === null ? byId('requests') : next.querySelector('.stop')).focus();
  }
}
