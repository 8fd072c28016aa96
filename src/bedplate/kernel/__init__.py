"""The kernel: what every module and system stands on. It knows no domain noun."""
