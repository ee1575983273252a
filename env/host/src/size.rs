//! Numbers as people write them: `1000`, `10MiB`.

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes, which may be written with a unit.
    Bytes,
    /// Anything else.
    One,
}

const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads a number.
///
/// # Errors
/// What is wrong, to follow the name of what it is.
pub(crate) fn parse(text: &str, unit: Unit) -> Result<u64, String> {
    let (digits, factor) = UNITS
        .iter()
        .filter(|_| unit == Unit::Bytes)
        .find_map(|(name, factor)| Some((text.strip_suffix(name)?, *factor)))
        .unwrap_or((text, 1));
    let number: Option<u64> = digits.parse().ok();
    let number = number.and_then(|number| number.checked_mul(factor));
    number.ok_or_else(|| match unit {
        Unit::Bytes => format!("= {text} must be bytes, such as 1048576 or 1MiB"),
        Unit::One => format!("= {text} must be a whole number, 0 or greater"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_have_units_and_none_overflows() {
        assert_eq!(parse("2MiB", Unit::Bytes), Ok(2 << 20));
        assert_eq!(parse("17", Unit::One), Ok(17));
        for (text, unit) in [
            ("2MiB", Unit::One),
            ("2MB", Unit::Bytes),
            ("-1", Unit::One),
            ("", Unit::Bytes),
            ("17179869184GiB", Unit::Bytes),
        ] {
            assert!(parse(text, unit).is_err(), "{text}");
        }
    }
}
