"""Graphs of expressions: their derivatives, and functions written from them."""
