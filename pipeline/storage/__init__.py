"""Files: local folders, object stores, HTTP; durable writes, locks, caches, redaction.

Which module opens remote files:

- `folder` reads and writes the folder of a run at any URI that pyarrow opens (``ray.storage``).
- `remote` reads files below a URL prefix, with retries: shard sets (``data.train`` and others).
- `download` gets one file, without retries, for `remote` and for weights by URL. It chooses the
  client: `http_client` (urllib3) for http and https, fsspec for everything else.

Credentials come from the environment, not from the configuration:

- s3, both clients: $AWS_ACCESS_KEY_ID, $AWS_SECRET_ACCESS_KEY, $AWS_SESSION_TOKEN, the files and
  roles that AWS clients read.
- other protocols in `remote`: ``$FSSPEC_<PROTOCOL>`` with options of the client in JSON. For http
  and https its ``headers`` are sent to the origin of the URL and dropped on redirects to others.
- weights by URL: none. A recipe may name any host, and their sha256 is checked.
- proxies: login in $http_proxy or $https_proxy.

`remote` and `http_client` reject a URL that contains credentials. ``ray.storage`` may have options
after ``?``; `redact.mask` removes secrets from every URI that is printed or recorded.
"""
