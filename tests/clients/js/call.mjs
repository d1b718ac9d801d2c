// Make the calls of one client library against a server and store what the library returned:
//
//     node call.mjs CLIENT URL MODEL OUT.json
//
// `with_CLIENT.mjs` holds the calls. The file written has the form of tests/clients/call.py's.
import { readFileSync, writeFileSync } from "node:fs";

class Record {
  calls = {};

  facts(name, facts) {
    this.calls[name] = { ...this.calls[name], ...facts };
  }

  vectors(name, rows, facts = {}) {
    const widths = new Set(rows.map((row) => row.length));
    if (widths.size !== 1) throw new Error(`${name}: rows of widths ${[...widths]}`);
    const data = new DataView(new ArrayBuffer(4 * rows.length * rows[0].length));
    rows.flatMap((row) => [...row]).forEach((value, i) => data.setFloat32(4 * i, value, true));
    const vectors = Buffer.from(data.buffer).toString("base64");
    this.facts(name, { vectors, shape: [rows.length, rows[0].length], ...facts });
  }

  // found: [index of the document, score], in the order of the answer
  ranking(name, found, facts = {}) {
    const order = found.map(([index]) => index);
    this.vectors(name, [found.map(([, score]) => score)], { order, ...facts });
  }

  // Store the error that a call raises; without one the record lacks the name.
  async error(name, call) {
    try {
      await call();
    } catch (error) {
      const status = error.status ?? error.statusCode ?? error.status_code ?? null;
      const facts = { status, code: error.code ?? null, param: error.param ?? null };
      this.facts(name, { error: error.constructor.name, message: String(error), ...facts });
    }
  }
}

const [client, url, model, out] = process.argv.slice(2);
const texts = JSON.parse(readFileSync(new URL("../texts.json", import.meta.url), "utf-8"));
const record = new Record();

// A request beyond this machine is refused and noted.
const attempts = [];
const { fetch } = globalThis;
globalThis.fetch = async (resource, options) => {
  const { hostname } = new URL(resource.url ?? resource);
  if (hostname !== "127.0.0.1" && hostname !== "localhost") {
    attempts.push(hostname);
    throw new Error(`${hostname}: beyond loopback`);
  }
  return fetch(resource, options);
};

const calls = await import(`./with_${client}.mjs`);
await calls.run(record, url, model, texts);
record.facts("beyond loopback", { attempts });
writeFileSync(out, JSON.stringify(record.calls, null, 1));
