//! The live host: telemetry, knobs and journal over libvirt, QMP, procfs and sysfs.
