"""The engine under both pools. See README.md in this folder."""
