// A JSON Schema of the OpenAPI document -> its fields in words, and an example.

const DEEPEST = 6;
const TEXTS = ['What is TSNE?', 'Who is Laurens van der Maaten?'];
const IDS = [5, 6, 7];

/** The schema that a $ref leads to. */
export function resolve(schema, root) {
  if (!schema?.$ref) return schema ?? {};
  const parts = schema.$ref.slice(2).split('/');
  return resolve(parts.reduce((place, part) => place[part], root), root);
}

/** The alternatives of a schema without null, resolved. */
function alternatives(schema, root) {
  const found = resolve(schema, root);
  const all = found.anyOf ? found.anyOf.flatMap((one) => alternatives(one, root)) : [found];
  return all.filter((one) => one.type !== 'null');
}

/** The type in words, such as "text or list of texts". */
export function typeOf(schema, root, many = false) {
  const found = alternatives(schema, root);
  if (!found.length) return 'null';
  return [...new Set(found.map((one) => plainType(one, root, many)))].join(' or ');
}

const nameOf = (value) => (typeof value === 'string' ? 'text' : typeof value);

function plainType(schema, root, many) {
  const s = many ? 's' : '';
  if (schema.enum) return [...new Set(schema.enum.map(nameOf))].join(' or ');
  if ('const' in schema) return JSON.stringify(schema.const);
  if (schema.type === 'array') return `list${s} of ${typeOf(schema.items, root, true)}`;
  if (schema.type === 'string') return `text${s}`;
  if (schema.type === 'boolean') return 'true or false';
  return `${schema.type ?? 'value'}${s}`;
}

/** What limits the values: choices, the least and the most of numbers, counts of lists. */
export function limitsOf(schema, root) {
  const found = alternatives(schema, root).flatMap((one) => {
    const limits = [];
    if (one.enum) {
      const values = one.enum.map((value) => JSON.stringify(value)).join(', ');
      limits.push(one.enum.length > 1 ? `one of ${values}` : `only ${values}`);
    }
    if ('minimum' in one || 'maximum' in one) limits.push(between(one.minimum, one.maximum));
    if (one.minItems === 1 && one.maxItems === undefined) limits.push('not empty');
    else if ('minItems' in one || 'maxItems' in one) {
      limits.push(`${between(one.minItems, one.maxItems)} items`);
    }
    if (one.type === 'array') limits.push(...limitsOf(one.items, root));
    return limits;
  });
  return [...new Set(found)];
}

function between(least, most) {
  if (most === undefined) return `at least ${least}`;
  return least === undefined ? `at most ${most}` : `${least} to ${most}`;
}

/** The fields of an object, those of objects inside too: name as a path, type, limits and more. */
export function fieldsOf(schema, root, before = '', depth = 0) {
  const found = resolve(schema, root);
  return Object.entries(found.properties ?? {}).flatMap(([key, value]) => {
    const resolved = resolve(value, root);
    const name = before + key;
    const field = {
      name,
      type: typeOf(value, root),
      limits: limitsOf(value, root),
      required: (found.required ?? []).includes(key),
      byDefault: value.default ?? null,
      description: resolved.description ?? '',
    };
    const inner = depth < DEEPEST ? innerOf(value, root) : undefined;
    return inner ? [field, ...fieldsOf(inner.schema, root, name + inner.mark, depth + 1)] : [field];
  });
}

/** The object that a field holds, or holds a list of. */
function innerOf(schema, root) {
  for (const one of alternatives(schema, root)) {
    if (one.properties) return { schema: one, mark: '.' };
    const item = one.type === 'array' ? resolve(one.items, root) : {};
    if (item.properties) return { schema: item, mark: '[].' };
  }
  return undefined;
}

/** Values that a schema refuses together, from its `not`. */
export function refusedTogether(schema, root) {
  const wrong = resolve(schema, root).not?.properties;
  if (!wrong) return '';
  return Object.entries(wrong)
    .map(([name, { const: value }]) => `${name}: ${JSON.stringify(value)}`)
    .join(' with ');
}

/** A value that the schema accepts: of an object the fields that it must have. */
export function exampleOf(schema, root, depth = 0) {
  const found = alternatives(schema, root);
  // lists show more than a lone text does
  const one = found.find(({ type }) => type === 'array') ?? found[0] ?? {};
  if (one.enum) return one.enum[0];
  if ('const' in one) return one.const;
  if (one.type === 'string') return TEXTS[0];
  if (one.type === 'boolean') return true;
  if (one.type === 'integer' || one.type === 'number') return Math.max(one.minimum ?? 1, 1);
  if (depth > DEEPEST) return null;
  if (one.type === 'array') {
    const items = alternatives(one.items, root);
    if (items[0]?.type === 'string' && !items[0].enum) return TEXTS;
    if (items[0]?.type === 'integer') return IDS;
    return [exampleOf(one.items, root, depth + 1)];
  }
  const required = one.required ?? [];
  return Object.fromEntries(required.map((key) => [key, exampleOf(one.properties[key], root, depth + 1)]));
}
