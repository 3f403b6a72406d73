// The ways in which a request can end; each is also a class in the style sheet.

export const ENDINGS = ['done', 'failed', 'expired', 'shed', 'refused', 'abandoned'];

const MEANINGS = {
  done: 'answered',
  failed: 'the application failed',
  expired: 'took too long or was stopped: 504',
  shed: 'not run: 503',
  refused: 'not a valid request',
  abandoned: 'the client left',
};

export function meaning(ending) {
  return MEANINGS[ending] || ending;
}
