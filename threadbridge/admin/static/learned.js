// What requests cost, as far as it has been learned: a table that is read only while its section is open.

import { duration, element, number, setText } from './elements.js';

// Seconds between two readings; costs change slowly.
const PAUSE = 10;
const COLUMNS = ['request', 'count', 'median', '95 %', 'database', 'class'];

export class Learned {
  constructor(section) {
    this.section = section;
    this.body = section.querySelector('tbody');
    this.none = section.querySelector('.empty');
    this.rows = new Map();
    this.readAt = -Infinity;
    section.addEventListener('toggle', () => this.tick());
  }

  // While the operator points at a row or has selected text in one, no row moves.
  get held() {
    const selection = document.getSelection();
    return this.body.matches(':hover') || (!selection.isCollapsed && this.body.contains(selection.anchorNode));
  }

  async tick() {
    const now = performance.now();
    if (!this.section.open || document.hidden || (this.rows.size && this.held) || now - this.readAt < PAUSE * 1000) return;
    this.readAt = now;
    const answer = await fetch('requests.json').catch(() => null);
    if (answer === null || !answer.ok) return;
    const { learned } = await answer.json();
    // The pointer may have come meanwhile.
    if (!this.rows.size || !this.held) this.show(learned);
  }

  show(learned) {
    const known = this.rows;
    this.rows = new Map();
    for (const kind of learned) {
      const key = JSON.stringify([kind.method, kind.path, kind.parameters]);
      const row = known.get(key) || made(kind);
      update(row, kind);
      this.rows.set(key, row);
    }
    this.body.replaceChildren(...this.rows.values());
    this.none.hidden = learned.length > 0;
    this.section.querySelector('table').hidden = !learned.length;
  }
}

function made(kind) {
  const url = element('span', { class: 'url', title: kind.path }, kind.path);
  const line = element('div', { class: 'line' }, element('span', { class: 'method' }, kind.method), url);
  const what = element('td', { class: 'kind' }, line, element('small', {}, kind.parameters || 'all'));
  return element('tr', {}, what, ...COLUMNS.slice(1).map((name) => element('td', { 'data-name': name })));
}

function update(row, kind) {
  const texts = [number(kind.count), duration(kind.median), duration(kind.p95), `${Math.round(100 * kind.database)} %`, kind.class];
  texts.forEach((text, index) => setText(row.cells[index + 1], text));
}
