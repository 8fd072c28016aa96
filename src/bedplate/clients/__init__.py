"""Typed clients of the documented APIs, for programs that call them. They need httpx2 and pydantic, no more."""
