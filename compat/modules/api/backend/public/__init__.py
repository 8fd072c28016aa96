"""The import path that the Pantstack document prints. The client itself is bedplate.clients.pantstack."""

from bedplate.clients.pantstack import APIClient, User

__all__ = ["APIClient", "User"]
