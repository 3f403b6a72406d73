"""What SQL statements are and do, by their text. It knows no driver and no connection. Any thread."""
