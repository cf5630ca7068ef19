"""Where parts live: host memory and disk; reads ahead, writes behind, commits."""
