"""The whole story on the digits, measured and reported."""
