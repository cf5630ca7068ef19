"""Photo search that learns from a catalogue and from clicks. `docs/search-learning.md` describes it."""
