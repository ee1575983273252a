//! The blkpilot service: serves a policy over gRPC and retunes running guests.
