// The API page: every route of openapi.json with its fields, an example, and a form to send it.

import { $, ask, copyButton, element, refusal, send, show, start } from './shared.js';
import { apart, exampleOf, fieldsOf, refusedTogether, typeOf } from './schema.js';

const MOST_VALUES = 12; // of a list of numbers that is shown
const MOST_TEXT = 20_000; // characters of an answer that are shown

async function load() {
  const root = (await ask('openapi.json')).value;
  $('version').textContent = `${root.info.title} ${root.info.version}.`;
  const groups = new Map();
  for (const [path, item] of Object.entries(root.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      const tag = operation.tags?.[0] ?? 'Other';
      groups.set(tag, [...(groups.get(tag) ?? []), route(root, path, method, operation)]);
    }
  }
  const sections = [...groups].map(([tag, routes]) =>
    element('section', {}, element('h2', {}, tag), ...routes),
  );
  $('routes').replaceChildren(...sections);
  open();
}

/** Open the route that the address names. */
function open() {
  const found = document.getElementById(named());
  if (found?.localName !== 'details') return;
  found.open = true;
  found.scrollIntoView();
}

/** What the address names; '' if it is not valid, such as #%. */
function named() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch (error) {
    if (!(error instanceof URIError)) throw error;
    return '';
  }
}

function route(root, path, method, operation) {
  const id = method + path;
  const title = (operation.summary ?? '').replace(` (${operation.tags?.[0]})`, '');
  const summary = element(
    'summary',
    {},
    element('span', { class: `method ${method}` }, method.toUpperCase()),
    element('code', {}, path),
    element('span', { class: 'muted' }, title),
  );
  const parts = [];
  if (operation.description) parts.push(element('p', {}, operation.description));
  const schema = operation.requestBody?.content['application/json'].schema;
  if (schema) parts.push(...body(root, schema));
  parts.push(...trial(root, path, schema), ...answers(root, operation));
  return element('details', { id, class: 'route' }, summary, ...parts);
}

function body(root, schema) {
  const { common, own } = apart(fieldsOf(schema, root));
  const found = [element('h3', {}, 'Body')];
  if (common.length) found.push(listOf(common));
  if (own.length > 1) {
    for (const [i, fields] of own.entries()) {
      const before = common.length ? 'and ' : '';
      found.push(element('p', { class: 'muted' }, i ? 'or' : `${before}either`), listOf(fields));
    }
  }
  const together = refusedTogether(schema, root);
  if (together.length) found.push(element('p', {}, `Refused: ${together.join('; ')}.`));
  return found;
}

function listOf(fields) {
  const rows = fields.flatMap((field) => {
    const must = field.required ? element('strong', {}, 'required') : 'optional';
    const facts = [...field.limits];
    if (field.byDefault !== null) facts.push(`default ${JSON.stringify(field.byDefault)}`);
    return [
      element('dt', {}, element('code', {}, field.name), ` ${field.type}, `, must),
      element('dd', {}, [facts.join('; '), field.description].filter(Boolean).join('. ')),
    ];
  });
  return element('dl', { class: 'fields' }, ...rows);
}

/** The example as a command, and the form that sends it. */
function trial(root, path, schema) {
  const example = schema && JSON.stringify(exampleOf(schema, root), null, 2);
  const rows = example && example.split('\n').length + 1;
  const area = element('textarea', { rows, spellcheck: 'false' });
  if (example) area.value = example;
  const curl = element('code');
  const refresh = () => {
    curl.textContent = command(path, schema && area.value);
  };
  area.addEventListener('input', refresh);
  $('key').addEventListener('change', refresh);
  refresh();
  const button = element('button', {}, 'Send');
  const failure = element('div', { class: 'failure', role: 'alert', hidden: true });
  const region = { class: 'result', role: 'region', 'aria-label': 'Answer', hidden: true };
  const result = element('div', region);
  const submit = (event) => {
    event.preventDefault();
    act(path, schema && area.value, { button, failure, result });
  };
  const label = element('label', { class: 'wide' }, 'Example', area);
  return [
    element('form', { submit }, ...(schema ? [label] : []), button),
    failure,
    result,
    element('h3', {}, 'As a command'),
    element('pre', { tabindex: '0' }, curl),
    copyButton('Copy the command', () => curl.textContent),
  ];
}

