'use strict';
// Draws the points of #data on a canvas, with hover, zoom, legend and search. Texts are only ever
// set as textContent.

const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const data = JSON.parse($('data').textContent);
const { x, y, text, columns, color, labels, look } = data;
const total = x.length;
const BINS = 32; // colours of a scale
const NEAR = 9; // pixels between the pointer and a point that it means
const LISTED = 50; // results of a search

// Drawn in a mixed order, so that no group covers the others.
const order = Uint32Array.from({ length: total }, (_, i) => i);
for (let i = total - 1, state = 1; i > 0; i--) {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  const j = state % (i + 1);
  [order[i], order[j]] = [order[j], order[i]];
}

// ---- colours: a style per group, or per bin of the scale ----

const isScale = color.kind === 'scale';
const styles = isScale
  ? Array.from({ length: BINS }, (_, bin) => ({ fill: between(bin / (BINS - 1)), shape: 'circle' }))
  : color.groups.map((_, group) => styleOf(group));
if (isScale) styles.push({ fill: look.rest, shape: 'circle' }); // of no value
const styleAt = isScale
  ? color.values.map((v) => (v === null ? BINS : Math.round(v * (BINS - 1))))
  : color.codes;
const hidden = new Array(styles.length).fill(false);
const isRest = styles.map((style) => style.fill === look.rest);
order.sort((i, j) => isRest[styleAt[j]] - isRest[styleAt[i]]); // below the others

function styleOf(group) {
  if (color.groups[group].rest) return { fill: look.rest, shape: 'circle' };
  const shape = look.shapes[Math.floor(group / look.hues.length) % look.shapes.length];
  return { fill: look.hues[group % look.hues.length], shape };
}

function between(part) {
  const at = part * (look.stops.length - 1);
  const low = Math.min(Math.floor(at), look.stops.length - 2);
  const channel = (one, shift) => (parseInt(one.slice(1), 16) >> shift) & 255;
  const mix = (shift) => {
    const [a, b] = [channel(look.stops[low], shift), channel(look.stops[low + 1], shift)];
    return Math.round(a + (b - a) * (at - low));
  };
  return `rgb(${mix(16)} ${mix(8)} ${mix(0)})`;
}

function outline(pen, shape, at, r) {
  pen.beginPath();
  if (shape === 'circle') pen.arc(at, at, r, 0, 2 * Math.PI);
  else if (shape === 'square') pen.rect(at - r * 0.87, at - r * 0.87, r * 1.74, r * 1.74);
  else if (shape === 'triangle') {
    pen.moveTo(at, at - r * 1.2);
    pen.lineTo(at + r * 1.15, at + r * 0.85);
    pen.lineTo(at - r * 1.15, at + r * 0.85);
    pen.closePath();
  } else {
    const [a, b] = [r * 0.4, r * 1.15]; // a cross
    const turns = [[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b], [-a, a],
      [-b, a], [-b, -a], [-a, -a]];
    for (const [dx, dy] of turns) pen.lineTo(at + dx, at + dy);
    pen.closePath();
  }
}

function sprite(style, r, dpr) {
  const canvas = document.createElement('canvas');
  const half = Math.ceil((r * 1.3 + 1) * dpr);
  canvas.width = canvas.height = 2 * half;
  const pen = canvas.getContext('2d');
  outline(pen, style.shape, half, r * dpr);
  pen.fillStyle = style.fill;
  pen.fill();
  pen.strokeStyle = css('--edge');
  pen.lineWidth = Math.max(0.5, r / 6) * dpr;
  pen.stroke();
  return canvas;
}

/** The pixels of a sprite that are not empty: points are copied faster than drawImage draws them. */
function stamp(style, r) {
  const drawn = sprite(style, r, dpr);
  const side = drawn.width;
  const { data: all } = drawn.getContext('2d').getImageData(0, 0, side, side);
  const inked = [...Array(side * side).keys()].filter((at) => all[4 * at + 3]);
  return {
    half: side / 2,
    dx: Int16Array.from(inked, (at) => at % side),
    dy: Int16Array.from(inked, (at) => Math.floor(at / side)),
    rgba: Float32Array.from(inked.flatMap((at) => [...all.slice(4 * at, 4 * at + 4)])),
  };
}

const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

// ---- the view: pixels = place * scale + shift, with y upwards ----

