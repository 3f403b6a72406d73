// Makes elements and texts. Text from requests and queries goes only through textContent and setAttribute, which never
// parse it as HTML.

const SVG = 'http://www.w3.org/2000/svg';

export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

// Leaves equal text alone, so that screen readers and selections keep their position.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function duration(seconds) {
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

// At most six characters, for narrow places.
export function shortDuration(seconds) {
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  return seconds < 5970 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

export function number(value) {
  return value.toLocaleString('en');
}

export function rate(value) {
  return value >= 10 || value === 0 ? number(Math.round(value)) : value.toFixed(1);
}

// http://127.0.0.1:8000/ -> :8000
export function addressOf(process) {
  const address = (process.addresses[0] || `process ${process.pid}`).replace(/^https?:\/\//, '').replace(/\/$/, '');
  return address.replace(/^(127\.0\.0\.1|localhost|0\.0\.0\.0|\[::\])(?=:)/, '');
}

export function withoutScheme(url) {
  return url.replace(/^https?:\/\//, '');
}

// The other host where a request runs or has run; empty if that is none.
export function hostOf(request) {
  return withoutScheme(request.upstream || '');
}
