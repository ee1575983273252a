CREATE TABLE policy (
  id           TEXT PRIMARY KEY,
  created_us   INTEGER NOT NULL,
  next_version INTEGER NOT NULL,
  revision     INTEGER NOT NULL
) STRICT;

CREATE TABLE version (
  policy         TEXT NOT NULL REFERENCES policy (id),
  number         INTEGER NOT NULL,
  sha256         TEXT NOT NULL,
  tensors_sha256 TEXT NOT NULL,
  selection      TEXT NOT NULL CHECK (selection IN ('greedy', 'sample')),
  stage          TEXT NOT NULL CHECK (stage IN ('stored', 'candidate', 'canary', 'production', 'archived')),
  size_bytes     INTEGER NOT NULL,
  algorithm      TEXT NOT NULL,
  env_steps      INTEGER NOT NULL,
  spec_name      TEXT NOT NULL,
  spec_hash      TEXT NOT NULL,
  description    TEXT NOT NULL,
  created_us     INTEGER NOT NULL,
  updated_us     INTEGER NOT NULL,
  revision       INTEGER NOT NULL,
  PRIMARY KEY (policy, number),
  UNIQUE (policy, sha256, selection)
) STRICT;

-- However a change goes wrong, two versions never stand at one of these stages.
CREATE UNIQUE INDEX one_per_stage ON version (stage) WHERE stage IN ('candidate', 'canary', 'production');

-- What was put into production and not rolled back, oldest first.
CREATE TABLE tenure (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  policy   TEXT NOT NULL,
  number   INTEGER NOT NULL,
  FOREIGN KEY (policy, number) REFERENCES version (policy, number)
) STRICT;

CREATE TABLE event (
  sequence       INTEGER PRIMARY KEY AUTOINCREMENT,
  id             TEXT NOT NULL UNIQUE,
  at_us          INTEGER NOT NULL,
  actor          TEXT NOT NULL,
  action         TEXT NOT NULL,
  result         TEXT NOT NULL,
  policy         TEXT NOT NULL,
  number         INTEGER,
  tensors_sha256 TEXT NOT NULL,
  stage          TEXT NOT NULL,
  reason         TEXT NOT NULL,
  admission      TEXT,
  verdict        TEXT
) STRICT;

-- Answers to calls that may be repeated.
CREATE TABLE request (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  id       TEXT NOT NULL UNIQUE,
  digest   TEXT NOT NULL,
  answer   BLOB NOT NULL
) STRICT;

CREATE TABLE operation (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  id       TEXT NOT NULL UNIQUE,
  done     INTEGER NOT NULL,
  -- Messages that a watcher could have seen.
  messages INTEGER NOT NULL,
  -- google.longrunning.Operation.
  body     BLOB NOT NULL
) STRICT;

-- What was done once and for all, such as taking over the files of an older version.
CREATE TABLE done (
  what TEXT PRIMARY KEY
) STRICT;
