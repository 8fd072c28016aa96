"""Modules: each owns its tables and rules. Others import only its public.py and events.py."""
