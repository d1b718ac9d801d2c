// Use the pages of a server in headless Chromium, and print what was seen as JSON.
// node serve_pages.mjs CHROMIUM URL SCENARIO [JSON]

import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [executablePath, url, scenario, given = '{}'] = process.argv.slice(2);
const options = JSON.parse(given);
const WAIT = { timeout: 60_000 };
const args = [
  '--no-sandbox',
  '--disable-gpu',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  // a request to another host fails, and is seen to
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
];
const seen = { requests: [], statuses: {}, console: [], errors: [], violations: [] };

async function open(browser, path, settings = {}) {
  const context = await browser.newContext({ colorScheme: 'light', ...settings });
  context.on('request', (request) => seen.requests.push(request.url()));
  context.on('response', (response) => {
    seen.statuses[response.status()] = (seen.statuses[response.status()] ?? 0) + 1;
  });
  await context.exposeFunction('violated', (directive) => seen.violations.push(directive));
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) =>
      window.violated(event.effectiveDirective),
    );
  });
  const page = await context.newPage();
  page.on('console', (message) => seen.console.push(`${message.type()}: ${message.text()}`));
  page.on('pageerror', (error) => seen.errors.push(String(error)));
  page.setDefaultTimeout(WAIT.timeout);
  await page.goto(url + path);
  return page;
}

const loaded = (page) => page.locator('#model option').first().waitFor({ state: 'attached', ...WAIT });

async function act(page, tab, fill = {}) {
  await page.locator(`#tab-${tab}`).click();
  const section = page.locator(`#${tab}`);
  for (const [name, value] of Object.entries(fill)) await section.locator(`[name=${name}]`).fill(value);
  await section.locator('form > button').click();
  return section;
}

async function succeed(page, tab, fill) {
  const section = await act(page, tab, fill);
  await section.locator('.result').waitFor(WAIT);
  await section.locator('form > button:enabled').waitFor(WAIT);
  return section.locator('.result');
}

async function fail(page, tab, fill) {
  const section = await act(page, tab, fill);
  await section.locator('.failure').waitFor(WAIT);
  return section.locator('.failure');
}

const pairs = async (place) => {
  const names = await place.locator('dt').allTextContents();
  const values = await place.locator('dd').allTextContents();
  return Object.fromEntries(names.map((name, i) => [name, values[i]]));
};

const ranked = async (place) => ({
  texts: await place.locator('.ranking .text').allTextContents(),
  scores: (await place.locator('.ranking .score').allTextContents()).map(Number),
});

/** The description of a body: fields per list, what is refused, and the example. */
const described = async (route) => ({
  lists: await route.locator('.fields').evaluateAll((all) =>
    all.map((list) => [...list.querySelectorAll('dt')].map((one) => one.textContent)),
  ),
  refused: await route.locator('p', { hasText: /^Refused: / }).allTextContents(),
  example: await route.locator('textarea').evaluateAll((all) => all.map((one) => one.value)),
});

const options_of = (page, selector) => page.locator(`${selector} option`).allTextContents();

const unnamed = (page) =>
  page.locator('input, select, textarea, button, [role=img], [role=region], [tabindex="0"]').evaluateAll((all) =>
    all
      .filter((one) => !(one.labels?.length || one.ariaLabel || (!one.labels || one.localName === 'button') && one.textContent.trim()))
      .map((one) => one.outerHTML.slice(0, 200)),
  );

