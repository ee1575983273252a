CREATE TABLE evaluation (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  id       TEXT NOT NULL UNIQUE,
  -- blkpilot.v1.Evaluation.
  body     BLOB NOT NULL
) STRICT;
