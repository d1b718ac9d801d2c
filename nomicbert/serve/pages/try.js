// The start page: embed a text, compare texts, rank documents.

import { $, Refusal, ask, copyButton, element, show, start } from './shared.js';
import { bars, heat, ranking, tokens } from './pictures.js';

const SHOWN = 8; // values of a vector that are printed
const MOST = 40; // texts of a matrix
// Which prompt of a checkpoint is meant for what, by its name.
const SIDES = {
  query: /^(search_)?query$/,
  document: /^(search_)?(document|passage)$/,
  similarity: /^(clustering|sts|similarity)$/,
};
const number = new Intl.NumberFormat('en');
let models = [];

// ---- models and prompts ----

const chosen = () => models.find((one) => one.id === $('model').value);

async function load() {
  ({ data: models } = (await ask('v1/models')).value);
  const embedders = models.filter((one) => one.dimensions);
  const rerankers = models.filter((one) => one.labels?.length === 1);
  fill($('model'), embedders);
  fill($('reranker'), rerankers);
  const none = !rerankers.length;
  $('no-reranker').hidden = !none;
  $('method').querySelector('[value=reranker]').disabled = none;
  $('method').value = none ? 'cosine' : 'reranker';
  chooseMethod();
  chooseModel();
}

function fill(select, found) {
  const before = select.value;
  select.replaceChildren(...found.map(({ id }) => element('option', { value: id }, id)));
  if (found.some(({ id }) => id === before)) select.value = before;
}

function chooseModel() {
  const model = chosen();
  const limit = model && number.format(model.max_model_len);
  $('facts').textContent = model
    ? `${model.dimensions} dimensions, texts of up to ${limit} tokens`
    : 'This server has no embedding model.';
  $('dimensions').max = model?.dimensions ?? '';
  const names = Object.keys(model?.prompts ?? {});
  for (const select of document.querySelectorAll('select.prompt')) {
    const before = select.value;
    const options = names.map((name) => {
      const text = model.prompts[name];
      return element('option', { value: name }, text ? `${name} (“${text.trim()}”)` : name);
    });
    select.replaceChildren(element('option', { value: '' }, "the server's default"), ...options);
    const meant = names.find((name) => SIDES[select.dataset.side].test(name)) ?? '';
    select.value = before && names.includes(before) ? before : meant;
  }
}

// ---- tabs ----

const tabs = [...document.querySelectorAll('[role=tab]')];

function choose(tab) {
  for (const one of tabs) {
    const on = one === tab;
    one.setAttribute('aria-selected', on);
    one.tabIndex = on ? 0 : -1;
    $(one.getAttribute('aria-controls')).hidden = !on;
  }
  history.replaceState(null, '', `#${tab.getAttribute('aria-controls')}`);
}

function move(event) {
  const at = tabs.indexOf(event.target);
  const keys = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 };
  if (!(event.key in keys)) return;
  event.preventDefault();
  const next = tabs.at(keys[event.key] % tabs.length);
  next.focus();
  choose(next);
}

// ---- what the forms do ----

/** Vectors of texts by OpenAI's protocol. */
async function embed(texts, prompt) {
  const model = chosen();
  if (!model) throw new Refusal('This server has no embedding model.');
  const body = { model: model.id, input: texts, encoding_format: 'float' };
  if (prompt) body.prompt_name = prompt;
  if ($('dimensions').value) body.dimensions = Number($('dimensions').value);
  const { value, answer, ms } = await ask('v1/embeddings', body);
  const fingerprint = answer.headers.get('x-embedding-fingerprint');
  return { rows: value.data.map((one) => one.embedding), usage: value.usage, fingerprint, ms };
}

const linesOf = (text) => text.split('\n').map((line) => line.trim()).filter(Boolean);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const product = (a, b) => sum(a.map((value, i) => value * b[i]));
const cosine = (a, b) => product(a, b) / Math.sqrt(product(a, a) * product(b, b));
const time = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms round trip`;

function facts(pairs) {
  const cells = pairs.flatMap(([name, value]) => [
    element('dt', {}, name),
    element('dd', {}, value),
  ]);
  return element('dl', { class: 'facts' }, ...cells);
}

/** A note if texts were cut; `warnings` are the server's own words for it. */
function cuts(count, warnings = []) {
  const many = count === 1 ? '1 text was' : `${count} texts were`;
  const plain = `${many} cut: longer than the server's limit of tokens.`;
  const words = warnings.length || !count ? warnings : [plain];
  return words.map((text) => element('p', { class: 'note' }, text));
}

