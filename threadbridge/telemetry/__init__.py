"""What is known of each request that has ended, and those who read it: logs, sums, the history. Loop side."""