const canvas = $('map');
const pen = canvas.getContext('2d', { alpha: false, willReadFrequently: true }); // on the CPU
const view = { scale: 1, dx: 0, dy: 0, whole: 1 };
let [width, height, dpr, waiting] = [0, 0, 1, false];
let matches = null; // 1 for each point that the search has found
let hovered = -1;
let kept = false;
let stamps = { key: '' }; // as drawn at this zoom, in this theme
let image = null; // the pixels of the canvas

const px = (i) => x[i] * view.scale + view.dx;
const py = (i) => view.dy - y[i] * view.scale;
const shown = (i) => !hidden[styleAt[i]];

function fit(points, most = Infinity) {
  let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const i of points) {
    [left, right] = [Math.min(left, x[i]), Math.max(right, x[i])];
    [low, high] = [Math.min(low, y[i]), Math.max(high, y[i])];
  }
  const margin = Math.min(40, width / 8, height / 8);
  const [across, up] = [(width - 2 * margin) / (right - left), (height - 2 * margin) / (high - low)];
  const scale = Math.min(across, up, most);
  view.scale = Number.isFinite(scale) && scale > 0 ? scale : 1; // of one place
  view.dx = width / 2 - ((left + right) / 2) * view.scale;
  view.dy = height / 2 + ((low + high) / 2) * view.scale;
  redraw();
}

function fitAll() {
  fit(order);
  view.whole = view.scale;
}

function zoom(factor, cx = width / 2, cy = height / 2) {
  const scale = Math.min(Math.max(view.scale * factor, view.whole / 2), view.whole * 400);
  const by = scale / view.scale;
  view.dx = cx - (cx - view.dx) * by;
  view.dy = cy - (cy - view.dy) * by;
  view.scale = scale;
  redraw();
}

function pan(dx, dy) {
  view.dx += dx;
  view.dy += dy;
  redraw();
}

function resize() {
  const box = $('stage').getBoundingClientRect();
  const first = width === 0;
  const [cx, cy] = [box.width - width, box.height - height];
  [width, height, dpr] = [box.width, box.height, window.devicePixelRatio || 1];
  [canvas.width, canvas.height] = [Math.round(width * dpr), Math.round(height * dpr)];
  image = canvas.width && canvas.height ? pen.createImageData(canvas.width, canvas.height) : null;
  if (first) fitAll();
  else pan(cx / 2, cy / 2);
}

// ---- drawing ----

function redraw() {
  if (!waiting) requestAnimationFrame(draw);
  waiting = true;
}

function radius() {
  const base = Math.min(Math.max(60 / Math.sqrt(total), 1.7), 4.5);
  return Math.min(base * Math.max(1, view.scale / view.whole) ** 0.3, 9);
}

