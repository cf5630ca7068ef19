"""The tiers where parts live: device, host memory and disk; reads ahead, writes behind, commits."""
