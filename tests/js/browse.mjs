// Drive the web page in headless Chromium, and print what was seen as JSON.
// node browse.mjs CHROMIUM URL SCENARIO [SCREENSHOTS]

import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [executablePath, url, scenario, screenshots] = process.argv.slice(2);
const QUESTION = 'How do plants live on sunlight?';
const WAIT = { timeout: 90_000 };
const args = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  // a request to another host fails, and is seen to
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
];
const seen = { requests: [], failed: [], statuses: {}, console: [], errors: [] };

async function open(browser, settings = {}, prepare = async () => {}) {
  const context = await browser.newContext(settings);
  context.on('request', (request) => seen.requests.push(request.url()));
  context.on('requestfailed', (request) =>
    seen.failed.push(`${request.url()}: ${request.failure().errorText}`),
  );
  context.on('response', (response) => {
    seen.statuses[response.status()] = (seen.statuses[response.status()] ?? 0) + 1;
  });
  const page = await context.newPage();
  page.on('console', (message) => {
    if (message.type() !== 'log') seen.console.push(`${message.type()}: ${message.text()}`);
  });
  page.on('pageerror', (error) => seen.errors.push(String(error)));
  await prepare(page);
  await page.goto(url);
  return page;
}

const embedded = (page, count) => page.waitForSelector(`html[data-embedded="${count}"]`, WAIT);

/** Type a question, and wait for the results of its last key. */
async function ask(page, text) {
  await page.locator('#question').fill('');
  await page.locator('#question').pressSequentially(text, { delay: 15 });
  await page.waitForFunction(
    (wanted) => document.documentElement.dataset.answered === wanted,
    text,
    WAIT,
  );
  return {
    titles: await page.locator('#results h3').allTextContents(),
    scores: (await page.locator('#results .score').allTextContents()).map(Number),
    summary: await page.locator('#summary').textContent(),
  };
}

const facts = (page) =>
  page.locator('#facts dd').evaluateAll((cells) =>
    Object.fromEntries(cells.map((cell) => [cell.dataset.name, cell.textContent])),
  );

const prompts = async (page) => ({
  document: await page.locator('#document-prompt').inputValue(),
  query: await page.locator('#query-prompt').inputValue(),
});

const SCENARIOS = {
  /** Load, ask, search in lines of one's own, and go back. */
  async search(browser) {
    const page = await open(browser);
    await embedded(page, 100);
    const found = await ask(page, QUESTION);
    const isolated = await page.evaluate(() => crossOriginIsolated);
    const known = { ...(await facts(page)), ...(await prompts(page)), isolated };
    await page.locator('#question').fill('');
    await page.locator('#found').waitFor({ state: 'hidden' });
    await page.locator('input[value="own"]').check();
    await page.locator('#lines').fill('The kettle is on the stove.\n\n  Sharks are fish.  \n');
    await page.getByRole('button', { name: 'Use these lines' }).click();
    await embedded(page, 2);
    const own = await ask(page, 'an animal in the sea');
    await page.locator('#lines').fill(' \n');
    await page.getByRole('button', { name: 'Use these lines' }).click();
    const empty = await page.locator('#status').textContent();
    await page.locator('input[value="page"]').check();
    await embedded(page, 100);
    const again = await ask(page, QUESTION);
    return { found, own, again, known, empty: empty.trim() };
  },

  /** Change the prompts, then the model, and again while a batch of texts is computed. */
  async models(browser) {
    const page = await open(browser);
    const again = page.getByRole('button', { name: 'Embed again' });
    const choose = async (index) => {
      await page.locator('#model').selectOption({ index });
      await page.waitForSelector('#question:disabled', WAIT);
      await page.waitForSelector('#question:enabled', WAIT);
      await embedded(page, 100);
      return ask(page, QUESTION);
    };
    await embedded(page, 100);
    const first = await prompts(page);
    const found = await ask(page, QUESTION);
    await page.locator('summary').click();
    await page.locator('#document-prompt').fill('');
    await page.locator('#query-prompt').fill('');
    await again.click();
    await embedded(page, 100);
    const without = await ask(page, QUESTION);
    const second = await choose(1);
    const other = await prompts(page);
    await again.click();
    const third = await choose(0);
    return { first, found, without, second, third, other };
  },

  /** The message of a page that cannot work; the list of models comes after the worker's error. */
  async broken(browser) {
    const page = await open(browser, {}, (one) =>
      one.route('**/models/index.json', async (route) => {
        await one.waitForTimeout(1500);
        await route.continue();
      }),
    );
    await page.waitForTimeout(3000);
    await page.waitForSelector('#status.bad', WAIT);
    const disabled = await page.locator('#question').isDisabled();
    return { message: await page.locator('#status-text').textContent(), disabled };
  },

  /** Pictures: a wide light page, and a narrow dark one. */
  async pictures(browser) {
    const kinds = {
      light: { width: 1100, height: 1000 },
      dark: { width: 390, height: 844 },
    };
    const widths = {};
    for (const [colorScheme, viewport] of Object.entries(kinds)) {
      const page = await open(browser, { colorScheme, viewport, deviceScaleFactor: 2 });
      const shoot = (name) =>
        screenshots && page.screenshot({ path: join(screenshots, `${colorScheme}-${name}.png`) });
      await page.waitForSelector('#progress:not([hidden])', WAIT);
      await shoot('loading');
      await embedded(page, 100);
      await ask(page, QUESTION);
      await shoot('results');
      await page.locator('input[value="own"]').check();
      await page.locator('summary').click();
      widths[colorScheme] = await page.evaluate(() => document.documentElement.scrollWidth);
      if (screenshots) {
        const path = join(screenshots, `${colorScheme}-settings.png`);
        await page.screenshot({ path, fullPage: true });
      }
    }
    return { widths };
  },

  /** Elements without a name for those who do not see them. */
  async names(browser) {
    const page = await open(browser);
    await embedded(page, 100);
    const controls = page.locator('input, textarea, select, button, progress');
    const unnamed = await controls.evaluateAll((all) =>
      all
        .filter((one) => !(one.labels?.length || one.textContent.trim() || one.ariaLabel))
        .map((one) => one.outerHTML),
    );
    const live = await page.locator('[role=status], [aria-live]').count();
    return { unnamed, live, controls: await controls.count() };
  },
};

const browser = await chromium.launch({ executablePath, headless: true, args });
try {
  const found = await SCENARIOS[scenario](browser);
  console.log(JSON.stringify({ ...found, seen }));
} finally {
  await browser.close();
}
