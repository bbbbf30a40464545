"""The native core: rings, wait words, locks and blocks in shared memory. See README.md in this folder."""
