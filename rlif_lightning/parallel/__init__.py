"""The policy divided between processes: FSDP2, tensor parallelism, and loading and saving in parts."""
