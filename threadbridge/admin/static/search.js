// Lists only requests with one id, or on one host. All hosts are asked: the page's own list has only the oldest of all.

import { duration, element, number, setText } from './elements.js';

// Seconds after which an answer is not awaited any more: hosts that do not answer delay it by 2 s.
const TOO_LATE = 10;

export class Search {
  // `show` is called with each answer, and with null once all requests are to be listed again.
  constructor(field, only, list, show) {
    this.field = field;
    this.only = only;
    this.list = list;
    this.show = show;
    this.id = '';
    this.host = '';
    this.found = null;
    // The number of the search, and whether an answer to it is awaited.
    this.turn = 0;
    this.waits = false;
    field.addEventListener('input', () => this.change(field.value.trim(), this.host));
    field.form.addEventListener('submit', (event) => event.preventDefault());
    only.addEventListener('click', () => {
      this.change(this.id, '');
      field.focus();
    });
  }

  get active() {
    return Boolean(this.id || this.host);
  }

  onHost(name) {
    this.change(this.id, name);
  }

  change(id, host) {
    if (id === this.id && host === this.host) return;
    this.id = id;
    this.host = host;
    this.found = null;
    this.turn += 1;
    this.waits = false;
    this.only.hidden = !host;
    setText(this.only, `Only on ${host} ×`);
    this.list.replaceChildren();
    this.show(null);
    this.ask();
  }

  async ask() {
    // It may take longer than the second after which the page asks again.
    if (!this.active || this.waits) return;
    this.waits = true;
    const { turn } = this;
    const query = new URLSearchParams({ id: this.id, host: this.host });
    const answer = await fetch(`requests.json?${query}`, { signal: AbortSignal.timeout(TOO_LATE * 1000) }).catch(() => null);
    const found = answer !== null && answer.ok ? await answer.json().catch(() => null) : null;
    // Another one may have been asked for meanwhile.
    if (turn !== this.turn) return;
    this.waits = false;
    if (found === null) return;
    this.found = found;
    if (this.id) this.showEnded(found);
    this.show(found);
  }

  // What it says above the table.
  get text() {
    const where = this.host ? ` on ${this.host}` : '';
    if (this.found === null) return `Looking for requests${where} …`;
    const { requests, unreachable, finished } = this.found;
    const count = `${requests.length ? number(requests.length) : 'No'} ${requests.length > 1 ? 'requests' : 'request'}`;
    const silent = unreachable.length ? ` ${number(unreachable.length)} did not answer.` : '';
    if (!this.id) return `${count}${where}.${silent}`;
    const ended = finished.length ? `; ${number(finished.length)} ended in the last minute` : '';
    return `${count} with this id${where}${ended}.${silent}`;
  }

  showEnded({ finished, hosts, now }) {
    const names = new Map(hosts.flatMap((host) => host.processes.map((key) => [key, host.name])));
    this.list.replaceChildren(
      ...finished.map((bar) => {
        const ago = duration(Math.max(0, now - bar.received - bar.total));
        const text = `${bar.status} ${bar.ending} after ${duration(bar.total)} on ${names.get(bar.process)}, ${ago} ago`;
        return element('li', {}, element('b', {}, `${bar.method} ${bar.url}`), ` ${text}`);
      }),
    );
  }
}
