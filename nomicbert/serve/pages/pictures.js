// Pictures of the start page: a vector as bars, cosines as a heat map, scores as a list, tokens.

import { element } from './shared.js';

const SVG = 'http://www.w3.org/2000/svg';

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A vector: a bar per value, up from the middle if it is positive, else down. */
export function bars(vector) {
  const most = Math.max(...vector.map(Math.abs)) || 1;
  const bar = (value, i) => `M${i} 1v${((-0.95 * value) / most).toFixed(3)}h.85V1z`;
  const path = (keep) => vector.map((value, i) => (keep(value) ? bar(value, i) : '')).join('');
  const [low, high] = [Math.min(...vector), Math.max(...vector)].map((one) => one.toFixed(3));
  const caption = `${vector.length} values, from ${low} to ${high}`;
  const picture = drawn(
    'svg',
    { class: 'bars', viewBox: `0 0 ${vector.length} 2`, preserveAspectRatio: 'none', role: 'img' },
    drawn('path', { class: 'up', d: path((value) => value > 0) }),
    drawn('path', { class: 'down', d: path((value) => value < 0) }),
  );
  picture.setAttribute('aria-label', caption);
  return element('figure', {}, picture, element('figcaption', { class: 'muted' }, caption));
}

/** A table of cosines; more colour is closer, from the least of them to 1. */
export function heat(texts, cosines) {
  const least = Math.min(...cosines.flat());
  const span = Math.max(1 - least, 1e-6);
  const short = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);
  const heading = texts.map((text, i) =>
    element('th', { scope: 'col', title: text }, String(i + 1)),
  );
  const rows = cosines.map((row, i) => {
    const cells = row.map((value, j) => {
      const cell = element('td', { title: `${i + 1} and ${j + 1}` }, value.toFixed(3));
      cell.style.setProperty('--heat', Math.max(0, (value - least) / span).toFixed(3));
      return cell;
    });
    const name = element('th', { scope: 'row', title: texts[i] }, `${i + 1}  ${short(texts[i])}`);
    return element('tr', {}, name, ...cells);
  });
  const table = element(
    'table',
    { class: 'heat' },
    element('thead', {}, element('tr', {}, element('td'), ...heading)),
    element('tbody', {}, ...rows),
  );
  const caption = `Cosines; more colour is closer, from ${least.toFixed(3)} to 1`;
  // scrolls by keyboard too
  const scroll = { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Cosines' };
  return element(
    'figure',
    {},
    element('div', scroll, table),
    element('figcaption', { class: 'muted' }, caption),
  );
}

/** Documents by falling score; the bar is the score between the least, or 0, and the best. */
export function ranking(documents, scores) {
  const sorted = [...scores].sort((a, b) => b.score - a.score);
  const values = sorted.map(({ score }) => score);
  const least = Math.min(0, ...values);
  const span = Math.max(...values, 1e-6) - least;
  const items = sorted.map(({ index, score }) => {
    const bar = element('span', { class: 'bar', 'aria-hidden': 'true' });
    bar.style.setProperty('--part', ((score - least) / span).toFixed(3));
    const number = element('span', { class: 'score' }, score.toFixed(4));
    return element('li', {}, number, bar, element('span', { class: 'text' }, documents[index]));
  });
  return element('ol', { class: 'ranking' }, ...items);
}

/** The tokens of a text as the tokenizer writes them. */
export function tokens(found) {
  const chips = found.map(({ id, text, special }) =>
    element('li', { title: `id ${id}`, class: special ? 'special' : undefined }, text),
  );
  const summary = element('summary', {}, `${found.length} tokens`);
  const list = element('ol', { class: 'tokens' }, ...chips);
  return element('details', { open: found.length <= 64 }, summary, list);
}
