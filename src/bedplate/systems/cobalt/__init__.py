"""Cobalt: username and e-mail sign-in, refresh by cookie, administration."""
