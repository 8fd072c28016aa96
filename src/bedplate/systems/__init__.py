"""Systems: each serves one documented API. They rename, shape, authenticate, limit and word errors."""
