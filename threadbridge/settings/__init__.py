"""Every setting: its type, default, kind of value and meaning."""
