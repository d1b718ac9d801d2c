// What both pages share: elements, requests with the key, refusals in words, the server's state.
// Texts of users and of answers only ever become text nodes.

export const $ = (id) => document.getElementById(id);

const POLL = 2000; // ms between looks at a server that is not ready
const LONGEST = 600; // characters of an error that is no JSON

/** A new element. Attributes that are functions listen to the event of their name. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, '');
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** An answer that is an error, or none; `passing`: the same request may be answered later. */
export class Refusal extends Error {
  constructor(message, answer, passing = answer?.status === 503) {
    super(message);
    this.passing = passing;
    this.status = answer?.status ?? 0;
    this.id = answer?.headers.get('x-request-id') ?? '';
    const wait = Number(answer?.headers.get('retry-after') ?? NaN);
    this.retryAfter = Number.isFinite(wait) ? wait : null; // seconds
  }
}

/** Send a request, of a body POST; any status comes back, with the text and the time in ms. */
export async function send(path, body) {
  const key = $('key').value.trim();
  if (!/^[\x20-\x7e]*$/.test(key)) throw new Refusal('An API key has ASCII characters only.');
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers['content-type'] = 'application/json';
  const method = body === undefined ? 'GET' : 'POST';
  const began = performance.now();
  try {
    const answer = await fetch(path, { method, headers, body, cache: 'no-store' });
    return { answer, text: await answer.text(), ms: performance.now() - began };
  } catch {
    throw new Refusal('The server does not answer. Is it still running?', undefined, true);
  }
}

/** The value of a JSON answer; of an error a Refusal. */
export async function ask(path, value) {
  const { answer, text, ms } = await send(path, value && JSON.stringify(value));
  if (!answer.ok) throw refusal(answer, text);
  return { value: JSON.parse(text), answer, ms };
}

export function refusal(answer, text) {
  return new Refusal(messageOf(text) || answer.statusText || 'no message', answer);
}

/** The message in the error of any protocol. */
function messageOf(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    return text.slice(0, LONGEST);
  }
  const detail = Array.isArray(found?.detail) ? found.detail[0]?.msg : found?.detail;
  const message = found?.error?.message ?? found?.error ?? detail ?? found?.message;
  return typeof message === 'string' ? message : text.slice(0, LONGEST);
}

/** Show a refusal; `button` is disabled for the time that a 429 asks to wait. */
export function show(place, error, button) {
  if (!(error instanceof Refusal)) throw error;
  place.replaceChildren(element('p', {}, headingOf(error)));
  place.hidden = false;
  if (error.status && error.status !== 401) place.append(element('p', {}, error.message));
  const facts = error.status ? [`status ${error.status}`] : [];
  if (error.id) facts.push(`request ${error.id}`);
  if (facts.length) place.append(element('p', { class: 'muted' }, facts.join(', ')));
  if (error.status === 401) $('key').focus();
  if (error.status === 429) countDown(place, error.retryAfter ?? 1, button);
  if (error.passing) untilReady();
}

function headingOf({ status, message }) {
  const known = {
    0: message,
    401: 'This server needs a key: enter it as “API key”.',
    413: 'That is too much at once.',
    429: 'The server is busy.',
    503: 'The server cannot answer now.',
  };
  return known[status] ?? (status < 500 ? 'The server refused this.' : 'The server failed.');
}

function countDown(place, seconds, button) {
  // a timer is not read out at each step, as other changes of an alert are
  const line = element('p', { role: 'timer' });
  place.append(line);
  if (button) button.disabled = true;
  const end = Date.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    const text = left > 0 ? `Try again in ${left} s.` : 'Try again now.';
    if (line.textContent !== text) line.textContent = text;
    if (left > 0 && line.isConnected) setTimeout(tick, 250);
    else if (button) button.disabled = false;
  };
  tick();
}

const pause = () => new Promise((done) => setTimeout(done, POLL));
let waiting = null;

/** Wait until the server is ready, and say so meanwhile. */
export function untilReady() {
  waiting ??= poll().finally(() => {
    waiting = null;
  });
  return waiting;
}

async function poll() {
  const place = $('state');
  for (let problem; (problem = await state()); ) {
    if (place.textContent !== problem) place.textContent = problem;
    place.hidden = false;
    await pause();
  }
  place.hidden = true;
  place.textContent = '';
}

/** Why the server is not ready, in words; '' if it is. */
async function state() {
  try {
    const answer = await fetch('health/ready', { cache: 'no-store' });
    if (answer.ok) return '';
    const { reason } = await answer.json();
    if (reason === 'loading') {
      return 'The server is loading its model. This page continues by itself.';
    }
    if (reason === 'draining') return 'The server is stopping. Trying again …';
    return `The server is not ready: ${reason}. Trying again …`;
  } catch {
    return 'The server does not answer. Trying again …';
  }
}

/** Load a page's data when the server is ready, and again whenever the key changes. */
export async function start(load) {
  let latest = 0;
  const attempt = async () => {
    const mine = ++latest;
    while (mine === latest) {
      try {
        await untilReady();
        await load();
        $('problem').hidden = true;
        return;
      } catch (error) {
        show($('problem'), error);
        if (!error.passing) return;
        await pause();
      }
    }
  };
  $('key').addEventListener('change', attempt);
  await attempt();
}

/** A button that copies a text, also where there is no clipboard because the page came by http. */
export function copyButton(label, text) {
  const button = element('button', { type: 'button', class: 'copy' }, label);
  button.addEventListener('click', async () => {
    button.textContent = (await copy(text())) ? 'Copied' : 'Not copied';
    setTimeout(() => {
      button.textContent = label;
    }, 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element('textarea', { class: 'off-screen', 'aria-hidden': 'true' }, text);
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}
