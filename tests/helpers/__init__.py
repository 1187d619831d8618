"""What several tests share. No test file imports another; what two of them need lies here."""
