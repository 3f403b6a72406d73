"""What belongs to both sides: requests, lanes, and the bodies on their way between the loop and a worker."""
