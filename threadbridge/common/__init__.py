"""What all others may need, and what needs none of them. Any thread."""
