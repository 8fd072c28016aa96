// Register, log in, read the account, refresh: each snippet as printed, one after the other.
import assert from 'node:assert/strict';
import { answers, cookies, run } from './browser.mjs';

await run('register.js');
const registered = localStorage.getItem('access_token');
assert.ok(registered);
assert.ok(cookies.get('refresh_token'));

await run('login.js');
const loggedIn = localStorage.getItem('access_token');
assert.notEqual(loggedIn, registered);

const user = await run('authenticated_request.js', 'return user');
assert.deepEqual(
  { ...user, id: typeof user.id },
  { id: 'string', username: 'alice', email: 'alice@example.com', email_verified: false, role: 'User' },
);

const cookie = cookies.get('refresh_token');
await run('refresh_token.js');
assert.notEqual(localStorage.getItem('access_token'), loggedIn);
assert.notEqual(cookies.get('refresh_token'), cookie);

assert.deepEqual(answers, [201, 200, 200, 200]);
