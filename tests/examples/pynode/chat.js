const axios = require('axios');

const api = axios.create({
  baseURL: 'http://localhost:3000',
  headers: {
    'Authorization': `Bearer ${token}`
  }
});

// Send a chat message
const response = await api.post('/api/chat', {
  message: 'Hello, AI!',
  model: 'gpt-4'
});

console.log(response.data);
