//! System tests and the live guest fixture.
