"""What SQL statements do, by their text. This package knows no driver and no connection. Any thread."""
