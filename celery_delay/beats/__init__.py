"""One beat process: its threads, its way to the queues, and its node of remote control."""
