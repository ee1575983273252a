//! The gRPC interface of blkpilot: package blkpilot.v1.
