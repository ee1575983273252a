//! One line of a segment: CRC-32 of the JSON in eight hex digits, a space, the JSON, a line feed.

use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

/// Longest line that is written or read, so that garbage does not fill the memory. An observation
/// of a thousand channels takes a tenth of it.
pub(crate) const LONGEST_LINE_BYTES: usize = 4 << 20;

/// First line of each segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) format: u32,
    pub(crate) number: u64,
}

/// The first line's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeaderLine {
    Segment(Header),
}

/// Appends a line to `out` and returns its length.
pub(crate) fn encode(content: &impl Serialize, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(b"00000000 ");
    serde_json::to_writer(&mut *out, content)
        .expect("rows have string keys and memory does not fail");
    let sum = format!("{:08x}", crc32fast::hash(&out[start + 9..]));
    out[start..start + 8].copy_from_slice(sum.as_bytes());
    out.push(b'\n');
    out.len() - start
}

/// The JSON of a line without its line feed, if its checksum fits.
pub(crate) fn check(line: &[u8]) -> Result<&[u8], &'static str> {
    let Some((sum, json)) = line.split_at_checked(9) else {
        return Err("too short for a line");
    };
    let digits = std::str::from_utf8(&sum[..8]).map_err(|_| "no checksum at its start")?;
    let is_hex = digits
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_hex || sum[8] != b' ' {
        return Err("no checksum at its start");
    }
    let wanted = u32::from_str_radix(digits, 16).map_err(|_| "no checksum at its start")?;
    if crc32fast::hash(json) == wanted {
        Ok(json)
    } else {
        Err("its checksum does not fit")
    }
}

/// What stands between two line feeds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A line, now in the buffer; without its line feed.
    Line,
    /// A line that is too long; skipped.
    TooLong,
    /// What follows the last line feed, if anything: a line under way, or torn.
    Tail,
    /// Nothing.
    End,
}

/// Reads up to the next line feed. Returns what it was and how many bytes were consumed.
pub(crate) fn next_piece(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<(Piece, u64)> {
    line.clear();
    let mut consumed = 0_u64;
    loop {
        let chunk = input.fill_buf()?;
        if chunk.is_empty() {
            let piece = if consumed == 0 {
                Piece::End
            } else {
                Piece::Tail
            };
            return Ok((piece, consumed));
        }
        let feed = chunk.iter().position(|byte| *byte == b'\n');
        let part = feed.unwrap_or(chunk.len());
        if consumed + part as u64 <= LONGEST_LINE_BYTES as u64 {
            line.extend_from_slice(&chunk[..part]);
        }
        let used = part + usize::from(feed.is_some());
        input.consume(used);
        consumed += used as u64;
        if feed.is_some() {
            let is_whole = line.len() as u64 + 1 == consumed;
            return Ok((
                if is_whole {
                    Piece::Line
                } else {
                    Piece::TooLong
                },
                consumed,
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_checksum_space_json_feed() {
        let mut out = b"before".to_vec();
        let bytes = encode(
            &HeaderLine::Segment(Header {
                format: 1,
                number: 1,
            }),
            &mut out,
        );
        assert_eq!(bytes, out.len() - 6);
        let json = "{\"segment\":{\"format\":1,\"number\":1}}";
        // The polynomial of zlib and Ethernet; `python3 -c 'import zlib; …'` gives the same.
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        let want = format!("before{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_without_being_kept() {
        let mut input = vec![b'x'; LONGEST_LINE_BYTES + 70_000];
        input.extend_from_slice(b"\nnext\ntail");
        let mut input = io::BufReader::new(&input[..]);
        let mut line = Vec::new();
        assert_eq!(next_piece(&mut input, &mut line).unwrap().0, Piece::TooLong);
        assert!(line.capacity() <= 2 * LONGEST_LINE_BYTES);
        assert_eq!(next_piece(&mut input, &mut line).unwrap(), (Piece::Line, 5));
        assert_eq!(line, b"next");
        assert_eq!(next_piece(&mut input, &mut line).unwrap(), (Piece::Tail, 4));
        assert_eq!(next_piece(&mut input, &mut line).unwrap(), (Piece::End, 0));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_noticed(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut line = Vec::new();
            encode(&HeaderLine::Segment(Header { format: 1, number: 77 }), &mut line);
            line.pop();
            let at = at.index(line.len());
            let before = line[at];
            line[at] = byte;
            prop_assert_eq!(check(&line).is_ok(), byte == before);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(check(&bytes).is_err());
        }
    }
}
