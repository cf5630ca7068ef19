"""Visual search after Alibaba's Pailitao ("Visual Search at Alibaba", KDD 2018, 2102.04674); see
`docs/search.md`."""
