const response = await fetch('http://localhost:8000/api/auth/login', {
  method: 'POST',
  headers: {
    'Content-Type': 'application/json',
  },
  body: JSON.stringify({
    username: 'alice',
    password: 'SecurePass123!',
  }),
  credentials: 'include',
});

const data = await response.json();
if (response.ok) {
  localStorage.setItem('access_token', data.access_token);
}