/** The curl command of a request. The key itself is never shown. */
function command(path, text) {
  const quote = (value) => `'${value.replaceAll("'", `'\\''`)}'`;
  const parts = [`curl -s ${quote(new URL(path.slice(1), location.href).href)}`];
  if ($('key').value.trim()) parts.push('-H "authorization: Bearer $NOMICBERT_API_KEY"');
  if (text !== undefined) parts.push("-H 'content-type: application/json'", `-d ${quote(text)}`);
  return parts.join(' \\\n  ');
}

async function act(path, text, { button, failure, result }) {
  button.disabled = true;
  failure.hidden = true;
  try {
    const { answer, text: found, ms } = await send(path.slice(1), text);
    button.disabled = false;
    result.replaceChildren(...shown(answer, found, ms));
    result.hidden = false;
    if (!answer.ok) show(failure, refusal(answer, found), button);
  } catch (error) {
    button.disabled = false;
    result.hidden = true;
    show(failure, error, button);
  }
}

function shown(answer, text, ms) {
  const headers = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join('\n');
  const { status, statusText } = answer;
  const size = new Intl.NumberFormat('en').format(new Blob([text]).size);
  const told = element('strong', {}, `${status} ${statusText}`);
  return [
    element('p', { role: 'status' }, told, ` in ${Math.round(ms)} ms, ${size} bytes`),
    element('h3', {}, 'Headers'),
    element('pre', { tabindex: '0' }, headers),
    element('h3', {}, 'Answer'),
    element('pre', { tabindex: '0' }, readable(text)),
    copyButton('Copy the whole answer', () => text),
  ];
}

/** JSON with line breaks, long lists of numbers cut; other text as it is. */
function readable(text) {
  let found = text;
  try {
    found = pretty(JSON.parse(text), '');
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  const more = found.length - MOST_TEXT;
  return more > 0 ? `${found.slice(0, MOST_TEXT)}\n… ${more} more characters` : found || '(empty)';
}

function pretty(value, indent) {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    if (value.every((one) => typeof one === 'number')) {
      const rest = value.length - MOST_VALUES;
      const start = value.slice(0, MOST_VALUES).join(', ');
      return rest > 0 ? `[${start}, … ${rest} more]` : `[${start}]`;
    }
    return block('[', value.map((one) => pretty(one, inner)), ']', indent);
  }
  const pairs = Object.entries(value).map(
    ([key, one]) => `${JSON.stringify(key)}: ${pretty(one, inner)}`,
  );
  return block('{', pairs, '}', indent);
}

function block(open, parts, close, indent) {
  if (!parts.length) return open + close;
  return `${open}\n${parts.map((part) => `${indent}  ${part}`).join(',\n')}\n${indent}${close}`;
}

function answers(root, operation) {
  const { 200: found, ...refused } = operation.responses;
  const schema = found?.content?.['application/json']?.schema;
  const fields = schema ? fieldsOf(schema, root).flat() : [];
  const names = fields.map(({ name }) => name).filter((name) => !name.includes('.'));
  const answered = [
    `200: ${schema ? typeOf(schema, root) : 'empty'}`,
    ...(names.length ? [`with ${names.join(', ')}`] : []),
  ].join(' ');
  const others = Object.keys(refused).join(', ');
  return [
    element('h3', {}, 'Answers'),
    element('p', {}, `${answered}. Refusals, each as JSON: ${others}.`),
  ];
}

addEventListener('hashchange', open);
await start(load);