function draw() {
  waiting = false;
  if (!image) return;
  const r = Math.round(radius() * 4) / 4;
  const key = `${r} ${dpr} ${root.dataset.theme}`;
  if (stamps.key !== key) stamps = { key, all: styles.map((style) => stamp(style, r)) };
  const ground = parseInt(css('--ground').slice(1), 16);
  const [red, green, blue] = [ground >> 16, (ground >> 8) & 255, ground & 255];
  new Uint32Array(image.data.buffer).fill(((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0);
  let drawn = 0;
  for (const found of matches ? [0, 1] : [1]) {
    for (const i of order) {
      if (!shown(i) || (matches && matches[i] !== found)) continue;
      const [cx, cy] = [px(i), py(i)];
      if (cx < -r || cy < -r || cx > width + r || cy > height + r) continue;
      press(stamps.all[styleAt[i]], cx * dpr, cy * dpr, found ? 0.85 : 0.08);
      drawn += found;
    }
  }
  pen.putImageData(image, 0, 0);
  pen.setTransform(dpr, 0, 0, dpr, 0, 0);
  if ($('names').ariaPressed === 'true') drawLabels();
  if (hovered >= 0) {
    pen.beginPath();
    pen.arc(px(hovered), py(hovered), r + 4, 0, 2 * Math.PI);
    pen.strokeStyle = css('--text');
    pen.lineWidth = 2;
    pen.stroke();
    placeTip();
  }
  root.dataset.drawn = drawn;
}

/** Blend a stamp into the image, around a pixel. */
function press({ half, dx, dy, rgba }, cx, cy, opacity) {
  const { width: across, height: down, data: pixels } = image;
  const [left, top] = [Math.round(cx) - half, Math.round(cy) - half];
  for (let k = 0; k < dx.length; k++) {
    const [u, v] = [left + dx[k], top + dy[k]];
    if (u < 0 || v < 0 || u >= across || v >= down) continue;
    const at = (v * across + u) * 4;
    const part = (rgba[4 * k + 3] / 255) * opacity;
    pixels[at] += (rgba[4 * k] - pixels[at]) * part;
    pixels[at + 1] += (rgba[4 * k + 1] - pixels[at + 1]) * part;
    pixels[at + 2] += (rgba[4 * k + 2] - pixels[at + 2]) * part;
  }
}

/** Labels of the larger groups first; one that would cover another is left out. */
function drawLabels() {
  pen.font = '600 13px system-ui, sans-serif';
  pen.textAlign = 'center';
  pen.textBaseline = 'middle';
  pen.lineJoin = 'round';
  pen.lineWidth = 4;
  pen.globalAlpha = matches ? 0.5 : 1;
  pen.strokeStyle = css('--ground');
  pen.fillStyle = css('--text');
  const taken = [];
  for (const label of labels) {
    if (hidden[label.group]) continue;
    const half = pen.measureText(label.text).width / 2 + 4;
    const [cx, cy] = [label.x * view.scale + view.dx, view.dy - label.y * view.scale];
    if (cx + half < 0 || cx - half > width || cy < 0 || cy > height) continue;
    if (taken.some((one) => Math.abs(one.cx - cx) < one.half + half && Math.abs(one.cy - cy) < 18)) {
      continue;
    }
    taken.push({ cx, cy, half });
    pen.strokeText(label.text, cx, cy);
    pen.fillText(label.text, cx, cy);
  }
  pen.globalAlpha = 1;
}

// ---- the text of a point ----

function nearest(cx, cy) {
  let [best, least] = [-1, (NEAR + radius()) ** 2];
  for (let i = 0; i < total; i++) {
    const distance = (px(i) - cx) ** 2 + (py(i) - cy) ** 2;
    if (distance < least && shown(i)) [best, least] = [i, distance];
  }
  return best;
}

function element(tag, content, kind) {
  const made = document.createElement(tag);
  if (content !== undefined) made.textContent = content;
  if (kind) made.className = kind;
  return made;
}

function point(i, keep = false) {
  if (i === hovered && keep === kept) return;
  [hovered, kept] = [i, keep && i >= 0];
  const tip = $('tip');
  tip.hidden = i < 0;
  tip.classList.toggle('kept', kept);
  canvas.classList.toggle('on', i >= 0);
  if (i >= 0) {
    const list = element('dl');
    for (const { name, values, codes } of columns) {
      if (values[codes[i]] !== '') list.append(element('dt', name), element('dd', values[codes[i]]));
    }
    tip.replaceChildren(element('div', text ? text[i] : '', 'text'), list);
    let others = 0;
    for (let j = 0; j < total; j++) others += x[j] === x[i] && y[j] === y[i] && shown(j);
    if (others > 1) tip.append(element('p', `and ${others - 1} more at this place`, 'more'));
  }
  redraw();
}

function placeTip() {
  const tip = $('tip');
  const [cx, cy] = [px(hovered), py(hovered)];
  const left = cx + 14 + tip.offsetWidth > width ? cx - 14 - tip.offsetWidth : cx + 14;
  tip.style.left = `${Math.max(4, Math.min(left, width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(cy + 10, height - tip.offsetHeight - 4))}px`;
}

// ---- pointer and keys ----

const pointers = new Map();
let travelled = 0;

function onDown(event) {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  if (pointers.size === 1) travelled = 0;
  canvas.classList.add('moving');
}

function onMove(event) {
  const at = { x: event.offsetX, y: event.offsetY };
  const before = pointers.get(event.pointerId);
  if (!before) {
    if (!kept) point(nearest(at.x, at.y));
    return;
  }
  travelled += Math.hypot(at.x - before.x, at.y - before.y);
  pointers.set(event.pointerId, at);
  if (pointers.size === 1) pan(at.x - before.x, at.y - before.y);
  else {
    const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, one]) => one);
    const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
    zoom(apart(at) / apart(before), (at.x + other.x) / 2, (at.y + other.y) / 2);
    pan((at.x - before.x) / 2, (at.y - before.y) / 2);
  }
}

function onUp(event) {
  if (pointers.delete(event.pointerId) && event.type === 'pointerup' && travelled < 5) {
    const found = nearest(event.offsetX, event.offsetY);
    point(found, found >= 0 && !(kept && found === hovered));
  }
  if (!pointers.size) canvas.classList.remove('moving');
}

function onKey(event) {
  const step = 60;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (moves[event.key]) pan(...moves[event.key]);
  else if (event.key === '+' || event.key === '=') zoom(1.3);
  else if (event.key === '-') zoom(1 / 1.3);
  else if (event.key === '0') fitAll();
  else return;
  event.preventDefault();
}

