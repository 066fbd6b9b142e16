"""What the claims about time and memory rest on: one script a claim, JSON out."""
# Not to be left out: opacus installs a top-level package of this name, which goes before a folder without this file.
