// OpenAI's client for JavaScript against the door that speaks its API: node openai.mjs BASE_URL KEY.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: 'user', content: 'Hello, AI!' }];

const answer = await client.chat.completions.create({ model: 'gpt-4', messages });
assert.equal(answer.model, 'gpt-4');
assert.equal(answer.choices[0].finish_reason, 'stop');
assert.match(answer.choices[0].message.content, /Hello, AI!/);
assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);

const stream = await client.chat.completions.create({
  model: 'gpt-4',
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
let text = '';
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? '';
  usage = chunk.usage ?? usage;
}
assert.equal(text, answer.choices[0].message.content);
assert.deepEqual(usage, answer.usage);

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.ok(names.includes('gpt-4') && names.includes('llama2'));
assert.equal((await client.models.retrieve('gpt-4')).id, 'gpt-4');

await assert.rejects(client.models.retrieve('gpt-none'), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model: 'gpt-none', messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model: 'gpt-4', messages: [] }), OpenAI.BadRequestError);
const stranger = new OpenAI({ baseURL, apiKey: 'sk-nonsense', maxRetries: 0 });
await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
process.stdout.write('done\n');
