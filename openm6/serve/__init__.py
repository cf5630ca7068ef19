"""The HTTP service and its page: `openm6 serve`; see `docs/service.md`.

`server.py` runs `app.py`, whose routes ask `engine.py`, which computes in batches (`batching.py`).
"""
