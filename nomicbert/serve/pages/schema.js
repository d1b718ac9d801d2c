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

/** The alternatives of a schema without null, each with what holds for all of them. */
function alternatives(schema, root) {
  const { anyOf, allOf = [], ...own } = resolve(schema, root);
  const parts = allOf.map((one) => alternatives(one, root));
  if (anyOf) parts.push(anyOf.flatMap((one) => alternatives(one, root)));
  const found = parts.reduce(
    (before, part) => before.flatMap((one) => part.map((other) => merged(one, other))),
    [own],
  );
  return found.filter((one) => one.type !== 'null');
}

/** A schema of what both accept; where both describe a field, as the second does. */
function merged(one, other) {
  const found = { ...one, ...other };
  if (one.properties && other.properties) {
    found.properties = { ...one.properties, ...other.properties };
  }
  if (one.required && other.required) {
    found.required = [...new Set([...one.required, ...other.required])];
  }
  return found;
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

/** The fields of each alternative of an object: name as a path, type, limits and more. */
export function fieldsOf(schema, root) {
  return alternatives(schema, root)
    .filter(isObject)
    .map((one) => fieldsIn(one, root));
}

/** The fields that all alternatives have alike, and the others of each. */
export function apart(forms) {
  const key = (field) => JSON.stringify(field);
  const [first = [], ...others] = forms.map((fields) => new Set(fields.map(key)));
  const shared = new Set([...first].filter((one) => others.every((other) => other.has(one))));
  const [common = []] = forms.map((fields) => fields.filter((one) => shared.has(key(one))));
  return {
    common,
    own: forms.map((fields) => fields.filter((one) => !shared.has(key(one)))),
  };
}

/** The fields of an object, and those of objects inside. */
function fieldsIn(object, root, before = '', depth = 0) {
  // of a field that is null or absent there is nothing to send
  const known = Object.entries(object.properties).filter(
    ([, value]) => alternatives(value, root).length,
  );
  return known.flatMap(([key, value]) => {
    const name = before + key;
    const field = {
      name,
      type: typeOf(value, root),
      limits: limitsOf(value, root),
      required: (object.required ?? []).includes(key),
      byDefault: value.default ?? null,
      description: resolve(value, root).description ?? '',
    };
    const inner = depth < DEEPEST ? innerOf(value, root) : undefined;
    return inner ? [field, ...fieldsIn(inner.schema, root, name + inner.mark, depth + 1)] : [field];
  });
}

/** The object that a field holds, or holds a list of. */
function innerOf(schema, root) {
  for (const one of alternatives(schema, root)) {
    if (one.properties) return { schema: one, mark: '.' };
    const item = one.type === 'array' ? alternatives(one.items, root).find(isObject) : undefined;
    if (item) return { schema: item, mark: '[].' };
  }
  return undefined;
}

const isObject = (schema) => 'properties' in schema;

/** Values that a schema refuses together, from its `not`; one line per combination. */
export function refusedTogether(schema, root) {
  const { not } = resolve(schema, root);
  return not ? alternatives(not, root).filter(isObject).map(combination) : [];
}

function combination({ properties }) {
  const pairs = Object.entries(properties).map(([name, one]) => {
    const values = one.enum ?? [one.const];
    return `${name}: ${values.map((value) => JSON.stringify(value)).join(' or ')}`;
  });
  return pairs.join(' with ');
}

/** A value that the schema accepts: of an object the fields that it must or should have. */
export function exampleOf(schema, root, depth = 0) {
  const { examples } = resolve(schema, root);
  if (examples) return examples[0];
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
  const required = new Set(one.required);
  const shown = Object.entries(one.properties ?? {}).filter(
    ([key, value]) => required.has(key) || value.examples,
  );
  return Object.fromEntries(shown.map(([key, value]) => [key, exampleOf(value, root, depth + 1)]));
}
