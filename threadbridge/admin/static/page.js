// Reads the stream of events, one a second, and passes each to the parts of the page.

import { addressOf, byId, duration, element, number, rate, setText, shortDuration } from './elements.js';
import { drawLatencies, drawRates } from './history.js';
import { areSeveral, Hosts } from './hosts.js';
import { drawLanes } from './lanes.js';
import { Learned } from './learned.js';
import { Rows } from './rows.js';
import { Search } from './search.js';
import { Timeline } from './timeline.js';
import { isWaitingLong } from './waiting.js';

// Seconds without an event after which the page warns.
const LATE = 4;
const MINUTE = 60;
const rows = new Rows(byId('rows'), announce);
const learned = new Learned(byId('learned'));
const search = new Search(byId('search'), byId('only'), byId('found'), showFound);
const hosts = new Hosts(byId('hosts'), (name) => {
  search.onHost(name);
  // Many hosts take more than a screen.
  byId('requests').scrollIntoView();
});
const timeline = new Timeline(byId('timeline'), byId('timeline-legend'));
let latest = null;
let arrived = 0;

function announce(text) {
  byId('announcement').textContent = text;
}

// The server's time in seconds, as far as the browser can tell.
function now() {
  return latest.now + (performance.now() - arrived) / 1000;
}

function show(data) {
  latest = data;
  arrived = performance.now();
  showProcesses(data);
  showFigures(data);
  hosts.draw(data);
  showLanes(data);
  if (search.active) {
    search.ask();
  } else {
    rows.show(data, now());
    showShown(data);
  }
  showSample(data);
  timeline.draw(data);
  drawRates(byId('rates'), byId('rates-legend'), data);
  drawLatencies(byId('latencies'), byId('latencies-legend'), data);
  const busy = data.counts.running;
  document.title = `${busy} running${data.counts.waiting ? `, ${data.counts.waiting} waiting` : ''} – threadbridge`;
}

// Those of several hosts are shown by host.
function showLanes(data) {
  const several = areSeveral(data);
  document.querySelector('.lanes').hidden = several;
  if (!several) drawLanes(byId('lanes'), data.processes, data.requests);
}

// What the search has found; null if it begins, or is over.
function showFound(found) {
  if (found === null) rows.clear();
  const shown = search.active ? found : latest;
  if (shown !== null) rows.show(shown, now());
  if (!search.active && latest !== null) {
    showShown(latest);
    return;
  }
  setText(byId('shown'), search.text);
  byId('nothing').hidden = true;
}

function showProcesses(data) {
  const { processes, process: own, hosts: answering, unreachable } = data;
  const chip = (kind, text, small) => element('li', { class: kind }, element('span', {}, text), ...(small ? [element('small', {}, small)] : []));
  let items;
  if (areSeveral(data)) {
    // There is a table of them.
    items = [chip('answers', `${number(answering.length)} ${answering.length > 1 ? 'hosts' : 'host'}`)];
    if (unreachable.length) {
      const link = element('a', { href: '#hosts' }, `${number(unreachable.length)} without an answer`);
      items.push(element('li', { class: 'unreachable' }, link));
    }
  } else {
    items = processes.map((process) => {
      const item = chip(process.draining ? 'draining' : 'answers', addressOf(process), process.draining ? 'draining' : '');
      item.title = `process ${process.pid}, since ${new Date(process.started * 1000).toLocaleString()}`;
      if (process.key === own && processes.length > 1) item.append(element('small', {}, 'this one'));
      return item;
    });
    items.push(...unreachable.map(({ name, reason }) => chip('unreachable', name, reason)));
  }
  const list = byId('processes');
  const signature = items.map((item) => item.className + item.textContent).join('\n');
  if (list.dataset.signature !== signature) {
    list.dataset.signature = signature;
    list.replaceChildren(...items);
  }
}

function showFigures({ processes, counts, requests, latencies, history, slot, now: clock }) {
  const lanes = processes.flatMap((process) => process.lanes);
  const threads = lanes.reduce((sum, lane) => sum + lane.threads, 0);
  setText(byId('running'), number(counts.running));
  setText(byId('threads'), `of ${number(threads)} threads${counts.sending ? `, and ${number(counts.sending)} sending` : ''}`);
  setText(byId('waiting'), number(counts.waiting));
  const waits = requests.filter((row) => row.state === 'waiting');
  const longest = Math.max(...waits.map((row) => row.waiting));
  setText(byId('longest-wait'), waits.length ? `the longest for ${duration(longest)}` : 'for a thread');
  byId('waiting-figure').classList.toggle('bad', isWaitingLong(counts.waiting, waits));

  const slots = history.filter((one) => one.from + slot > clock - MINUTE);
  const total = (one) => Object.values(one.endings).reduce((sum, count) => sum + count, 0);
  const answered = slots.reduce((sum, one) => sum + total(one), 0);
  const served = clock - Math.min(...processes.map((process) => process.started));
  setText(byId('rate'), rate(answered / Math.max(1, Math.min(served, clock - slots[0].from))));
  for (const [name, value] of Object.entries(latencies)) setText(byId(name), value === null ? '–' : shortDuration(value));
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

function showShown({ requests, counts, processes, hosts: answering }) {
  const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const many = answering.length > 1 ? ` on ${answering.length} hosts` : ` of ${processes.length} processes`;
  const several = processes.length > 1 ? many : '';
  const more = all > requests.length ? ` Only ${number(requests.length)} of ${number(all)} are listed.` : '';
  const young = rows.young ? ` Not listed: ${number(rows.young)} that began just now.` : '';
  // A line more or less would move the rows.
  if (!rows.held) setText(byId('shown'), all ? `Running requests${several} first, then waiting ones; the longest at the top.${more}${young}` : '');
  byId('nothing').hidden = all > rows.young || rows.size > 0;
}

function showSample({ finished, kept_a_second: kept }) {
  const sample = `Of each second the ${kept.done} slowest answered requests and the ${kept.other} slowest others, and all that are listed.`;
  setText(byId('sampled'), finished.length ? sample : 'No request has ended in it.');
}

function showWhetherLive() {
  const live = byId('live');
  const silence = latest === null ? 0 : (performance.now() - arrived) / 1000;
  const lost = latest !== null && silence > LATE;
  document.body.classList.toggle('lost', lost);
  live.className = lost ? 'lost' : latest === null ? '' : 'live';
  setText(live, lost ? 'no answer: the page is out of date' : latest === null ? 'connecting …' : 'live');
}

function connect() {
  const stream = new EventSource('events');
  stream.onmessage = (event) => show(JSON.parse(event.data));
  stream.onerror = async () => {
    // The browser reconnects by itself, unless the answer was an error.
    if (stream.readyState !== EventSource.CLOSED) return;
    const answer = await fetch('events', { method: 'HEAD' }).catch(() => null);
    if (answer !== null && answer.status === 401) location.reload();
    else setTimeout(connect, 2000);
  };
}

setInterval(() => {
  showWhetherLive();
  if (latest === null || document.body.classList.contains('lost')) return;
  rows.tick(now());
  learned.tick();
}, 200);
connect();
