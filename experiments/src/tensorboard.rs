//! TensorBoard event files: TFRecord frames around `tensorflow.Event` messages.
//!
//! Ours, because the crates for it are unmaintained: they pin protobuf 2 and an image library for
//! what takes three messages.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::SystemTime;

use prost::Message as _;

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<ScalarValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScalarValue {
    #[prost(string, tag = "1")]
    tag: String,
    // Optional, so that a 0 is written and not left to the reader's default.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Writes scalars for TensorBoard.
#[derive(Debug)]
pub struct EventWriter {
    file: BufWriter<File>,
}

impl EventWriter {
    /// Starts a new event file in `dir`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(dir: &Path) -> io::Result<Self> {
        // TensorBoard looks for `tfevents` in the name and orders files by it.
        let name = format!("events.out.tfevents.{:010}.blkpilot", seconds() as u64);
        let mut writer = Self {
            file: BufWriter::new(File::create(dir.join(name))?),
        };
        writer.write(&Event {
            wall_time: seconds(),
            file_version: Some("brain.Event:2".to_owned()),
            ..Event::default()
        })?;
        Ok(writer)
    }

    /// Adds one value per tag at `step`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let value = values
            .iter()
            .map(|(tag, value)| ScalarValue {
                tag: (*tag).to_owned(),
                simple_value: Some(*value as f32),
            })
            .collect();
        self.write(&Event {
            wall_time: seconds(),
            step: step as i64,
            summary: Some(Summary { value }),
            ..Event::default()
        })
    }

    /// Brings what was written to the file, for readers beside us.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// One TFRecord: length, its checksum, data, its checksum, all little-endian.
    fn write(&mut self, event: &Event) -> io::Result<()> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        for part in [&length[..], &masked_crc(&length), &data, &masked_crc(&data)] {
            self.file.write_all(part)?;
        }
        Ok(())
    }
}

fn seconds() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// TFRecord masks its checksums, because a CRC of data that holds CRCs is weak.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From TensorFlow's own `tensorflow/core/lib/hash/crc32c_test.cc`: CRC-32C of 32 zero bytes.
    #[test]
    fn the_checksum_is_castagnoli_masked() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let masked = u32::from_le_bytes(masked_crc(&[0; 32]));
        assert_eq!(
            masked.wrapping_sub(0xa282_ead8).rotate_left(15),
            0x8a91_36aa
        );
    }

    #[test]
    fn frames_hold_the_events_that_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        writer
            .scalars(7, &[("losses/entropy", 0.0), ("charts/SPS", 12.5)])
            .unwrap();
        writer.flush().unwrap();
        let file = std::fs::read_dir(dir.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let events = events(&std::fs::read(file).unwrap());
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(events[1].step, 7);
        let values = &events[1].summary.as_ref().unwrap().value;
        assert_eq!(
            (values[0].tag.as_str(), values[0].simple_value),
            ("losses/entropy", Some(0.0))
        );
        assert_eq!(
            (values[1].tag.as_str(), values[1].simple_value),
            ("charts/SPS", Some(12.5))
        );
    }

    fn events(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            assert_eq!(rest[..4], masked_crc(length));
            let size = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let data = &rest[4..4 + size];
            assert_eq!(rest[4 + size..8 + size], masked_crc(data));
            events.push(Event::decode(data).unwrap());
            bytes = &rest[8 + size..];
        }
        events
    }
}
