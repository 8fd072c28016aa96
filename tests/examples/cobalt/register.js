const response = await fetch('http://localhost:8000/api/auth/register', {
  method: 'POST',
  headers: {
    'Content-Type': 'application/json',
  },
  body: JSON.stringify({
    username: 'alice',
    email: 'alice@example.com',
    password: 'SecurePass123!',
  }),
  credentials: 'include', // Important for cookies
});

const data = await response.json();
if (response.ok) {
  localStorage.setItem('access_token', data.access_token);
} else {
  console.error('Registration failed:', data.error);
}
