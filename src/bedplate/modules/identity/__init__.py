"""Identity: accounts, sessions, confirmation by e-mail, service keys."""
