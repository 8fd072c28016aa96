const response = await fetch('http://localhost:8000/api/auth/refresh', {
  method: 'POST',
  credentials: 'include',
});

const data = await response.json();
if (response.ok) {
  localStorage.setItem('access_token', data.access_token);
}
