// How a request may end; each has the class of its name in the style sheet.

export const ENDINGS = ['done', 'failed', 'expired', 'shed', 'refused', 'abandoned'];

const MEANINGS = {
  done: 'answered',
  failed: 'the application failed',
  expired: 'took too long, or was stopped: 504',
  shed: 'not run: 503',
  refused: 'not a request that can be served',
  abandoned: 'the client has left',
};

export function meaning(ending) {
  return MEANINGS[ending] || ending;
}
