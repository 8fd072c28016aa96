"""Payments: money taken for an order through a provider, once, and given back."""
