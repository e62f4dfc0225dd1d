"""Files: local folders, object stores, http; durable writes, caches, redacted URIs."""