// ---- legend ----

const number = (value) => value.toLocaleString('en');

function legend() {
  $('coloured').textContent = color.title;
  $('note').textContent = color.note;
  $('legend').replaceChildren(isScale ? scaleLegend() : groupLegend());
}

function scaleLegend() {
  const box = element('div');
  const strip = element('canvas', undefined, 'scale');
  [strip.width, strip.height] = [BINS, 1];
  for (let bin = 0; bin < BINS; bin++) {
    const brush = strip.getContext('2d');
    brush.fillStyle = styles[bin].fill;
    brush.fillRect(bin, 0, 1, 1);
  }
  const ends = element('div', undefined, 'ends');
  ends.append(...color.ends.map((end) => element('span', end)));
  box.append(strip, ends);
  return box;
}

function groupLegend() {
  const list = element('ul');
  color.groups.forEach((group, index) => {
    const button = element('button');
    button.type = 'button';
    button.ariaPressed = String(!hidden[index]);
    button.title = 'Click: hide or show. Shift and click: only this one.';
    button.append(
      sprite(styles[index], 5, 2),
      element('span', group.name),
      element('span', number(group.count), 'number'),
    );
    button.addEventListener('click', (event) => {
      if (event.shiftKey) {
        const alone = hidden.every((one, other) => one === (other !== index));
        hidden.forEach((_, other) => (hidden[other] = !alone && other !== index));
      } else hidden[index] = !hidden[index];
      [...list.children].forEach((item, other) => {
        item.firstChild.ariaPressed = String(!hidden[other]);
      });
      point(-1);
      search();
    });
    const item = element('li');
    item.append(button);
    list.append(item);
  });
  return list;
}

// ---- search ----

let lines = null; // of each point, all that can be found, in lower case

function line(i) {
  const cells = columns.map(({ values, codes }) => values[codes[i]]);
  return [text ? text[i] : '', ...cells].join('\n').toLowerCase();
}

function search() {
  const query = $('query').value.trim().toLowerCase();
  const found = [];
  if (query) {
    lines ??= Array.from({ length: total }, (_, i) => line(i));
    matches = Uint8Array.from(lines, (one) => one.includes(query));
    for (let i = 0; i < total; i++) if (matches[i] && shown(i)) found.push(i);
    $('count').textContent = `${number(found.length)} of ${number(total)} points`;
  } else {
    matches = null;
    $('count').textContent = '';
  }
  $('results').hidden = !found.length;
  $('found').replaceChildren(...found.slice(0, LISTED).map(result));
  redraw();
  return found;
}

function result(i) {
  const button = element('button', text && text[i] ? text[i].slice(0, 90) : line(i).trim().slice(0, 90));
  button.type = 'button';
  button.addEventListener('click', () => {
    pan(width / 2 - px(i), height / 2 - py(i));
    point(i, true);
  });
  const item = element('li');
  item.append(button);
  return item;
}

// ---- theme ----

const dusk = window.matchMedia('(prefers-color-scheme: dark)');

function theme(dark) {
  root.dataset.theme = dark ? 'dark' : 'light';
  $('dark').ariaPressed = String(dark);
  legend();
  redraw();
}

// ---- start ----

dusk.addEventListener('change', () => theme(dusk.matches));
theme(dusk.matches);
new ResizeObserver(resize).observe($('stage'));
canvas.addEventListener('pointerdown', onDown);
canvas.addEventListener('pointermove', onMove);
canvas.addEventListener('pointerup', onUp);
canvas.addEventListener('pointercancel', onUp);
canvas.addEventListener('pointerleave', () => kept || point(-1));
canvas.addEventListener('keydown', onKey);
canvas.addEventListener(
  'wheel',
  (event) => {
    event.preventDefault();
    const lines = event.deltaMode ? 16 : 1;
    zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0015)), event.offsetX, event.offsetY);
  },
  { passive: false },
);
$('search').addEventListener('submit', (event) => {
  event.preventDefault();
  const found = search();
  if (found.length) fit(found, view.whole * 12);
});
$('query').addEventListener('input', search);
$('reset').addEventListener('click', fitAll);
$('dark').addEventListener('click', () => theme(root.dataset.theme !== 'dark'));
$('names').addEventListener('click', () => {
  $('names').ariaPressed = String($('names').ariaPressed !== 'true');
  redraw();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') point(-1);
  if (event.key === '/' && document.activeElement !== $('query')) {
    event.preventDefault();
    $('query').focus();
  }
});
