"""The HTTP service and its page: `openm6 serve`. `docs/service.md` describes it.

`server.py` runs `app.py`. The routes of `app.py` call `engine.py`, which computes in batches (`batching.py`).
"""
