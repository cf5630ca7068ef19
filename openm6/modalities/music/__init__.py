"""How music enters and leaves the stream as events; see `docs/music.md`."""
