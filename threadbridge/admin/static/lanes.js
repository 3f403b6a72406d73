// The lanes of all processes: their threads as cells, and how many requests wait for one.

import { addressOf, duration, element, number, setText, withoutScheme } from './elements.js';
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
  if (isRemote(lane)) cells.hidden = true;
  const item = element(
    'li',
    {},
    element('div', { class: 'name' }, element('b'), element('small')),
    cells,
    element('div', { class: 'numbers' }, element('span', { class: 'work' }), element('span', { class: 'queue' })),
    element('div', { class: 'numbers hosts' }),
    element('div', { class: 'numbers short' }, element('span', { class: 'bound' }), element('span', { class: 'kept' })),
  );
  item.dataset.key = key;
  return item;
}

function update(item, lane, several, isLong) {
  setText(item.querySelector('b'), lane.name);
  setText(item.querySelector('small'), several ? addressOf(lane.process) : '');
  if (isRemote(lane)) {
    updateHosts(item, lane);
    return;
  }
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

const isRemote = (lane) => Boolean(lane.hosts && lane.hosts.length);

// The requests of a remote lane run on other hosts: how many on which.
function updateHosts(item, lane) {
  setText(item.querySelector('.work'), `${number(lane.busy)} on other hosts`);
  const hosts = item.querySelector('.hosts');
  const texts = lane.hosts.map((host) => `${withoutScheme(host.name)}: ${host.up ? number(host.running) : 'no answer'}`);
  while (hosts.children.length > texts.length) hosts.lastChild.remove();
  texts.forEach((text, index) => setText(hosts.children[index] || hosts.appendChild(element('span')), text));
  item.querySelector('.short').hidden = true;
  item.classList.toggle('full', lane.hosts.every((host) => !host.up));
}
