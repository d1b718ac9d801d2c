// Use a map in headless Chromium as a reader does, and print what was seen as JSON.
// node map.mjs CHROMIUM URL

import { chromium } from 'playwright-core';

const [executablePath, url] = process.argv.slice(2);
const args = [
  '--no-sandbox',
  '--disable-gpu',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
const seen = { requests: [], console: [], errors: [], dialogs: 0 };

async function open(browser, settings) {
  const context = await browser.newContext(settings);
  context.on('request', (request) => seen.requests.push(request.url()));
  const page = await context.newPage();
  page.on('console', (message) => seen.console.push(message.text()));
  page.on('pageerror', (error) => seen.errors.push(String(error)));
  page.on('dialog', (dialog) => {
    seen.dialogs += 1;
    dialog.dismiss();
  });
  await page.goto(url);
  await drawn(page);
  return page;
}

/** The number of points in the frame after this one. */
async function drawn(page) {
  await page.evaluate(
    () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))),
  );
  return Number(await page.evaluate(() => document.documentElement.dataset.drawn));
}

/** Where a point is, in pixels of the window. */
async function place(page, i) {
  const box = await page.locator('#map').boundingBox();
  const [x, y] = await page.evaluate((one) => [px(one), py(one)], i); // of map.js
  return [box.x + x, box.y + y];
}

/** The colour of the canvas at a point, or at its corner. */
const pixel = (page, i) =>
  page.evaluate((one) => {
    const at = one === null ? [1, 1] : [px(one) * dpr, py(one) * dpr].map(Math.round);
    return [...pen.getImageData(...at, 1, 1).data.slice(0, 3)];
  }, i);

const tip = async (page) => ({
  text: await page.locator('#tip .text').textContent(),
  cells: await page.locator('#tip dl > *').allTextContents(),
});

/** Hover, click, Escape. */
async function hover(page) {
  await page.mouse.move(...(await place(page, 0)));
  const found = await tip(page);
  await page.mouse.click(...(await place(page, 0)));
  await page.mouse.move(...(await place(page, 1)));
  const kept = await tip(page);
  await page.keyboard.press('Escape');
  const closed = await page.locator('#tip').isHidden();
  await page.mouse.move(...(await place(page, 5)));
  const other = await tip(page);
  await page.mouse.move(5, 5);
  return { found, kept: kept.text === found.text, closed, other };
}

async function search(page) {
  const box = page.locator('#query');
  await page.locator('#map').focus();
  await page.keyboard.press('/');
  const focused = await box.evaluate((one) => one === document.activeElement);
  await page.keyboard.type('SHIP');
  const found = {
    focused,
    count: await page.locator('#count').textContent(),
    drawn: await drawn(page),
    results: await page.locator('#found button').allTextContents(),
    match: await pixel(page, 4),
    other: await pixel(page, 0),
  };
  await page.locator('#found button').first().click();
  found.opened = (await tip(page)).text;
  await page.keyboard.press('Escape');
  await box.fill('');
  await page.locator('#reset').click();
  found.after = [await drawn(page), await page.locator('#count').textContent()];
  return found;
}

async function legend(page) {
  const buttons = page.locator('#legend button');
  const names = await buttons.evaluateAll((all) => all.map((one) => one.innerText.split('\n')));
  await buttons.first().click();
  const hidden = [await drawn(page), await buttons.first().getAttribute('aria-pressed')];
  await page.locator('#query').fill('tree');
  const found = await page.locator('#count').textContent();
  await page.locator('#query').fill('');
  await buttons.first().click();
  await buttons.first().click({ modifiers: ['Shift'] });
  const alone = await drawn(page);
  await buttons.first().click({ modifiers: ['Shift'] });
  return { names, hidden, found, alone, all: await drawn(page) };
}

/** Wheel, keys and drag. */
async function move(page) {
  const scale = () => page.evaluate(() => view.scale);
  const first = await scale();
  const before = await place(page, 2);
  await page.mouse.move(...before);
  await page.mouse.wheel(0, -400);
  await drawn(page);
  const wheel = { zoomed: (await scale()) > first, moved: distance(before, await place(page, 2)) };
  await page.locator('#map').focus();
  await page.keyboard.press('0');
  await page.keyboard.press('+');
  const plus = (await scale()) > first;
  await page.keyboard.press('0');
  const back = (await scale()) === first;
  const from = await place(page, 2);
  await page.keyboard.press('ArrowLeft');
  const key = distance(from, await place(page, 2));
  const box = await page.locator('#map').boundingBox();
  await page.mouse.move(box.x + 200, box.y + 20);
  await page.mouse.down();
  await page.mouse.move(box.x + 170, box.y + 60, { steps: 3 });
  await page.mouse.up();
  const drag = distance(from, await place(page, 2)); // 60 to the right by key, 30 back by hand
  await page.keyboard.press('0');
  return { wheel, plus, back, key, drag };
}

const distance = ([ax, ay], [bx, by]) => Math.round(Math.hypot(ax - bx, ay - by));

async function themes(browser) {
  const page = await open(browser, { colorScheme: 'dark', viewport: { width: 390, height: 800 } });
  const dark = await pixel(page, null);
  const pressed = await page.locator('#dark').getAttribute('aria-pressed');
  await page.locator('#dark').click();
  await drawn(page);
  const light = await pixel(page, null);
  return { dark, pressed, light, width: await page.evaluate(() => document.documentElement.scrollWidth) };
}

const unnamed = (page) =>
  page.locator('input, button, [tabindex]').evaluateAll((all) =>
    all
      .filter((one) => !(one.labels?.length || one.textContent.trim() || one.ariaLabel))
      .map((one) => one.outerHTML),
  );

/** What the policy does to a request; the browser reports it, so this comes last. */
const refused = (page) =>
  page.evaluate(
    (to) =>
      new Promise((done) => {
        document.addEventListener('securitypolicyviolation', (event) =>
          done(event.effectiveDirective),
        );
        fetch(to).catch(() => {});
      }),
    'http://127.0.0.1:9/',
  );

const browser = await chromium.launch({ executablePath, headless: true, args });
try {
  const page = await open(browser, { colorScheme: 'light', viewport: { width: 1000, height: 700 } });
  const found = {
    title: await page.title(),
    drawn: await drawn(page),
    colours: [await pixel(page, 0), await pixel(page, 4), await pixel(page, null)],
    unnamed: await unnamed(page),
    hover: await hover(page),
    search: await search(page),
    legend: await legend(page),
    move: await move(page),
    themes: await themes(browser),
    seen: structuredClone(seen),
  };
  found.refused = await refused(page);
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
}
