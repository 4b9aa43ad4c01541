"""One file a task: the loss of a sample, and a reader of a well-known data set's files. See docs/tasks.md."""
