"""The scripts behind the README's figures; each prints one JSON line."""
