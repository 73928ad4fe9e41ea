"""What prediction leaves on disk: files of pictures, videos, and the account of what is done."""

from .ledger import Ledger
from .writer import DEFAULT, KINDS, Writer

__all__ = ["DEFAULT", "KINDS", "Ledger", "Writer"]
