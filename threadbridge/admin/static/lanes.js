// The lanes of all processes: their threads as cells, and how many requests wait for one.

import { addressOf, duration, element, number, setText } from './elements.js';
import { isWaitingLong } from './waiting.js';

const MOST_CELLS = 40;

export function drawLanes(list, processes, requests) {
  const lanes = processes.flatMap((process) => process.lanes.map((lane) => ({ ...lane, process })));
  const known = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const items = lanes.map((lane) => {
    const key = `${lane.process.key} ${lane.name} ${lane.threads}`;
    const item = known.get(key) || made(key, lane);
    const waits = requests.filter((row) => row.state === 'waiting' && row.process === lane.process.key && row.lane === lane.name);
    update(item, lane, processes.length > 1, isWaitingLong(lane.queued, waits));
    known.delete(key);
    return item;
  });
  for (const gone of known.values()) gone.remove();
  items.forEach((item, index) => {
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] || null);
  });
}

function made(key, lane) {
  const cells = element('div', { class: 'cells', 'aria-hidden': 'true' });
  for (let cell = 0; cell < Math.min(lane.threads, MOST_CELLS); cell++) cells.append(element('i'));
  const item = element(
    'li',
    {},
    element('div', { class: 'name' }, element('b'), element('small')),
    cells,
    element('div', { class: 'numbers' }, element('span', { class: 'work' }), element('span', { class: 'queue' })),
    element('div', { class: 'numbers short' }, element('span', { class: 'bound' }), element('span', { class: 'kept' })),
  );
  item.dataset.key = key;
  return item;
}

function update(item, lane, several, isLong) {
  setText(item.querySelector('b'), lane.name);
  setText(item.querySelector('small'), several ? addressOf(lane.process) : '');
  setText(item.querySelector('.work'), `${number(lane.busy)} of ${number(lane.threads)} busy`);
  setText(item.querySelector('.queue'), lane.queued ? `${number(lane.queued)} waiting` : 'none waiting');
  // Only where requests are scheduled by cost.
  item.querySelector('.short').hidden = !lane.short_below;
  if (lane.short_below) {
    setText(item.querySelector('.bound'), `short: under ${duration(lane.short_below)}`);
    setText(item.querySelector('.kept'), lane.kept ? `${number(lane.kept)} kept free` : 'none kept');
  }
  const cells = item.querySelectorAll('.cells i');
  const filled = Math.ceil((Math.min(lane.busy, lane.threads) * cells.length) / lane.threads);
  cells.forEach((cell, index) => cell.classList.toggle('busy', index < filled));
  item.classList.toggle('full', lane.busy >= lane.threads);
  item.classList.toggle('queued', isLong);
}
