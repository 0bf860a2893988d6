"""What ran: recorded after each healthy `up`, brought up to a release or back to a record, and pruned."""
