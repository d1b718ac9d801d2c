// The page: what is shown and asked for. The model is in worker.js.

const PAUSE = 120; // milliseconds without a key before a question is asked
const EXAMPLES = [
  'How do plants live on sunlight?',
  'Why does bread get bigger in the oven?',
  'keeping my accounts safe',
  'moon landing',
];
// As in Python: names of prompts in order of preference, and those of nomic's card.
const QUERY_NAMES = ['query', 'search_query'];
const DOCUMENT_NAMES = ['document', 'passage', 'corpus', 'search_document'];
const CARD = { search_query: 'search_query: ', search_document: 'search_document: ' };
const ADVICE =
  'Export a model and make the site again:\n' +
  'nomicbert export MODEL -o exported --dtype q8\nnpm run site -- exported';
const OWN_LINES = [
  'The meeting about the budget is on Tuesday at ten.',
  'Grandma\'s apple pie needs three eggs and a little cinnamon.',
  'The spare key is under the third flower pot.',
  'Our flight to Lisbon leaves at seven in the morning.',
  'The vet says the cat should eat less.',
];

const $ = (id) => document.getElementById(id);
const worker = new Worker('worker.js', { type: 'module' });
const options = new URLSearchParams(location.search);

let models = []; // of models/index.json
let passages = []; // { title, text } of passages.json
let shown = []; // those that are searched now
let asked = 0; // number of the last question
let timer;
let dead = false; // whether the worker has not started: nothing can be said after that

function say(text, { progress, bad = false } = {}) {
  if (dead) return;
  $('status-text').textContent = text;
  $('status').classList.toggle('bad', bad);
  $('progress').hidden = progress === undefined;
  if (progress !== undefined) $('progress').value = progress;
}

