// Several hosts: a line each, with sums over its processes; its lanes are shown below it when the operator opens it. The
// hosts that do not answer come first, without figures: what they did last may be over.

import { addressOf, byId, duration, element, number, setText, shortDuration } from './elements.js';
import { drawLanes } from './lanes.js';
import { isWaitingLong } from './waiting.js';

const order = new Intl.Collator('en', { numeric: true }).compare;

// One host that answers has no need for a table of hosts.
export function areSeveral({ hosts, unreachable }) {
  const own = hosts.find((host) => host.own);
  return hosts.length > 1 || unreachable.some((each) => each.host && each.host !== own.name);
}

// Where each process is, by its key; empty if there is one only.
export function placesOf({ processes, hosts }) {
  const places = new Map(processes.map((process) => [process.key, processes.length > 1 ? addressOf(process) : '']));
  if (hosts.length > 1) {
    for (const host of hosts) {
      for (const key of host.processes) places.set(key, `${host.name} ${places.get(key)}`);
    }
  }
  return places;
}

export class Hosts {
  // `filter` is called with the name of a host whose requests alone are to be listed.
  constructor(section, filter) {
    this.section = section;
    this.body = section.querySelector('tbody');
    this.filter = filter;
    this.lines = new Map();
  }

  draw(data) {
    const several = areSeveral(data);
    this.section.hidden = !several;
    if (!several) return;
    const { hosts, unreachable } = data;
    const entries = [
      ...unreachable.map((each) => ({ key: `- ${each.name}`, name: each.host || each.name, silent: each })),
      ...hosts.map((host) => ({ key: `+ ${host.name} ${host.via}`, name: host.name, host })),
    ];
    entries.sort((one, other) => !one.silent - !other.silent || order(one.name, other.name) || order(one.key, other.key));
    const known = this.lines;
    this.lines = new Map();
    for (const entry of entries) {
      const line = known.get(entry.key) || (entry.silent ? new SilentLine() : new Line(entry.host, this.filter));
      known.delete(entry.key);
      this.lines.set(entry.key, line);
      if (entry.silent) line.update(entry.silent, data.now);
      else line.update(entry.host, data);
    }
    for (const line of known.values()) line.nodes.forEach((node) => node.remove());
    // Only lines in the wrong place are moved: a moved button would lose the focus.
    let next = this.body.firstElementChild;
    for (const node of [...this.lines.values()].flatMap((line) => line.nodes)) {
      if (node === next) next = next.nextElementSibling;
      else this.body.insertBefore(node, next);
    }
    const processes = data.processes.length;
    const silent = unreachable.length ? `; ${number(unreachable.length)} without an answer` : '';
    setText(byId('hosts-shown'), `${number(hosts.length)} with ${number(processes)} processes${silent}.`);
  }
}

class Line {
  constructor(host, filter) {
    this.toggle = element('button', { type: 'button', class: 'toggle', 'aria-expanded': 'false' }, host.name);
    this.toggle.addEventListener('click', () => this.open(this.lanes.hidden));
    this.about = element('small');
    this.fill = element('i');
    this.busy = element('span');
    this.texts = ['waiting', 'wrong', 'p50', 'p99'].map((kind) => element('td', { class: kind }));
    this.only = element('button', { type: 'button', class: 'only', 'aria-label': `List requests on ${host.name} alone` }, 'Requests');
    this.only.addEventListener('click', () => filter(host.name));
    this.row = element(
      'tr',
      {},
      element('th', { scope: 'row' }, this.toggle, this.about),
      element('td', {}, element('div', { class: 'load' }, element('div', { class: 'load-bar', 'aria-hidden': 'true' }, this.fill), this.busy)),
      ...this.texts,
      element('td', { class: 'act' }, this.only),
    );
    this.list = element('ul', { class: 'lane-list' });
    this.lanes = element('tr', { class: 'opened' }, element('td', { colspan: '7' }, this.list));
    this.lanes.hidden = true;
    this.nodes = [this.row, this.lanes];
  }

  open(isOpen) {
    this.lanes.hidden = !isOpen;
    this.toggle.setAttribute('aria-expanded', isOpen);
    if (isOpen) this.draw();
  }

  update(host, data) {
    this.draw = () => {
      const processes = data.processes.filter((process) => host.processes.includes(process.key));
      drawLanes(this.list, processes, data.requests);
    };
    if (!this.lanes.hidden) this.draw();
    const draining = host.draining ? `${number(host.draining)} draining` : '';
    const processes = host.processes.length > 1 ? `${number(host.processes.length)} processes` : '';
    setText(this.about, [host.own ? 'this host' : host.via.join(', '), processes, draining].filter(Boolean).join(' · '));
    setText(this.busy, `${number(host.busy)} of ${number(host.threads)} busy`);
    this.fill.style.width = `${host.threads ? Math.min(100, (100 * host.busy) / host.threads) : 0}%`;
    const kinds = Object.entries(host.endings).filter(([ending]) => ending !== 'done');
    const wrong = kinds.reduce((sum, [, count]) => sum + count, 0);
    const { p50, p99 } = host.latencies;
    const texts = [number(host.counts.waiting || 0), number(wrong), p50 === null ? '–' : shortDuration(p50), p99 === null ? '–' : shortDuration(p99)];
    texts.forEach((text, index) => setText(this.texts[index], text));
    this.texts[1].title = kinds.map(([ending, count]) => `${number(count)} ${ending}`).join(', ');
    this.row.classList.toggle('full', host.threads > 0 && host.busy >= host.threads);
    const waits = data.requests.filter((row) => row.state === 'waiting' && host.processes.includes(row.process));
    this.row.classList.toggle('queued', isWaitingLong(host.counts.waiting, waits));
    this.row.classList.toggle('trouble', wrong > 0);
  }
}

class SilentLine {
  constructor() {
    this.name = element('b', { class: 'name' });
    this.about = element('small');
    this.reason = element('td', { colspan: '6' });
    this.nodes = [element('tr', { class: 'unreachable' }, element('th', { scope: 'row' }, this.name, this.about), this.reason)];
  }

  update({ name, host, reason, answered }, now) {
    setText(this.name, host || name);
    setText(this.about, host ? name : '');
    const age = answered === null ? '' : `; the last answer came ${duration(Math.max(0, now - answered))} ago`;
    setText(this.reason, `${reason}${age}`);
  }
}
