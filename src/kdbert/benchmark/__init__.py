"""`kdbert benchmark`: size, latency, throughput, memory and quality of models, each in a process of its own."""
