"""What others' tools see of us beside metrics: log lines in their format, spans, links."""
