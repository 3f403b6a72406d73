// Charts of the last 15 minutes, in slots of some seconds: the requests by ending, and their latencies.

import { duration, element, number, rate, shape } from './elements.js';
import { ENDINGS, meaning } from './endings.js';

const HEIGHT = 170;
const LOW_HEIGHT = 96;
const NARROW = 500;
const LEFT = 52;
const BOTTOM = 20;
const TOP = 8;
const QUANTILES = ['p50', 'p95', 'p99'];

export function drawRates(box, legend, { history, slot, now }) {
  const elapsed = (one) => Math.min(slot, now - one.from);
  const perSecond = history.map((one) =>
    elapsed(one) < 1 ? [] : ENDINGS.map((ending) => (one.endings[ending] || 0) / elapsed(one)),
  );
  const highest = niceCeiling(Math.max(1, ...perSecond.map((counts) => counts.reduce((sum, count) => sum + count, 0))));
  const frame = new Frame(box, history.length, (value) => value / highest, [0, highest / 2, highest], rate);
  if (!frame.width) return;
  perSecond.forEach((counts, index) => {
    let below = 0;
    counts.forEach((count, ending) => {
      if (count) {
        const y = frame.y(below + count);
        const height = Math.max(1, frame.y(below) - y);
        frame.add(shape('rect', { class: `area ${ENDINGS[ending]}`, x: frame.x(index), y, width: Math.max(1, frame.step - 1), height }));
      }
      below += count;
    });
  });
  frame.show();
  const totals = ENDINGS.map((ending) => history.reduce((sum, one) => sum + (one.endings[ending] || 0), 0));
  legend.replaceChildren(
    ...ENDINGS.map((ending, index) =>
      element('li', { class: totals[index] ? ending : `${ending} none`, title: meaning(ending) }, element('i'), `${number(totals[index])} ${ending}`),
    ),
  );
  box.setAttribute('aria-label', `Requests by ending: ${ENDINGS.map((ending, index) => `${totals[index]} ${ending}`).join(', ')}`);
}

export function drawLatencies(box, legend, { history }) {
  const values = history.flatMap((one) => QUANTILES.map((name) => one[name])).filter((value) => value !== null);
  const lowest = values.length ? Math.min(0.01, 10 ** Math.floor(Math.log10(Math.min(...values)))) : 0.01;
  const highest = values.length ? Math.max(1, 10 ** Math.ceil(Math.log10(Math.max(...values)) - 0.0001)) : 1;
  const decades = [];
  for (let value = lowest; value <= highest * 1.01; value *= 10) decades.push(value);
  const place = (value) => Math.log(value / lowest) / Math.log(highest / lowest);
  const frame = new Frame(box, history.length, place, decades, axisDuration);
  if (!frame.width) return;
  for (const name of QUANTILES) {
    frame.add(shape('path', { class: `curve ${name}`, d: curve(history, name, frame) }));
    history.forEach((one, index) => {
      // A single point makes no line.
      const alone = one[name] !== null && (history[index - 1]?.[name] ?? null) === null && (history[index + 1]?.[name] ?? null) === null;
      if (alone) frame.add(shape('circle', { class: `dot ${name}`, cx: frame.x(index) + frame.step / 2, cy: frame.y(one[name]), r: 2 }));
    });
  }
  frame.show();
  const latest = [...history].reverse().find((one) => one.p50 !== null);
  const texts = QUANTILES.map((name) => `${name} ${latest === undefined ? '–' : duration(latest[name])}`);
  legend.replaceChildren(...QUANTILES.map((name, index) => element('li', { class: name }, element('i'), texts[index])));
  box.setAttribute('aria-label', `Latest latencies: ${texts.join(', ')}`);
}

function curve(history, name, frame) {
  let path = '';
  let open = false;
  history.forEach((one, index) => {
    if (one[name] === null) {
      open = false;
      return;
    }
    path += `${open ? 'L' : 'M'}${(frame.x(index) + frame.step / 2).toFixed(1)} ${frame.y(one[name]).toFixed(1)}`;
    open = true;
  });
  return path;
}

// A chart's axes; the shapes that are added are drawn on top of them.
class Frame {
  constructor(box, slots, place, marks, text) {
    this.box = box;
    this.place = place;
    this.width = box.clientWidth;
    this.height = this.width < NARROW ? LOW_HEIGHT : HEIGHT;
    this.step = (this.width - LEFT) / slots;
    this.image = shape('svg', { width: this.width, height: this.height, viewBox: `0 0 ${this.width} ${this.height}` });
    const lines = shape('g', { class: 'axis' });
    for (const mark of marks) {
      const y = this.y(mark);
      lines.append(shape('line', { x1: LEFT, x2: this.width, y1: y, y2: y }));
      lines.append(shape('text', { x: LEFT - 6, y: y + 4, 'text-anchor': 'end' }, text(mark)));
    }
    for (const [share, label, anchor] of [[0, '−15 min', 'start'], [1 / 3, '−10', 'middle'], [2 / 3, '−5', 'middle'], [1, 'now', 'end']]) {
      lines.append(shape('text', { x: LEFT + share * (this.width - LEFT), y: this.height - 4, 'text-anchor': anchor }, label));
    }
    this.image.append(lines);
  }

  x(index) {
    return LEFT + index * this.step;
  }

  y(value) {
    return this.height - BOTTOM - this.place(value) * (this.height - BOTTOM - TOP);
  }

  add(node) {
    this.image.append(node);
  }

  show() {
    this.box.replaceChildren(this.image);
  }
}

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map((factor) => factor * power).find((nice) => nice >= value * 0.999);
}

function axisDuration(seconds) {
  return seconds < 0.9 ? `${Number((seconds * 1000).toPrecision(1))} ms` : `${Math.round(seconds)} s`;
}
