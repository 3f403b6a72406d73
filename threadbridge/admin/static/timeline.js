// The last minute: each request is a bar; it takes the first free line, and stays in it.

import { duration, element, hostOf, shape } from './elements.js';
import { ENDINGS, meaning } from './endings.js';

const SECONDS = 60;
// Lines at most; a phone has the requests below the chart, which must not move them, and so has a fixed number.
const LINES = 16;
const NARROW_LINES = 6;
const NARROW = 500;
const LINE = 13;
const BAR = 9;
const DATABASE = 3;
const AXIS = 22;
// The least width of a bar, and the least gap between two, in pixels.
const NARROWEST = 3;
const GAP = 2;

export class Timeline {
  constructor(box, legend) {
    this.box = box;
    this.lines = new Map();
    const marks = [['waiting', 'waiting'], ['running', 'running'], ...ENDINGS.map((name) => [name, name])];
    legend.replaceChildren(
      ...marks.map(([kind, text]) => element('li', { class: kind, title: meaning(kind) }, element('i'), text)),
      element('li', { class: 'database' }, element('i'), 'in the database'),
    );
  }

  draw(data) {
    const { now } = data;
    const width = this.box.clientWidth;
    if (!width) return;
    const x = (time) => width - ((now - time) * width) / SECONDS;
    const bars = [...data.finished.map(ofFinished), ...data.requests.filter(isUnderWay).map((row) => ofRow(row, now))];
    const shown = bars.filter((bar) => bar.end > now - SECONDS).sort((one, other) => one.start - other.start);
    const isNarrow = width < NARROW;
    const { assigned, omitted } = this.assign(shown, x, isNarrow ? NARROW_LINES : LINES);
    const used = isNarrow ? NARROW_LINES : Math.max(4, ...assigned.values()) + 1;
    const height = used * LINE + AXIS;
    const image = shape('svg', { width, height, viewBox: `0 0 ${width} ${height}` }, ...axis(width, height));
    for (const bar of shown) {
      const line = assigned.get(bar.key);
      if (line !== undefined) image.append(drawn(bar, x, line * LINE + 2, width));
    }
    this.box.replaceChildren(image);
    this.box.setAttribute('aria-label', `${shown.length} requests of the last minute, each a bar`);
    if (omitted) this.box.append(element('p', { class: 'omitted' }, `${omitted} more at the same time`));
  }

  // A bar stays in its line as long as it is drawn; a new one takes the first free line.
  assign(bars, x, lines) {
    const taken = Array.from({ length: lines }, () => []);
    const assigned = new Map();
    const waiting = [];
    for (const bar of bars) {
      bar.left = x(bar.start);
      bar.right = Math.max(x(bar.end), bar.left + NARROWEST);
      const line = this.lines.get(bar.key);
      if (line === undefined || line >= lines) waiting.push(bar);
      else {
        taken[line].push(bar);
        assigned.set(bar.key, line);
      }
    }
    for (const bar of waiting) {
      const free = taken.findIndex((line) =>
        line.every((other) => bar.left > other.right + GAP || bar.right + GAP < other.left),
      );
      if (free === -1) continue;
      taken[free].push(bar);
      assigned.set(bar.key, free);
    }
    this.lines = assigned;
    return { assigned, omitted: bars.length - assigned.size };
  }
}

function changesOf({ changes }) {
  return changes === undefined || changes === 'none' ? '' : `, changes: ${changes}`;
}

function isUnderWay(row) {
  return row.state !== 'receiving';
}

function ofFinished(bar) {
  const end = bar.received + bar.total;
  return {
    key: bar.key || `${bar.process} ${bar.received}`,
    start: bar.received,
    ran: Math.min(end, bar.received + bar.waiting),
    end,
    database: bar.database,
    kind: ENDINGS.includes(bar.ending) ? bar.ending : 'done',
    text: `${bar.method} ${bar.url}\n${bar.status} ${bar.ending} after ${duration(bar.total)}: waited ${duration(bar.waiting)}, ran ${duration(bar.running)}, ${duration(bar.database)} of it in the database${changesOf(bar)}\n${bar.client} · ${[bar.lane, hostOf(bar)].filter(Boolean).join(' · ')} · ${bar.id}`,
  };
}

function ofRow(row, now) {
  const runs = row.state !== 'waiting';
  return {
    key: row.key,
    start: row.received,
    ran: runs ? Math.min(now, row.since) : now,
    end: now,
    database: row.database,
    kind: 'running',
    text: `${row.method} ${row.url}\n${row.state} for ${duration(now - row.since)}${changesOf(row)}\n${row.client} · ${[row.lane, hostOf(row)].filter(Boolean).join(' · ')} · ${row.id}`,
  };
}

function drawn(bar, x, top, width) {
  const group = shape('g', { class: bar.kind }, shape('title', {}, bar.text));
  const left = Math.max(0, bar.left);
  const ran = Math.min(Math.max(x(bar.ran), left), bar.right);
  const right = Math.min(width, bar.right);
  if (ran - left > 0.5) {
    group.append(shape('rect', { class: 'wait', x: left, y: top + BAR / 2 - 1.5, width: ran - left, height: 3 }));
  }
  if (bar.ran < bar.end || bar.kind !== 'running') {
    const run = Math.max(right - ran, NARROWEST);
    group.append(shape('rect', { class: 'run', x: right - run, y: top, width: run, height: BAR, rx: 2 }));
    const share = bar.end > bar.ran ? Math.min(1, bar.database / (bar.end - bar.ran)) : 0;
    if (share * run > 1.5) {
      group.append(shape('rect', { class: 'in-database', x: right - run, y: top + BAR - DATABASE, width: share * run, height: DATABASE }));
    }
  }
  return group;
}

function axis(width, height) {
  const step = width < 500 ? 20 : 10;
  const marks = [];
  for (let ago = 0; ago <= SECONDS; ago += step) {
    const x = width - (ago * width) / SECONDS;
    const anchor = ago === 0 ? 'end' : ago === SECONDS ? 'start' : 'middle';
    marks.push(shape('line', { x1: x, x2: x, y1: 0, y2: height - AXIS + 4 }));
    marks.push(shape('text', { x, y: height - 4, 'text-anchor': anchor }, ago === 0 ? 'now' : `−${ago} s`));
  }
  return [shape('g', { class: 'axis' }, ...marks)];
}