async function json(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is missing (HTTP ${response.status})`);
  return response.json();
}

async function begin() {
  for (const text of EXAMPLES) {
    const chip = Object.assign(document.createElement('button'), {
      type: 'button',
      textContent: text,
      disabled: true,
    });
    chip.addEventListener('click', () => {
      $('question').value = text;
      ask();
    });
    $('examples').append(chip);
  }
  say('Reading the list of models …');
  [models, passages] = await Promise.all([json('models/index.json'), json('passages.json')]);
  if (!models.length) throw new Error('models/index.json lists no model');
  for (const { name } of models) $('model').add(new Option(name));
  shown = passages;
  $('lines').value = OWN_LINES.join('\n');
  load();
}

function enable(on) {
  for (const control of document.querySelectorAll('#question, #examples button, #model, form button[type="submit"]')) {
    control.disabled = !on;
  }
  $('question').placeholder = on ? 'Ask in your own words' : 'Loading the model …';
}

async function load() {
  enable(false);
  clear();
  const model = models.find(({ name }) => name === $('model').value);
  const { document: ofTexts, query } = await promptsOf(model.name);
  $('document-prompt').value = ofTexts;
  $('query-prompt').value = query;
  say('Loading the model …', { progress: 0 });
  worker.postMessage({ type: 'load', ...model, threads: Number(options.get('threads')) });
}

async function promptsOf(name) {
  const [config, sentence] = await Promise.all(
    ['config.json', 'config_sentence_transformers.json'].map((file) => json(`models/${name}/${file}`)),
  );
  let prompts = sentence.prompts ?? {};
  if (config.model_type === 'nomic_bert' && !Object.values(prompts).some(Boolean)) prompts = CARD;
  const first = (names) => prompts[names.find((key) => key in prompts)] ?? '';
  return { document: first(DOCUMENT_NAMES), query: first(QUERY_NAMES) };
}

function embed() {
  clear();
  mark({ embedded: '' });
  say(`Embedding ${shown.length} texts …`, { progress: 0 });
  const texts = shown.map(({ title, text }) => (title ? `${title}: ${text}` : text));
  worker.postMessage({ type: 'embed', texts, prompt: $('document-prompt').value });
}

function ask() {
  clearTimeout(timer);
  const text = $('question').value.trim();
  asked += 1;
  if (!text) return clear();
  worker.postMessage({ type: 'ask', id: asked, text, prompt: $('query-prompt').value });
}

/** Facts about the page's state, for tests. */
function mark(facts) {
  Object.assign(document.documentElement.dataset, facts);
}

function clear() {
  mark({ answered: '' });
  $('found').hidden = true;
  $('results').replaceChildren();
  $('summary').textContent = '';
}

function show({ hits, milliseconds, text }) {
  mark({ answered: text });
  $('results').replaceChildren(...hits.map(card));
  $('found').hidden = false;
  const best = shown[hits[0].index];
  $('summary').textContent = `best: ${best.title || best.text.slice(0, 40)} · ${milliseconds.toFixed(0)} ms`;
}

function card({ index, score }) {
  const { title, text } = shown[index];
  const item = document.createElement('li');
  const add = (kind, content, name) =>
    item.appendChild(Object.assign(document.createElement(kind), { textContent: content, className: name }));
  add('h3', title || text, '');
  add('span', score.toFixed(3), 'score').title = 'cosine of question and text';
  if (title) add('p', text, '');
  const bar = add('div', '', 'bar');
  bar.setAttribute('aria-hidden', 'true');
  bar.append(document.createElement('span'));
  bar.firstChild.style.width = `${100 * Math.max(score, 0)}%`;
  return item;
}

function facts(pairs) {
  for (const [name, value] of Object.entries(pairs)) {
    let cell = document.querySelector(`dd[data-name="${name}"]`);
    if (!cell) {
      const term = Object.assign(document.createElement('dt'), { textContent: name });
      cell = document.createElement('dd');
      cell.dataset.name = name;
      $('facts').append(term, cell);
    }
    cell.textContent = value;
  }
}

const MB = 2 ** 20;
const answers = {
  progress({ loaded, total }) {
    say(`Loading the model: ${(loaded / MB).toFixed(0)} of ${(total / MB).toFixed(0)} MiB`, { progress: loaded / total });
  },
  ready({ seconds, threads, limit }) {
    const { dtype, bytes } = models.find(({ name }) => name === $('model').value);
    facts({
      weights: `${dtype}, ${(bytes / MB).toFixed(0)} MiB with the runtime`,
      'loaded in': `${seconds.toFixed(1)} s`,
      threads,
      'longest text': `${limit} tokens`,
    });
    enable(true);
    // a phone's keyboard would cover the page
    if (document.activeElement === document.body && matchMedia('(pointer: fine)').matches) {
      $('question').focus();
    }
    embed();
  },
  embedding({ done, count }) {
    say(`Embedding ${done} of ${count} texts …`, { progress: done / count });
  },
  embedded({ count, width, seconds }) {
    say(`${count} texts embedded in ${seconds.toFixed(1)} s.`);
    facts({ dimension: width, 'texts embedded': `${count} in ${seconds.toFixed(2)} s` });
    mark({ embedded: count });
    ask();
  },
  results(found) {
    if (found.id === asked && found.hits.length) show(found);
  },
  failed({ task, message }) {
    if (task === 'load') say(`The model could not be loaded: ${message}\n${ADVICE}`, { bad: true });
    else say(`The model could not compute: ${message}`, { bad: true });
  },
};

worker.addEventListener('message', ({ data }) => answers[data.type](data));
worker.addEventListener('error', (event) => {
  say(`The worker did not start: ${event.message || 'vendor files are missing'}\n${ADVICE}`, { bad: true });
  dead = true;
});

$('question').addEventListener('input', () => {
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE);
});
$('search').addEventListener('submit', (event) => {
  event.preventDefault();
  ask();
});
for (const radio of document.getElementsByName('source')) {
  radio.addEventListener('change', () => {
    $('own').hidden = radio.value !== 'own';
    if (radio.value === 'page') use(passages);
    else {
      $('lines').setSelectionRange(0, 0);
      $('lines').focus();
    }
  });
}
$('own').addEventListener('submit', (event) => {
  event.preventDefault();
  const lines = $('lines').value.split('\n').map((line) => line.trim()).filter(Boolean);
  if (lines.length) use(lines.map((text) => ({ title: '', text })));
  else say('There is no line to embed: write one text per line.', { bad: true });
});
$('prompts').addEventListener('submit', (event) => {
  event.preventDefault();
  embed();
});
$('model').addEventListener('change', load);

function use(texts) {
  shown = texts;
  embed();
}

begin().catch((error) => say(`${error.message}\n${ADVICE}`, { bad: true }));
