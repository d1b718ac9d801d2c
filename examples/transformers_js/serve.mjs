// Serve site/ on this machine: npm run serve [-- FOLDER PORT]. Any static server will do; the two
// headers of isolation let the runtime use several threads.

import { createReadStream, existsSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const TYPES = {
  '.css': 'text/css',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
};
const here = dirname(fileURLToPath(import.meta.url));
const [folder = join(here, 'site'), port = '8000'] = process.argv.slice(2);
if (!existsSync(join(folder, 'index.html'))) {
  console.error(`${folder} is no site: npm run site -- MODEL makes one`);
  process.exit(1);
}

/** The file of a request, or undefined; `normalize` keeps it below the folder. */
function fileOf(url) {
  try {
    const path = decodeURIComponent(new URL(url, 'http://localhost').pathname);
    const file = join(folder, normalize(path.endsWith('/') ? `${path}index.html` : path));
    return statSync(file).isFile() ? file : undefined;
  } catch {
    return undefined;
  }
}

const server = createServer((request, response) => {
  const file = fileOf(request.url);
  if (!file) return response.writeHead(404).end('not found');
  const facts = statSync(file);
  const etag = `"${facts.size}-${facts.mtimeMs}"`;
  const headers = {
    'Content-Type': TYPES[extname(file)] ?? 'application/octet-stream',
    'Content-Length': facts.size,
    'Cache-Control': 'no-cache',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
    ETag: etag,
  };
  if (request.headers['if-none-match'] === etag) return response.writeHead(304, headers).end();
  response.writeHead(200, headers);
  if (request.method === 'HEAD') return response.end();
  createReadStream(file).pipe(response);
});
server.on('error', (error) => {
  console.error(`port ${port} cannot be used (${error.code}): npm run serve -- site 8001`);
  process.exit(1);
});
server.listen(Number(port), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}/`);
});
