"""Looking into what runs: dumps of live streams, and the watchdog that reports those that stand still."""
