"""Pantstack: versioned users, authentication and administration, service clients."""
