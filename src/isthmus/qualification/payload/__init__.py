"""The payload: the program in a lab guest that reports every surprise of a move."""
