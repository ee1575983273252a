
CREATE TABLE training_run (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  id       TEXT NOT NULL UNIQUE,
  -- Neither succeeded nor failed nor cancelled.
  is_open  INTEGER NOT NULL,
  -- The order in which runs are begun.
  place    INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  -- Whether it goes on although the code has changed.
  is_forced INTEGER NOT NULL,
  -- blkpilot.v1.TrainingRun without its source.
  body     BLOB NOT NULL,
  -- blkpilot.v1.TrainingSource.
  source   BLOB NOT NULL
) STRICT;
