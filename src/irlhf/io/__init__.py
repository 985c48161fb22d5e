"""Reading and writing what people bring: lines of bounded size, JSON Lines of choices, tables of columns."""

from irlhf.io.jsonl import read_jsonl, write_jsonl
from irlhf.io.tables import Table, label, read_table

__all__ = ["Table", "label", "read_jsonl", "read_table", "write_jsonl"]
