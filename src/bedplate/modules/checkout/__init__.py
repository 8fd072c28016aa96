"""Checkout: where a payment's outcome meets its order. No tables: orders and payments keep what it decides."""
