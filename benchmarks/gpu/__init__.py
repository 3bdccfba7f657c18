"""The first hour on a GPU: does it compute what a CPU does, how fast, in how much memory."""
