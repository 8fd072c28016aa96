// What the documented snippets expect of a browser on a page of the API's own host, for node.
import { readFile } from 'node:fs/promises';

const site = 'http://localhost:8000';
const plainFetch = globalThis.fetch;

export const cookies = new Map();
export const answers = [];

const stored = new Map();
globalThis.localStorage = {
  getItem: (key) => stored.get(key) ?? null,
  setItem: (key, value) => stored.set(key, String(value)),
  removeItem: (key) => stored.delete(key),
};
globalThis.window = { location: { href: `${site}/` } };

// node's own fetch keeps no cookies and knows no page that a path could be relative to.
globalThis.fetch = async (url, options = {}) => {
  const headers = new Headers(options.headers);
  const keep = options.credentials === 'include';
  if (keep && cookies.size) {
    headers.set('Cookie', [...cookies].map(([name, value]) => `${name}=${value}`).join('; '));
  }
  const response = await plainFetch(new URL(url, site), { ...options, headers });
  for (const line of keep ? response.headers.getSetCookie() : []) {
    const [pair, ...attributes] = line.split(/; */);
    const [name, value] = [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)];
    if (attributes.includes('Max-Age=0')) cookies.delete(name);
    else cookies.set(name, value);
  }
  answers.push(response.status);
  return response;
};

const AsyncFunction = (async () => {}).constructor;

// Runs a snippet as it is printed, in a scope of its own; `ending` may return something out of that scope.
export async function run(snippet, ending = '') {
  const source = await readFile(new URL(snippet, import.meta.url), 'utf8');
  return new AsyncFunction(`${source}\n${ending}`)();
}
