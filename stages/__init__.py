"""What is computed: one room per stage."""
