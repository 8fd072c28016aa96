"""Ops: maintenance mode, system status, the audit log."""
