// Reads the stream of pictures, one a second, and gives each to the parts of the page.

import { byId, duration, element, number, addressOf, rate, setText } from './elements.js';
import { drawLatencies, drawRates } from './history.js';
import { drawLanes } from './lanes.js';
import { Rows } from './rows.js';
import { Timeline } from './timeline.js';

const LATE = 4;
const MINUTE = 60;
const rows = new Rows(byId('rows'), announce);
const timeline = new Timeline(byId('timeline'), byId('timeline-legend'));
let latest = null;
let arrived = 0;

function announce(text) {
  byId('announcement').textContent = text;
}

// The server's clock, in seconds, as far as the browser can tell.
function now() {
  return latest.now + (performance.now() - arrived) / 1000;
}

function show(picture) {
  latest = picture;
  arrived = performance.now();
  showProcesses(picture);
  showFigures(picture);
  drawLanes(byId('lanes'), picture.processes);
  rows.show(picture, now());
  showShown(picture);
  timeline.draw(picture);
  drawRates(byId('rates'), byId('rates-legend'), picture);
  drawLatencies(byId('latencies'), byId('latencies-legend'), picture);
  const busy = picture.counts.running;
  document.title = `${busy} running${picture.counts.waiting ? `, ${picture.counts.waiting} waiting` : ''} – threadbridge`;
}

function showProcesses({ processes, process: own, unreachable }) {
  const items = processes.map((process) => {
    const name = element('span', {}, addressOf(process));
    const item = element('li', { class: process.draining ? 'draining' : 'answers' }, name);
    item.title = `process ${process.pid}, since ${new Date(process.started * 1000).toLocaleString()}`;
    if (process.draining) item.append(element('small', {}, 'draining'));
    if (process.key === own && processes.length > 1) item.append(element('small', {}, 'this one'));
    return item;
  });
  for (const { name, reason } of unreachable) {
    items.push(element('li', { class: 'unreachable' }, element('span', {}, name), element('small', {}, reason)));
  }
  const list = byId('processes');
  const signature = items.map((item) => item.className + item.textContent).join('\n');
  if (list.dataset.signature !== signature) {
    list.dataset.signature = signature;
    list.replaceChildren(...items);
  }
}

function showFigures({ processes, counts, requests, history, slot, now: clock }) {
  const lanes = processes.flatMap((process) => process.lanes);
  const threads = lanes.reduce((sum, lane) => sum + lane.threads, 0);
  setText(byId('running'), number(counts.running));
  setText(byId('threads'), `of ${number(threads)} threads${counts.sending ? `, and ${number(counts.sending)} sending` : ''}`);
  setText(byId('waiting'), number(counts.waiting));
  const waits = requests.filter((row) => row.state === 'waiting').map((row) => row.waiting);
  setText(byId('longest-wait'), waits.length ? `the longest for ${duration(Math.max(...waits))}` : 'for a thread');
  byId('waiting-figure').classList.toggle('bad', counts.waiting > 0);

  const slots = history.filter((one) => one.from + slot > clock - MINUTE);
  const total = (one) => Object.values(one.endings).reduce((sum, count) => sum + count, 0);
  const answered = slots.reduce((sum, one) => sum + total(one), 0);
  const served = clock - Math.min(...processes.map((process) => process.started));
  setText(byId('rate'), rate(answered / Math.max(1, Math.min(served, clock - slots[0].from))));
  const worst = slots.map((one) => one.p95).filter((value) => value !== null);
  setText(byId('p95'), worst.length ? duration(Math.max(...worst)) : '–');
  const kinds = {};
  for (const one of slots) {
    for (const [ending, count] of Object.entries(one.endings)) {
      if (ending !== 'done') kinds[ending] = (kinds[ending] || 0) + count;
    }
  }
  const trouble = Object.values(kinds).reduce((sum, count) => sum + count, 0);
  setText(byId('trouble'), number(trouble));
  const named = Object.entries(kinds).map(([ending, count]) => `${number(count)} ${ending}`).join(', ');
  setText(byId('trouble-kinds'), named || 'in the last minute');
  byId('trouble-figure').classList.toggle('bad', trouble > 0);
}

function showShown({ requests, counts, finished, kept_a_second: kept, processes }) {
  const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const several = processes.length > 1 ? ` in ${processes.length} processes` : '';
  const more = all > requests.length ? ` Listed are ${number(requests.length)} of ${number(all)}.` : '';
  const young = rows.young ? ` ${number(rows.young)} that began just now ${rows.young > 1 ? 'are' : 'is'} not listed.` : '';
  setText(byId('shown'), all ? `What runs stands before what waits${several}; the longest comes first.${more}${young}` : '');
  byId('nothing').hidden = all > rows.young || rows.size > 0;
  const sample = `Of each second the ${kept.done} slowest that were answered, the ${kept.other} slowest others, and what is listed above.`;
  setText(byId('sampled'), finished.length ? sample : 'Nothing has ended in it.');
}

function showWhetherLive() {
  const live = byId('live');
  const silence = latest === null ? 0 : (performance.now() - arrived) / 1000;
  const lost = latest !== null && silence > LATE;
  document.body.classList.toggle('lost', lost);
  live.className = lost ? 'lost' : latest === null ? '' : 'live';
  setText(live, lost ? 'no answer: what you see is old' : latest === null ? 'connecting …' : 'live');
}

function connect() {
  const stream = new EventSource('events');
  stream.onmessage = (event) => show(JSON.parse(event.data));
  stream.onerror = async () => {
    // The browser tries again by itself unless the answer was an error.
    if (stream.readyState !== EventSource.CLOSED) return;
    const answer = await fetch('events', { method: 'HEAD' }).catch(() => null);
    if (answer !== null && answer.status === 401) location.reload();
    else setTimeout(connect, 2000);
  };
}

setInterval(() => {
  showWhetherLive();
  if (latest !== null && !document.body.classList.contains('lost')) rows.tick(now());
}, 200);
connect();