const ACTIONS = {
  async embed(form) {
    const prompt = form.querySelector('.prompt').value;
    const text = form.elements.text.value;
    const { rows, usage, fingerprint, ms } = await embed([text], prompt);
    const [vector] = rows;
    const first = vector.slice(0, SHOWN).map((one) => one.toFixed(4)).join('  ');
    const parts = [
      ...cuts(usage.truncated_texts),
      facts([
        ['Dimensions', String(vector.length)],
        ['Tokens', String(usage.prompt_tokens)],
        ['Time', time(ms)],
        ['Fingerprint', element('code', {}, fingerprint)],
        ['First values', element('code', {}, first + (vector.length > SHOWN ? '  …' : ''))],
      ]),
      copyButton('Copy the vector', () => JSON.stringify(vector)),
      bars(vector),
    ];
    // /tokenize is a route of the first model only
    if (chosen().root === models[0].root) {
      const body = prompt ? { inputs: text, prompt_name: prompt } : { inputs: text };
      parts.push(tokens((await ask('tokenize', body)).value[0]));
    }
    return parts;
  },

  async compare(form) {
    const texts = linesOf(form.elements.texts.value);
    if (texts.length < 2) throw new Refusal('Write two lines or more.');
    if (texts.length > MOST) throw new Refusal(`Write at most ${MOST} lines.`);
    const { rows, usage, ms } = await embed(texts, form.querySelector('.prompt').value);
    const cosines = rows.map((a) => rows.map((b) => cosine(a, b)));
    const told = facts([['Tokens', String(usage.prompt_tokens)], ['Time', time(ms)]]);
    return [...cuts(usage.truncated_texts), heat(texts, cosines), told];
  },

  async rerank(form) {
    const query = form.elements.query.value;
    const documents = linesOf(form.elements.documents.value);
    if (!documents.length) throw new Refusal('Write a document per line.');
    if ($('method').value === 'reranker') {
      const body = { model: $('reranker').value, query, documents };
      const { value, ms } = await ask('v1/rerank', body);
      const scores = value.results.map(({ index, relevance_score: score }) => ({ index, score }));
      const noted = cuts(value.usage?.truncated_texts ?? 0, value.meta?.warnings);
      return [...noted, ranking(documents, scores), facts([['Time', time(ms)]])];
    }
    const { 'query-prompt': before, 'document-prompt': inside } = form.elements;
    const asked = await embed([query], before.value);
    const given = await embed(documents, inside.value);
    const scores = given.rows.map((row, index) => ({ index, score: cosine(asked.rows[0], row) }));
    const count = asked.usage.truncated_texts + given.usage.truncated_texts;
    const told = facts([['Time', time(asked.ms + given.ms)]]);
    return [...cuts(count), ranking(documents, scores), told];
  },
};

/** Run the action of a form; what comes back replaces the result before it. */
async function act(section) {
  const form = section.querySelector('form');
  const button = form.querySelector('button');
  const [failure, result] = [section.querySelector('.failure'), section.querySelector('.result')];
  button.disabled = true;
  section.setAttribute('aria-busy', 'true');
  try {
    const parts = await ACTIONS[section.id](form);
    result.replaceChildren(...parts);
    result.hidden = false;
    failure.hidden = true;
    button.disabled = false;
  } catch (error) {
    result.hidden = true;
    button.disabled = false;
    show(failure, error, button);
    const hasOther = section.id === 'rerank' && $('method').value === 'reranker';
    if (hasOther) failure.append(instead(section));
  } finally {
    section.removeAttribute('aria-busy');
  }
}

/** The way out if the server does not rerank. */
function instead(section) {
  const click = () => {
    $('method').value = 'cosine';
    chooseMethod();
    act(section);
  };
  return element('button', { type: 'button', click }, 'Rank by cosine instead');
}

function chooseMethod() {
  for (const one of document.querySelectorAll('[data-for]')) {
    one.hidden = one.dataset.for !== $('method').value;
  }
}

for (const tab of tabs) {
  tab.addEventListener('click', () => choose(tab));
  tab.addEventListener('keydown', move);
}
for (const section of document.querySelectorAll('[role=tabpanel]')) {
  section.querySelector('form').addEventListener('submit', (event) => {
    event.preventDefault();
    act(section);
  });
}
$('model').addEventListener('change', chooseModel);
$('method').addEventListener('change', chooseMethod);
const opened = tabs.find((tab) => `#${tab.getAttribute('aria-controls')}` === location.hash);
if (opened) choose(opened);
await start(load);
