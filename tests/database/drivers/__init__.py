"""Each supported driver keeps the same promises."""
