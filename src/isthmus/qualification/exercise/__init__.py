"""A program that executes every instruction that its guest was shown, and sums what they did."""
