"""What is changed outside our table, each recorded as ours and taken back."""
