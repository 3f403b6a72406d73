// When waiting for a thread is worth a warning: moments of it are normal.

// Seconds.
const LONG = 1;

// Only some of the requests are listed, the running ones first: if no waiting one is, the threads are too few for those.
export function isWaitingLong(count, listed) {
  return count > 0 && (!listed.length || Math.max(...listed.map((request) => request.waiting)) > LONG);
}
