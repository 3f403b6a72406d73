// During development: the latest requests, each with its SQL, and the statements that it repeats.

import { duration, element, number } from './elements.js';

// Seconds between two readings, and seconds from which a statement is slow.
const PAUSE = 1;
const SLOW = 0.1;

class Recent {
  constructor(section) {
    this.section = section;
    this.list = section.querySelector('.list');
    this.none = section.querySelector('.empty');
    this.rows = new Map();
  }

  async run() {
    for (;;) {
      if (!document.hidden && !(await this.read())) return;
      await new Promise((resolve) => setTimeout(resolve, PAUSE * 1000));
    }
  }

  // Whether to go on: a server that is not used for development has nothing to show.
  async read() {
    // The server may be starting again.
    const answer = await fetch('recent.json').catch(() => null);
    if (answer === null || !answer.ok) return true;
    const { recent } = await answer.json();
    this.section.hidden = recent === null;
    if (recent !== null) this.show(recent);
    return recent !== null;
  }

  show(recent) {
    const known = this.rows;
    this.rows = new Map();
    for (const request of recent) {
      // A process that has started again gives the same keys to others.
      const key = `${request.key} ${request.ended}`;
      this.rows.set(key, known.get(key) || made(request));
    }
    const rows = [...this.rows.values()];
    // Those that stay keep their place in the document, so that they stay open, focused and selected.
    for (const row of [...this.list.children]) if (!rows.includes(row)) row.remove();
    rows.forEach((row, index) => {
      if (this.list.children[index] !== row) this.list.insertBefore(row, this.list.children[index] || null);
    });
    this.none.hidden = rows.length > 0;
  }
}

function made(request) {
  const { method, url, status, total, database, count, statements, repeated } = request;
  const sql = count ? `${number(count)} SQL, ${duration(database)}` : 'no SQL';
  const summary = element(
    'summary',
    {},
    `${status} ${method} ${url} `,
    element('span', { class: 'aside' }, `${duration(total)} · ${sql} · ${new Date(request.ended * 1000).toLocaleTimeString()}`),
    ...repeated.map(({ times, n_plus_one: isNPlusOne }) => element('span', { class: 'badge' }, `${isNPlusOne ? 'N+1' : 'repeated'}: ${times} ×`)),
  );
  const parts = [summary];
  for (const { sql: text, times, seconds, n_plus_one: isNPlusOne } of repeated) {
    const what = isNPlusOne
      ? `N+1: the same query ${times} times, ${duration(seconds)} together, perhaps once for each row of another one. A join or one query for all rows replaces them.`
      : `The same statement ${times} times, ${duration(seconds)} together.`;
    parts.push(element('p', { class: 'repeated' }, what, element('br'), element('code', {}, text)));
  }
  if (statements.length < count) {
    parts.push(element('p', { class: 'hint' }, `The first ${number(count - statements.length)} statements are not kept.`));
  }
  parts.push(element('ol', { start: count - statements.length + 1 }, ...statements.map(line)));
  return element('details', {}, ...parts);
}

function line({ sql, seconds, rows, error }) {
  const took = element('span', { class: seconds === null || seconds >= SLOW ? 'slow' : 'aside' }, seconds === null ? 'unfinished' : duration(seconds));
  const found = `${rows === null ? '' : `, ${number(rows)} rows`}${error ? `, ${error}` : ''}: `;
  return element('li', {}, took, found, element('code', {}, sql));
}

new Recent(document.getElementById('recent')).run();
