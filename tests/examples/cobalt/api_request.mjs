// The wrapper that refreshes by itself: with no token, with a bad one, and with nothing to refresh with.
import assert from 'node:assert/strict';
import { answers, cookies, run } from './browser.mjs';

await run('register.js');
const apiRequest = await run('error_handling.js', 'return apiRequest');
const me = 'http://localhost:8000/api/auth/me';

assert.equal((await apiRequest(me)).username, 'alice');

localStorage.removeItem('access_token'); // sends an empty Authorization header
assert.equal((await apiRequest(me)).username, 'alice');

localStorage.setItem('access_token', 'nonsense');
assert.equal((await apiRequest('/api/auth/me')).username, 'alice');

await assert.rejects(apiRequest('/api/admin/stats'), { message: 'Admin access required' });

// A POST with a content type and no body, whose answer has to be JSON.
assert.deepEqual(await apiRequest('/api/auth/logout', { method: 'POST' }), { message: 'Logged out successfully' });
assert.equal(cookies.size, 0);

await assert.rejects(apiRequest(me), Error);
assert.equal(window.location.href, '/login');

assert.deepEqual(answers, [201, 200, 401, 200, 200, 401, 200, 200, 403, 200, 401, 401]);
