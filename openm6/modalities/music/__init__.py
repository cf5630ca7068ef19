"""How music enters and leaves the stream; see `docs/music.md`.

events, grammar           the project's own representation: one position an event, each a cell of four fields
mmr, chords, music_bpe    SymphonyNet's representation (2205.05448), as its authors' code makes it
"""