/** Texts whose contrast with their ground is below what WCAG asks for. */
const faint = (page) =>
  page.evaluate(() => {
    const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const paint = (...colours) => {
      pen.clearRect(0, 0, 1, 1);
      for (const colour of colours) {
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
      }
      return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => {
      const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    let count = 0;
    for (const one of document.querySelectorAll('body *')) {
      const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (!own || !one.checkVisibility() || one.matches(':disabled, option, noscript')) continue;
      const grounds = [];
      for (let at = one; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
      const ground = paint('white', ...grounds);
      const text = paint(`rgb(${ground})`, getComputedStyle(one).color);
      const [low, high] = [light(ground), light(text)].sort((a, b) => a - b);
      const ratio = (high + 0.05) / (low + 0.05);
      count += 1;
      if (ratio < 4.5) found.push(`${one.localName}.${one.className} ${ratio.toFixed(2)}: ${one.textContent.slice(0, 40)}`);
    }
    return { found, count };
  });

const width = (page) => page.evaluate(() => document.documentElement.scrollWidth);

const SCENARIOS = {
  /** Embed, compare and rank by cosine on the page at /. */
  async start(browser) {
    const page = await open(browser, '/');
    await loaded(page);
    const known = {
      models: await options_of(page, '#model'),
      facts: await page.locator('#facts').textContent(),
      prompts: await options_of(page, '#embed .prompt'),
      prompt: await page.locator('#embed .prompt').inputValue(),
      unnamed: await unnamed(page),
    };
    await page.locator('#dimensions').fill('16');
    const cut = await pairs(await succeed(page, 'embed', { text: options.text }));
    await page.locator('#dimensions').fill('');
    const result = await succeed(page, 'embed', { text: options.text });
    const embed = {
      ...(await pairs(result)),
      bars: await result.locator('svg.bars').getAttribute('aria-label'),
      paths: await result.locator('svg.bars path').evaluateAll((all) => all.map((one) => one.getAttribute('d').split('M').length - 1)),
      tokens: await result.locator('.tokens li').allTextContents(),
      images: await page.locator('img').count(),
    };
    await page.locator('#tab-compare').click();
    await page.locator('#compare .prompt').selectOption('');
    const matrix = await succeed(page, 'compare', { texts: options.texts.join('\n') });
    const compare = {
      cells: await matrix.locator('td[title]').allTextContents(),
      heat: await matrix.locator('td[title]').evaluateAll((all) => all.map((one) => Number(one.style.getPropertyValue('--heat')))),
      heads: await matrix.locator('tbody th').allTextContents(),
      colours: await matrix.locator('td[title]').evaluateAll((all) => new Set(all.map((one) => getComputedStyle(one).backgroundColor)).size),
    };
    await page.locator('#tab-rerank').click();
    const rank = {
      note: await page.locator('#no-reranker').isVisible(),
      ...(await ranked(await succeed(page, 'rerank', { query: options.text, documents: options.texts.join('\n') }))),
      method: await page.locator('#method').inputValue(),
    };
    const few = await (await fail(page, 'compare', { texts: 'one line' })).textContent();
    return { known, cut, embed, compare, rank, few, after: await unnamed(page), place: page.url() };
  },

  /** A server with a reranker, as it answers and as it refuses. */
  async reranker(browser) {
    const page = await open(browser, '/try#rerank');
    await loaded(page);
    const sent = [];
    await page.route('**/v1/models', async (route) => {
      const answer = await route.fetch();
      const list = await answer.json();
      const name = 'a-reranker';
      list.data.push({ id: name, object: 'model', root: name, labels: ['LABEL_0'] });
      await route.fulfill({ response: answer, json: list });
    });
    await page.route('**/v1/rerank', (route) => {
      sent.push(route.request().postDataJSON());
      const results = [[1, 0.9], [0, 0.25]].map(([index, score]) => ({ index, relevance_score: score }));
      return route.fulfill({ json: { results } });
    });
    await page.reload();
    await page.locator('#reranker option').first().waitFor({ state: 'attached', ...WAIT });
    const known = {
      tab: await page.locator('#tab-rerank').getAttribute('aria-selected'),
      models: await options_of(page, '#model'),
      rerankers: await options_of(page, '#reranker'),
      note: await page.locator('#no-reranker').isVisible(),
      method: await page.locator('#method').inputValue(),
    };
    const fill = { query: 'q', documents: options.texts.join('\n') };
    const found = await ranked(await succeed(page, 'rerank', fill));
    await page.unroute('**/v1/rerank');
    await page.route('**/v1/rerank', (route) =>
      route.fulfill({ status: 400, json: { message: 'not a <b>re-ranker</b>' } }),
    );
    const failure = await fail(page, 'rerank', fill);
    const message = await failure.textContent();
    await failure.getByRole('button').click();
    await page.locator('#rerank .result').waitFor(WAIT);
    const instead = await ranked(page.locator('#rerank .result'));
    return { known, sent, found, message, instead };
  },

  /** Two models: each with its own prompts; tokens are those of the first model's tokenizer. */
  async several(browser) {
    const page = await open(browser, '/try');
    await loaded(page);
    const found = {};
    for (const model of await options_of(page, '#model')) {
      await page.locator('#model').selectOption(model);
      const result = await succeed(page, 'embed', { text: 'a' });
      found[model] = {
        facts: await page.locator('#facts').textContent(),
        prompts: (await options_of(page, '#embed .prompt')).length - 1,
        dimensions: (await pairs(result)).Dimensions,
        tokens: await result.locator('.tokens li').count(),
      };
    }
    return { found };
  },

  /** The tabs by keyboard. */
  async keyboard(browser) {
    const page = await open(browser, '/try');
    await loaded(page);
    const tab = () => page.evaluate(() => document.activeElement.id);
    await page.locator('#tab-embed').focus();
    const way = [];
    for (const key of ['ArrowRight', 'ArrowRight', 'ArrowRight', 'ArrowLeft', 'Home', 'End']) {
      await page.keyboard.press(key);
      way.push(await tab());
    }
    const shown = await page.locator('[role=tabpanel]:visible').evaluateAll((all) => all.map((one) => one.id));
    await page.keyboard.press('Home');
    await page.locator('#embed textarea').focus();
    await page.keyboard.press('Tab');
    await page.keyboard.press('Enter');
    await page.locator('#embed .result').waitFor(WAIT);
    return { way, shown, address: page.url() };
  },

  /** Requests without and with the key. */
  async key(browser) {
    const page = await open(browser, '/try');
    await page.locator('#problem').waitFor(WAIT);
    const problem = await page.locator('#problem').textContent();
    const focused = await page.evaluate(() => document.activeElement.id);
    await page.locator('#key').fill('ключ');
    await page.keyboard.press('Tab');
    await page.getByText('ASCII').waitFor(WAIT);
    await page.locator('#key').fill(options.key);
    await page.keyboard.press('Tab');
    await loaded(page);
    await page.locator('#problem').waitFor({ state: 'hidden', ...WAIT });
    const found = await pairs(await succeed(page, 'embed', { text: 'a' }));
    const kept = await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);
    await page.getByRole('link', { name: 'API' }).click();
    await page.locator('#problem').waitFor(WAIT);
    await page.locator('#key').fill(options.key);
    await page.keyboard.press('Tab');
    const route = page.locator('[id="post/embed"]');
    await route.locator('summary').click();
    const curl = await route.locator('pre').last().textContent();
    return { problem, focused, found, kept, curl, address: page.url() };
  },

  /** Errors of the server: readable, and gone with the next answer. */
  async errors(browser) {
    const page = await open(browser, '/try');
    await loaded(page);
    const long = await (await fail(page, 'embed', { text: 'a '.repeat(9000) })).textContent();
    let busy = true;
    await page.route('**/v1/embeddings', (route) =>
      busy
        ? route.fulfill({
            status: 429,
            headers: { 'retry-after': '9', 'x-request-id': 'the-id' },
            json: { error: { message: 'too much waits <i>' } },
          })
        : route.continue(),
    );
    const failure = await fail(page, 'embed', { text: 'a' });
    const first = await failure.textContent();
    const disabled = await page.locator('#embed form > button').isDisabled();
    const timer = failure.locator('[role=timer]');
    await timer.evaluate((line) => {
      window.written = [line.textContent];
      const note = (all) => all.forEach(() => window.written.push(line.textContent));
      new MutationObserver(note).observe(line, { childList: true, characterData: true });
    });
    busy = false;
    await page.locator('#embed form > button:enabled').waitFor(WAIT);
    const last = await failure.textContent();
    const written = await page.evaluate(() => window.written);
    await succeed(page, 'embed', { text: 'a' });
    const hidden = await failure.isHidden();
    await page.unroute('**/v1/embeddings');
    await page.route('**/v1/embeddings', (route) => route.abort());
    const gone = await (await fail(page, 'embed', { text: 'a' })).textContent();
    return { long, first, disabled, last, written, hidden, gone };
  },

  /** Notes of texts that are cut, and none of others. */
  async cuts(browser) {
    const page = await open(browser, '/try');
    await loaded(page);
    const noted = async (tab, fill) => {
      const notes = await (await succeed(page, tab, fill)).locator('.note').allTextContents();
      return notes.join(' ');
    };
    const found = {};
    for (const kind of ['short', 'long']) {
      const { [kind]: text } = options;
      const fill = { query: 'a', documents: `b\n${text}\n${text}` };
      const embed = await noted('embed', { text });
      const compare = await noted('compare', { texts: `b\n${text}\n${text}` });
      await page.locator('#tab-rerank').click();
      await page.locator('#method').selectOption('reranker');
      const reranker = await noted('rerank', fill);
      await page.locator('#method').selectOption('cosine');
      found[kind] = { embed, compare, reranker, cosine: await noted('rerank', fill) };
    }
    return found;
  },

  /** A page that is opened while the model is loaded continues by itself. */
  async loading(browser) {
    let ready = false;
    const page = await open(browser, '/docs');
    await page.route('**/health/ready', (route) =>
      ready ? route.continue() : route.fulfill({ status: 503, json: { ready: false, reason: 'loading' } }),
    );
    await page.goto(`${url}/try`);
    await page.locator('#state').waitFor(WAIT);
    const state = await page.locator('#state').textContent();
    const before = await options_of(page, '#model');
    ready = true;
    await loaded(page);
    await page.locator('#state').waitFor({ state: 'hidden', ...WAIT });
    return { state, before, after: await options_of(page, '#model') };
  },

  /** The API page: its routes, a request of each, and one that is refused. */
  async docs(browser) {
    const page = await open(browser, '/docs#post/similarity', { permissions: ['clipboard-read', 'clipboard-write'] });
    await page.locator('details.route').first().waitFor(WAIT);
    const named = await page.locator('details.route[open]').evaluateAll((all) => all.map((one) => one.id));
    // an address that cannot be decoded names no route
    await page.evaluate(() => {
      const changed = new Promise((done) => addEventListener('hashchange', done));
      location.hash = '#%';
      return changed;
    });
    const groups = await page.locator('#routes h2').allTextContents();
    const routes = await page.locator('details.route').evaluateAll((all) => all.map((one) => one.id));
    const [sent, bodies] = [{}, {}];
    for (const id of routes) {
      const route = page.locator(`[id="${id}"]`);
      bodies[id] = await described(route);
      if (!(await route.evaluate((one) => one.open))) await route.locator('summary').click();
      await route.locator('form button').click();
      await route.locator('.result').waitFor(WAIT);
      sent[id] = await route.locator('.result strong').textContent();
    }
    const route = page.locator('[id="post/v1/embeddings"]');
    const names = await route.locator('.fields dt').allTextContents();
    const texts = await route.locator('.fields dd').allTextContents();
    const fields = Object.fromEntries(names.map((name, i) => [name, texts[i]]));
    const headers = await route.locator('.result pre').first().textContent();
    const answer = await route.locator('.result pre').last().textContent();
    await route.locator('textarea').fill(`{"model": "${options.model}", "input": "it's <b>&amp;"}`);
    await route.getByRole('button', { name: 'Copy the command' }).click();
    await route.getByRole('button', { name: 'Copied' }).waitFor(WAIT);
    const curl = await page.evaluate(() => navigator.clipboard.readText());
    await route.locator('textarea').fill('{"model": 1}');
    await route.locator('form button').click();
    await route.locator('.failure').waitFor(WAIT);
    const refused = {
      failure: await route.locator('.failure').textContent(),
      status: await route.locator('.result strong').textContent(),
    };
    const shown = { named, groups, routes, sent, bodies, fields, headers, answer, curl, refused };
    return { ...shown, unnamed: await unnamed(page) };
  },

  /** Looks: no page is wider than its window, all texts can be read; with `folder` also pictures. */
  async looks(browser) {
    const found = {};
    const kinds = {
      wide: { viewport: { width: 1280, height: 900 } },
      narrow: { viewport: { width: 360, height: 740 } },
      dark: { viewport: { width: 1280, height: 900 }, colorScheme: 'dark' },
      'dark-narrow': { viewport: { width: 360, height: 740 }, colorScheme: 'dark' },
    };
    for (const [kind, settings] of Object.entries(kinds)) {
      const page = await open(browser, '/try', settings);
      await loaded(page);
      const note = async (name) => {
        found[`${kind} ${name}`] = { width: (await width(page)) - settings.viewport.width, faint: await faint(page) };
        if (options.folder) {
          await page.screenshot({ path: join(options.folder, `${kind}-${name}.png`), fullPage: true });
        }
      };
      await succeed(page, 'embed');
      await note('embed');
      await succeed(page, 'compare');
      await note('compare');
      await succeed(page, 'rerank');
      await note('rerank');
      await fail(page, 'embed', { text: 'a '.repeat(9000) });
      await note('error');
      await page.goto(`${url}/docs`);
      await page.locator('details.route').first().waitFor(WAIT);
      await note('routes');
      const route = page.locator('[id="post/v1/embeddings"]');
      await route.locator('summary').click();
      await route.locator('form button').click();
      await route.locator('.result').waitFor(WAIT);
      await note('route');
      await page.context().close();
    }
    return { found };
  },

  /** What the policy forbids: other places, scripts in the page, markup from text. */
  async policy(browser) {
    const page = await open(browser, '/try');
    await loaded(page);
    const refused = await page.evaluate(async () => {
      const tried = {};
      tried.fetch = await fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused');
      try {
        document.body.insertAdjacentHTML('beforeend', '<p>markup</p>');
        tried.markup = 'made';
      } catch {
        tried.markup = 'refused';
      }
      const image = new Image();
      tried.image = await new Promise((done) => {
        image.onload = () => done('loaded');
        image.onerror = () => done('refused');
        image.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==';
      });
      return tried;
    });
    await page.waitForTimeout(200);
    return { refused };
  },
};

const browser = await chromium.launch({ executablePath, headless: true, args });
try {
  const found = await SCENARIOS[scenario](browser);
  console.log(JSON.stringify({ ...found, seen }));
} finally {
  await browser.close();
}
