"""One module per platform: inventory, render a baseline, migrate."""
