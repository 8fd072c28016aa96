// Runs a snippet as it is printed: node run.mjs SNIPPET PORT TOKEN. What it logs comes out as lines of JSON.
import { createRequire } from 'node:module';
import { readFile } from 'node:fs/promises';

const require = createRequire(import.meta.url);
const [snippet, port, token] = process.argv.slice(2);
const printed = await readFile(new URL(snippet, import.meta.url), 'utf8');
// The document shows the connection and what to send on it apart from each other. Read before there is a connection:
// it may open while a file is read.
const message = await readFile(new URL('message.json', import.meta.url), 'utf8');
const source = printed.replace(/localhost:300[01]/, `localhost:${port}`);

globalThis.WebSocket ??= require('ws').WebSocket;
const log = (...words) => process.stdout.write(`${JSON.stringify(words)}\n`);
const AsyncFunction = (async () => {}).constructor;
const run = new AsyncFunction('require', 'token', 'console', `${source}\nreturn typeof ws === 'undefined' ? null : ws;`);
const ws = await run(require, token, { log });

if (ws !== null) {
  ws.addEventListener('open', () => ws.send(message));
  ws.addEventListener('message', (event) => {
    if (JSON.parse(event.data).type === 'chat_response') ws.close();
  });
}
