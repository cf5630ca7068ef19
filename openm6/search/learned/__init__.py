"""What photo search learns from a catalogue and from clicks; see `docs/search-learning.md`."""
